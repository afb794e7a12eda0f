//! The common parts of the program's pages.

use maud::{Markup, PreEscaped, html};

/// The head of a page of this program; the status page adds to it.
pub fn head(title: &str) -> Markup {
    html! {
        meta charset="utf-8";
        meta name="viewport" content="width=device-width, initial-scale=1";
        meta name="color-scheme" content="light dark";
        meta name="robots" content="noindex";
        title { "Doorward: " (title) }
        style { (PreEscaped(STYLE)) }
    }
}

/// Colours and shapes.
const STYLE: &str = include_str!("page.css");
