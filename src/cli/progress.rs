//! Progress of long work: bars on a terminal, log lines elsewhere.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use doorward_detection::prepare::Stage;

/// Shows how far each stage is.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    state: RefCell<Option<(&'static str, Instant)>>,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("{msg:28} [{bar:40}] {percent:>3} % {elapsed}");
            let bar = ProgressBar::new(TICKS);
            bar.set_style(
                style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "),
            );
            bar
        });
        Self { bar, state: RefCell::new(None) }
    }

    /// `share` of a stage of the calibration is done.
    pub(super) fn update(&self, stage: Stage, share: f64) {
        self.show(title(stage), share);
    }

    /// `share` of what `title` names is done.
    pub(super) fn show(&self, title: &'static str, share: f64) {
        if let Some(bar) = &self.bar {
            bar.set_message(title);
            bar.set_position((share * TICKS as f64) as u64);
            return;
        }
        let mut state = self.state.borrow_mut();
        let now = Instant::now();
        let due = match *state {
            Some((shown, at)) => shown != title || now - at > QUIET || share >= 1.0,
            None => true,
        };
        if due {
            tracing::info!(stage = title, percent = (share * 100.0).round(), "working");
            *state = Some((title, now));
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn title(stage: Stage) -> &'static str {
    match stage {
        Stage::Universal => "universal perturbation",
        Stage::ClassConditional => "per-label perturbations",
        Stage::Inspection => "patches (DTInspector)",
        Stage::NeuralCleanse => "patches (Neural Cleanse)",
        Stage::Layers => "statistics of activations",
        Stage::Holdout => "held-out scores",
        Stage::Strip => "STRIP entropies",
    }
}

const TICKS: u64 = 1000;

/// Log lines come no more often.
const QUIET: Duration = Duration::from_secs(10);
