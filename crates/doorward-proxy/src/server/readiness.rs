//! The part of its life that a process is in.

use std::sync::atomic::{AtomicU8, Ordering};

/// True if traffic should be sent here. It only moves forward.
#[derive(Debug)]
pub(super) struct Readiness(AtomicU8);

/// A part of a process's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// No detector yet.
    Calibrating,
    /// Serving.
    Ready,
    /// On the way out.
    Draining,
}

// === impl Phase ===

impl Phase {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Calibrating => "calibrating",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

// === impl Readiness ===

impl Readiness {
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(Phase::Calibrating as u8))
    }

    /// Enters a phase, unless a later one has begun: a detector that comes during the drain must
    /// not bring traffic back.
    pub(super) fn set(&self, phase: Phase) {
        self.0.fetch_max(phase as u8, Ordering::AcqRel);
    }

    pub(super) fn phase(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            value if value == Phase::Calibrating as u8 => Phase::Calibrating,
            value if value == Phase::Ready as u8 => Phase::Ready,
            _ => Phase::Draining,
        }
    }
}
