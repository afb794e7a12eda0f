//! Charts as inline SVG. Lengths are in the units of the view box, which is as wide as a phone.

use maud::{Markup, html};

use doorward_detection::stats::quantile;

use super::LabelScores;

/// A bar per label.
pub(super) struct Bars<'a> {
    pub(super) title: &'a str,
    /// Label, value, and whether it is infected.
    pub(super) bars: Vec<(usize, f64, bool)>,
    /// The axis' least end.
    pub(super) end: f64,
    /// A line across, with what it says.
    pub(super) line: Option<(f64, String)>,
}

// === impl Bars ===

impl Bars<'_> {
    /// Horizontal bars with their values, one below the other.
    pub(super) fn svg(&self) -> Markup {
        let largest = self.bars.iter().map(|bar| bar.1).fold(self.end, f64::max);
        let line = self.line.as_ref().map_or(0.0, |line| line.0);
        let end = largest.max(line * 1.15);
        let x = |value: f64| LEFT + value / end * (WIDTH - LEFT - RIGHT);
        let bottom = TOP + ROW * self.bars.len() as f64;
        html! {
            svg viewBox={ "0 0 " (WIDTH) " " (bottom + 6.0) } role="img" aria-label=(self.title) {
                line .axis x1=(LEFT) x2=(LEFT) y1=(TOP - 4.0) y2=(bottom) {}
                @for (place, (label, value, infected)) in self.bars.iter().enumerate() {
                    @let y = TOP + ROW * place as f64;
                    text .tick x=(LEFT - 8.0) y=(y + 13.0) text-anchor="end" { (label) }
                    rect .bar .infected[*infected] x=(LEFT) y=(y + 2.0) height=(ROW - 5.0)
                        width=(round(x(*value) - LEFT)) {}
                    text .value x=(round(x(*value) + 5.0)) y=(y + 13.0) { (format!("{value:.2}")) }
                }
                @if let Some((at, says)) = &self.line {
                    line .threshold x1=(round(x(*at))) x2=(round(x(*at))) y1=(TOP - 4.0) y2=(bottom) {}
                    text .says x=(round(x(*at))) y=(TOP - 9.0) text-anchor="middle" { (says) }
                }
            }
        }
    }
}

/// The distributions of a label's clean and triggered scores about its threshold, which lies at
/// zero.
pub(super) fn histogram(scores: &LabelScores) -> Markup {
    let (low, high) = range(scores);
    let x = |value: f64| MARGIN + (value - low) / (high - low) * (WIDTH - 2.0 * MARGIN);
    let series = [("clean", &scores.clean), ("triggered", &scores.triggered)];
    let heights = series.map(|(_, values)| bins(values, low, high));
    let highest = heights.iter().flatten().copied().fold(0.0, f64::max).max(1e-9);
    let step = (WIDTH - 2.0 * MARGIN) / BINS as f64;
    let base = HISTOGRAM - 22.0;
    html! {
        svg viewBox={ "0 0 " (WIDTH) " " (HISTOGRAM) } role="img"
            aria-label={ "Scores of label " (scores.label) } {
            @for ((name, _), heights) in series.iter().zip(&heights) {
                @for (bin, share) in heights.iter().enumerate().filter(|(_, share)| **share > 0.0) {
                    @let height = (share / highest * (base - 18.0)).max(1.0);
                    rect class={ "bin " (name) } x=(round(MARGIN + bin as f64 * step + 0.5))
                        y=(round(base - height)) width=(round(step - 1.0)) height=(round(height)) {}
                }
            }
            line .axis x1=(MARGIN) x2=(WIDTH - MARGIN) y1=(base) y2=(base) {}
            line .threshold x1=(round(x(0.0))) x2=(round(x(0.0))) y1="14" y2=(base + 4.0) {}
            text .says x=(round(x(0.0))) y="10" text-anchor="middle" { "threshold" }
            @for at in ticks(low, high) {
                text .tick x=(round(x(at))) y=(base + 15.0) text-anchor="middle" { (format!("{at:+.0}").replace("+0", "0")) }
            }
        }
    }
}

/// From the lowest to the highest scores but for the last percent, with the threshold in sight.
fn range(scores: &LabelScores) -> (f64, f64) {
    let (mut low, mut high) = (-1.0f64, 1.0f64);
    for values in [&scores.clean, &scores.triggered] {
        let values: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
        if !values.is_empty() {
            low = low.min(quantile(&values, 0.01));
            high = high.max(quantile(&values, 0.99));
        }
    }
    let margin = (high - low) * 0.03;
    (low - margin, high + margin)
}

/// The share of the values in each bin; what lies outside counts in the first or the last.
fn bins(values: &[f32], low: f64, high: f64) -> [f64; BINS] {
    let mut bins = [0.0; BINS];
    for &value in values {
        let place = (f64::from(value) - low) / (high - low) * BINS as f64;
        bins[(place.max(0.0) as usize).min(BINS - 1)] += 1.0 / values.len() as f64;
    }
    bins
}

/// Whole numbers along an axis, at most six, zero among them.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let steps = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 1e4, 1e5];
    let step = steps.into_iter().find(|step| (high - low) / step <= 6.0).unwrap_or(1e6);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).map(|count| count as f64 * step).collect()
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

const WIDTH: f64 = 340.0;

/// Room for the labels before the bars, and for the values behind them.
const LEFT: f64 = 34.0;
const RIGHT: f64 = 40.0;

/// Room above the bars.
const TOP: f64 = 26.0;

/// Height of a bar with its gap.
const ROW: f64 = 18.0;

/// Height of a histogram, and the room at its sides.
const HISTOGRAM: f64 = 120.0;
const MARGIN: f64 = 12.0;

const BINS: usize = 40;
