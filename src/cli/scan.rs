//! `scan`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::offline::{artifact, load_model};
use super::progress::Progress;
use crate::config::Config;
use doorward_detection::prepare::Stored;
use doorward_detection::scan::{
    Error, Finding, Header, Output, Plan, Position, Shard, Tally, scan as run, write_clean_list,
};
use doorward_detection::stats::most_exceedances;
use doorward_detection::{open, prepare};
use doorward_engine::Model;
use doorward_images::digest_sources;

/// The totals of a scan, and those that a clean set would have had.
struct Summary {
    tally: Tally,
    /// Most suspicious images that false rejections explain.
    explained: usize,
    rule: &'static str,
    bound: f64,
}

pub(super) fn scan(
    config: &Config,
    images: &[PathBuf],
    shard: Shard,
    output: Option<&Path>,
    as_json: bool,
) -> Result<ExitCode> {
    if let Some(twice) = (1..images.len()).find(|&index| images[..index].contains(&images[index])) {
        bail!("--images names {} twice", images[twice].display());
    }
    let model = load_model(config)?;
    let Stored { artifact, sha256: artifact_digest } = artifact(config, &model)?;
    let scorer = open::scorer(model.clone(), &artifact, &config.detection.policy)?;
    let thresholds = open::thresholds(&artifact, &config.detection.policy);
    let rule = config.detection.policy.rule;
    let frame = prepare::frame(&config.detection.preprocess, scorer.model().domain().shape)?;
    let plan =
        Plan { scorer: &scorer, thresholds: &thresholds, rule, sources: images, frame, shard };
    let progress = Progress::new();
    let show = |share| progress.show("scanned", share);
    let summarise = |tally: Tally| {
        let (bound, held_out) =
            (thresholds.false_rejection_rate_bound, artifact.manifest.images.holdout);
        let explained = most_exceedances(tally.images, held_out, bound, CONFIDENCE);
        Summary { tally, explained, rule: rule.name(), bound }
    };
    let Some(path) = output else {
        let (mut lines, mut tally) = (io::stdout().lock(), Tally::default());
        let mut print = |findings: Vec<Finding>| {
            for finding in &findings {
                tally.add(finding);
                let line = serde_json::to_string(finding).map_err(io::Error::from);
                line.and_then(|line| writeln!(lines, "{line}"))
                    .map_err(|source| Error::File { path: "standard output".into(), source })?;
            }
            Ok(())
        };
        run(&plan, Position::default(), &mut print, &show)?;
        progress.finish();
        let summary = summarise(tally);
        eprint!("{}", summary.text());
        return Ok(summary.status());
    };
    let mut output = Output::open(path, &header(config, &model, &plan, artifact_digest)?)?;
    if output.tally().images > 0 {
        tracing::info!(images = output.tally().images, "going on with an earlier run");
    }
    let from = output.next();
    run(&plan, from, &mut |findings| output.add(&findings), &show)?;
    progress.finish();
    let list = write_clean_list(path)?;
    let summary = summarise(output.tally().clone());
    if as_json {
        println!("{}", summary.json(path, &list));
    } else {
        print!("{}", summary.text());
        println!("lines           {}", path.display());
        println!("cleaned list    {}", list.display());
    }
    Ok(summary.status())
}

fn header(
    config: &Config,
    model: &Model,
    plan: &Plan<'_>,
    artifact_digest: String,
) -> Result<Header> {
    let Some(sources_digest) = digest_sources(plan.sources)? else {
        let missing = plan.sources.iter().find(|source| !source.exists());
        bail!(
            "--images: {} is not there",
            missing.map_or_else(String::new, |path| path.display().to_string())
        );
    };
    let names = plan.sources.iter().map(|path| {
        path.to_str().map(str::to_owned).with_context(|| format!("--images: {path:?} is not utf-8"))
    });
    Ok(Header {
        doorward: env!("CARGO_PKG_VERSION").to_owned(),
        model_digest: model.digest().to_owned(),
        artifact_digest,
        sources: names.collect::<Result<_>>()?,
        sources_digest,
        shard: plan.shard.to_string(),
        rule: plan.rule.name().to_owned(),
        max_false_rejection_rate: config.detection.policy.max_false_rejection_rate.value(),
        infected_budget: config.detection.policy.infected_budget.into(),
    })
}

// === impl Summary ===

impl Summary {
    fn status(&self) -> ExitCode {
        if self.tally.suspicious > self.explained {
            ExitCode::from(POISONED)
        } else {
            ExitCode::SUCCESS
        }
    }

    fn json(&self, lines: &Path, list: &Path) -> serde_json::Value {
        let labels = self.tally.labels.iter().map(|(label, tally)| {
            json!({ "label": label, "images": tally.images, "suspicious": tally.suspicious })
        });
        json!({
            "images": self.tally.images,
            "suspicious": self.tally.suspicious,
            "explained": self.explained,
            "rule": self.rule,
            "rules": self.tally.rules,
            "labels": labels.collect::<Vec<_>>(),
            "false_rejection_rate_bound": self.bound,
            "output": lines.display().to_string(),
            "clean_list": list.display().to_string(),
        })
    }

    fn text(&self) -> String {
        let mut text = "label     images  suspicious\n".to_owned();
        for (label, tally) in &self.tally.labels {
            text += &format!("{label:>5} {:>10} {:>11}\n", tally.images, tally.suspicious);
        }
        let rules: Vec<String> =
            self.tally.rules.iter().map(|(rule, count)| format!("{rule} {count}")).collect();
        text += &format!(
            "{} images, {} suspicious by rule {}; up to {} can be false alarms (bound {:.3} %)\n",
            self.tally.images,
            self.tally.suspicious,
            self.rule,
            self.explained,
            self.bound * 100.0
        );
        text + &format!("each rule alone {}\n", rules.join(", "))
    }
}

/// Exit status for a set with more suspicious images than false alarms explain.
const POISONED: u8 = 3;

/// The confidence in that status.
const CONFIDENCE: f64 = 0.999;
