//! Finds images of a training set that look poisoned: both papers' use in the training stage.
//!
//! "Detecting Backdoor in Deep Neural Networks via Intentional Adversarial Perturbations", section
//! III-C: an image of the training set whose label survives the universal perturbation is removed.
//! "Confidence Matters: Inspecting Backdoors in Deep Neural Networks via Distribution Transfer",
//! appendix B.5: of the images of an infected label, those whose label the patch changes are
//! removed. Both verdicts stand beside the calibrated one in every [`Finding`].
//!
//! An image is judged by itself, so that a set may be scanned in parts: sources are streamed, and a
//! [`Shard`] takes every n-th image.

mod output;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use doorward_engine::rows;
use doorward_images::{Frame, Image, Stream};

use crate::conformal::Thresholds;
use crate::row::RowSignals;
use crate::rule::{Needs, Rule};
use crate::scorer::Scorer;
use crate::signal::{Scores, by_symbol};

pub use output::{Header, Output, clean_list_path, write_clean_list};

/// The images of a scan, and the way they are judged.
pub struct Plan<'a> {
    /// Score the images.
    pub scorer: &'a Scorer,
    /// The thresholds of the calibrated rule.
    pub thresholds: &'a Thresholds,
    /// The rule that says what is suspicious.
    pub rule: Rule,
    /// Read in order.
    pub sources: &'a [PathBuf],
    /// The way of their pictures into the model's shape.
    pub frame: Frame,
    /// The part of their images that is scanned.
    pub shard: Shard,
}

/// Every `of`-th image of each source, from the one with this index on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    of: usize,
}

/// An image that is the next one to scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The source, by its place among the sources.
    pub source: usize,
    /// The image, by its index in the source; it may be that of another shard.
    pub index: usize,
}

/// The finding on one image: one line of a scan's output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The source, as it was given.
    pub source: String,
    /// Index in the source, from 0.
    pub index: usize,
    /// The file that holds the image.
    pub file: String,
    /// Index in that file, where it holds many.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub number: Option<usize>,
    /// The label that the set gives, if it gives one.
    pub label: Option<usize>,
    /// The label that the model gives.
    pub predicted: usize,
    /// The signals, each under its symbol.
    #[serde(flatten, with = "by_symbol")]
    pub scores: Scores,
    /// The distance of the calibrated score above its threshold; none where the model answers with
    /// what is no number.
    pub excess: Option<f32>,
    /// True if each rule would remove the image.
    pub rules: BTreeMap<String, bool>,
    /// True if the configured rule would.
    pub suspicious: bool,
}

/// Totals of findings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Images.
    pub images: usize,
    /// The suspicious ones among them.
    pub suspicious: usize,
    /// The same by predicted label.
    pub labels: BTreeMap<usize, LabelTally>,
    /// The number of images each rule would remove.
    pub rules: BTreeMap<String, usize>,
}

/// Totals of one predicted label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LabelTally {
    /// Images.
    pub images: usize,
    /// The suspicious ones among them.
    pub suspicious: usize,
}

/// Why a scan does not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The detection failed.
    #[error(transparent)]
    Detect(#[from] crate::Error),
    /// The output or the list cannot be read or written.
    #[error("cannot read or write {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A source cannot be read.
    #[error(transparent)]
    Images(#[from] doorward_images::Error),
    /// A line of an earlier run is not one.
    #[error("line {line} of {} is not a finding of a scan", path.display())]
    Line {
        /// The output.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The fault in it.
        source: serde_json::Error,
    },
    /// Another run is at it.
    #[error("another scan is writing {}", path.display())]
    Locked {
        /// The output.
        path: PathBuf,
    },
    /// A path that text cannot hold, or a line of a list cannot.
    #[error(
        "the name {path:?} cannot be written into a list: expected utf-8 without tabs and line breaks"
    )]
    Name {
        /// The path.
        path: PathBuf,
    },
    /// A file that does not begin as a scan's output does.
    #[error(
        "{} exists and is not the output of a scan: name another file, or remove it", path.display()
    )]
    NotOutput {
        /// The file.
        path: PathBuf,
    },
    /// The output of another scan.
    #[error(
        "{} was begun with {key} {got}, expected {expected}: name another file, or remove it",
        path.display()
    )]
    Other {
        /// The output.
        path: PathBuf,
        /// The thing that differs.
        key: String,
        /// The value in the output.
        got: String,
        /// The value of this scan.
        expected: String,
    },
}

