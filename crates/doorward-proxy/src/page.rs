//! What the pages of the program have in common.

use maud::{Markup, PreEscaped, html};

/// What a page of this program has in its head; the status page adds to it.
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
