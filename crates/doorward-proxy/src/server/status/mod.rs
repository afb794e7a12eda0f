//! The status of the firewall, for people and for programs: `/status` and `/status.json`.
//!
//! Both show one [`Status`], which is gathered when it is asked for. Nothing in it helps to craft
//! an input: no perturbation, threshold or score. Pictures do, and are [shown](super::pictures) to
//! a reader on this machine only.

mod chart;
mod figures;
mod history;
mod numbers;
mod page;

pub(super) use figures::Status;
pub(super) use history::History;
pub(super) use page::page;