/// Judges the images of a plan from a position on, and hands over what it finds in their order.
///
/// It holds `SCORED_AT_ONCE` images, whatever the size of the sources.
pub fn scan(
    plan: &Plan<'_>,
    from: Position,
    found: &mut dyn FnMut(Vec<Finding>) -> Result<(), Error>,
    progress: &dyn Fn(f64),
) -> Result<(), Error> {
    for (number, source) in plan.sources.iter().enumerate().skip(from.source) {
        let mut stream = Stream::open(source, plan.frame)?;
        let mut next = if number == from.source { from.index } else { 0 };
        loop {
            let mut batch: Vec<(usize, Image)> = Vec::with_capacity(SCORED_AT_ONCE);
            while batch.len() < SCORED_AT_ONCE {
                let index = plan.shard.first_from(next);
                let passed = stream.passed();
                let Some(image) = stream.nth(index - passed) else { break };
                batch.push((index, image?));
                next = index + 1;
            }
            if batch.is_empty() {
                break;
            }
            found(judge(plan, &source.to_string_lossy(), &batch)?)?;
            progress((number as f64 + stream.share()) / plan.sources.len() as f64);
        }
    }
    Ok(())
}

fn judge(plan: &Plan<'_>, source: &str, batch: &[(usize, Image)]) -> Result<Vec<Finding>, Error> {
    let model = plan.scorer.model();
    let pixels = batch.iter().map(|(_, image)| image.pixels.as_slice());
    let tensor = rows(model.domain(), pixels, model.device()).map_err(crate::Error::from)?;
    let scored = plan.scorer.score(&tensor, Needs::ALL)?;
    let rule = plan.rule;
    let by_rule = match rule.is_baseline() {
        true => plan.scorer.score(&tensor, rule.needs())?,
        false => scored.clone(),
    };
    batch
        .iter()
        .zip(scored.iter().zip(&by_rule))
        .map(|((index, image), (row, by_rule))| {
            let suspicious = rule.rejects(by_rule, plan.thresholds);
            finding(plan, source, *index, image, row, suspicious)
        })
        .collect()
}

fn finding(
    plan: &Plan<'_>,
    source: &str,
    index: usize,
    image: &Image,
    row: &RowSignals,
    suspicious: bool,
) -> Result<Finding, Error> {
    let path = &image.place.path;
    let file = path.to_str().ok_or_else(|| Error::Name { path: path.clone() })?;
    let removes = |rule: Rule| rule.rejects(row, plan.thresholds);
    Ok(Finding {
        source: source.to_owned(),
        index,
        file: file.to_owned(),
        number: image.place.number,
        label: image.label,
        predicted: row.label,
        scores: row.scores,
        excess: row
            .joined
            .map(|joined| plan.thresholds.excess(&joined))
            .filter(|excess| excess.is_finite()),
        rules: Rule::without_baselines()
            .map(|rule| (rule.name().to_owned(), removes(rule)))
            .collect(),
        suspicious,
    })
}

// === impl Shard ===

impl Shard {
    /// All images.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// The first of its images at or behind `index`.
    fn first_from(self, index: usize) -> usize {
        index + (self.index + self.of - index % self.of) % self.of
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text
            .split_once('/')
            .and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        match parts {
            Some((index, of)) if index < of => Ok(Self { index, of }),
            _ => Err("expected I/N with I from 0 to N - 1, for instance 0/4".to_owned()),
        }
    }
}

// === impl Tally ===

impl Tally {
    /// Counts a finding.
    pub fn add(&mut self, finding: &Finding) {
        self.images += 1;
        self.suspicious += usize::from(finding.suspicious);
        let label = self.labels.entry(finding.predicted).or_default();
        label.images += 1;
        label.suspicious += usize::from(finding.suspicious);
        for (rule, &removed) in &finding.rules {
            *self.rules.entry(rule.clone()).or_default() += usize::from(removed);
        }
    }
}

/// Images a batch; 64 of 3 x 224 x 224 take 37 MiB, and as much again per perturbation.
const SCORED_AT_ONCE: usize = 64;
