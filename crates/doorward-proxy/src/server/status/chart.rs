//! The verdicts over time as stacked bars. Boxes, not SVG: text keeps its size on every screen.

use maud::{Markup, html};

use super::figures::Status;
use super::history::MINUTES;
use super::numbers::{Counts, thousands};

/// From the bottom of a bar upwards: what an operator has to see is on the base line.
pub(super) const ORDER: [&str; 7] = [
    "rejected",
    "flagged",
    "unverified_passed",
    "unverified_rejected",
    "refused",
    "passed",
    "bypassed",
];

/// One bar a minute, the newest on the right.
pub(super) fn bars(status: &Status) -> Markup {
    let so_far = (&status.minute_so_far, "the minute so far");
    let past = status.minutes.iter().map(|minute| (&minute.verdicts, clock(&minute.end)));
    let mut bars: Vec<(&Counts, &str)> = past.chain([so_far]).collect();
    if bars.len() > MINUTES {
        bars.remove(0);
    }
    let highest = bars.iter().map(|(counts, _)| total(counts)).max().unwrap_or(0).max(1);
    html! {
        p .peak { (thousands(highest)) " a minute" }
        div .chart role="img" aria-label="Requests by minute and verdict, the last hour" {
            @for _ in bars.len()..MINUTES { div .minute {} }
            @for (counts, end) in &bars {
                div .minute title=(says(counts, end)) {
                    @for verdict in ORDER {
                        @let count = counts.get(verdict).copied().unwrap_or(0);
                        @if count > 0 {
                            i class=(verdict) style=(format!("height:{:.2}%", share(count, highest))) {}
                        }
                    }
                }
            }
        }
        p .axis { span { "an hour ago" } span { "now" } }
        p .legend {
            @for verdict in ORDER {
                @if status.verdicts.get(verdict).copied().unwrap_or(0) > 0 {
                    span { i class={ "key " (verdict) } {} (words(verdict)) }
                }
            }
        }
    }
}

/// The label of a verdict as words.
pub(super) fn words(verdict: &str) -> String {
    verdict.replace('_', " ")
}

fn says(counts: &Counts, end: &str) -> String {
    let some = ORDER.iter().filter_map(|verdict| {
        let count = counts.get(verdict).copied().unwrap_or(0);
        (count > 0).then(|| format!("{count} {}", words(verdict)))
    });
    let some: Vec<String> = some.collect();
    format!("{end}: {}", if some.is_empty() { "none".to_owned() } else { some.join(", ") })
}

/// The time of day in `2026-01-01T12:34:56Z`.
fn clock(time: &str) -> &str {
    time.get(11..16).unwrap_or(time)
}

fn total(counts: &Counts) -> u64 {
    counts.values().sum()
}

/// Percent of the chart's height; a single rejection among thousands can still be seen.
fn share(count: u64, highest: u64) -> f64 {
    (count as f64 / highest as f64 * 100.0).max(1.5)
}
