//! The command line: the only place that knows every module.

mod health;
mod inspect;
mod kubernetes;
mod offline;
mod online;
mod progress;
mod report;
mod scan;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use report::ReportRequest;

use crate::config::{Config, Rule, Settings};
use doorward_detection::scan::Shard;
use doorward_proxy::telemetry;

/// Turns away inputs that carry a backdoor trigger.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Learn perturbations and thresholds, and write the artifact.
    #[command(after_help = "Example:\n  doorward calibrate -c doorward.toml")]
    Calibrate {
        #[command(flatten)]
        config: ModelFile,
        /// Replace a valid artifact with a fresh one, drawn from a fresh seed.
        #[arg(long)]
        rotate: bool,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Check or print the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Protect an embedded, backdoored model and attack it, all in this process.
    #[command(after_help = "Example:\n  doorward demo --serve")]
    Demo {
        /// Keep running afterwards, for curl.
        #[arg(long)]
        serve: bool,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Measure the rules on clean and triggered images.
    #[command(
        after_help = "Example:\n  doorward evaluate -c doorward.toml --clean test.bin.gz --triggered triggered.bin.gz"
    )]
    Evaluate {
        #[command(flatten)]
        config: ModelFile,
        /// Clean images that calibration did not see.
        #[arg(long, value_name = "SRC", required = true)]
        clean: Vec<PathBuf>,
        /// Images that carry the trigger, labelled with what they show.
        #[arg(long, value_name = "SRC", required = true)]
        triggered: Vec<PathBuf>,
        /// The attack's label; default: the one most triggered images are answered with.
        #[arg(long, value_name = "LABEL")]
        target: Vec<usize>,
        /// Rule to measure, as policy.rule names it; default: those of at most four predictions an input.
        #[arg(long, value_name = "RULE")]
        rule: Vec<Rule>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Does the sidecar on this machine live? Exit status 0: yes. For a container's health check.
    #[command(after_help = "Example:\n  doorward health -c doorward.toml")]
    Health {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Put the sidecar into the pods of a Kubernetes manifest that ask for it by annotation.
    ///
    /// The manifest goes to standard output, notes go to standard error. A pod that asks for the sidecar
    /// and cannot have it is an error, and nothing is printed.
    #[command(after_help = "Example:\n  doorward inject -f deployment.yaml | kubectl apply -f -")]
    Inject {
        /// The manifest, YAML or JSON, with any number of documents; - for standard input.
        #[arg(short = 'f', long = "filename", value_name = "MANIFEST")]
        manifest: PathBuf,
        /// Settings for all pods, as config/injection.toml has them.
        #[arg(short = 'c', long = "config", value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Is the model backdoored, and which labels? Exit status 0: clean, 3: infected.
    #[command(
        after_help = "Examples:\n  doorward inspect -c doorward.toml --json\n  doorward inspect -c doorward.toml --report report/"
    )]
    Inspect {
        #[command(flatten)]
        config: ModelFile,
        /// Write DIR/report.html, one page with figures and pictures. It shows training images and,
        /// where there is an artifact, its perturbation: keep it as secret.
        #[arg(long, value_name = "DIR")]
        report: Option<PathBuf>,
        /// Images that carry the trigger, for the report's distribution of scores.
        #[arg(long, value_name = "SRC", requires = "report")]
        triggered: Vec<PathBuf>,
        /// Run Neural Cleanse as well, the baseline; it does not change the verdict.
        #[arg(long)]
        neural_cleanse: bool,
        /// Compare how the model represents confident and other images as well, a baseline; it does not
        /// change the verdict. For models that end in a fully connected layer.
        #[arg(long)]
        data_inspection: bool,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Find the images of a training set that look poisoned, and list the others. Exit status 0: no
    /// more than a clean set has, 3: more.
    ///
    /// Every image is one JSON line: its source and index, labels, signals, and the verdicts of the
    /// calibrated and of both published rules. With -o, the images that are not suspicious are listed
    /// in FILE.clean.txt, which is a source itself; a run that was interrupted goes on where it was.
    #[command(
        after_help = "Example:\n  doorward scan -c doorward.toml --images training/ -o scan.jsonl"
    )]
    Scan {
        #[command(flatten)]
        config: ModelFile,
        /// Training images; may be repeated.
        #[arg(long, value_name = "SRC", required = true)]
        images: Vec<PathBuf>,
        /// Scan every N-th image of each source, from index I on: one part of N.
        #[arg(long, value_name = "I/N", default_value_t = Shard::WHOLE)]
        shard: Shard,
        /// Where the lines go; default: standard output, without a list.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Print the totals as one JSON object.
        #[arg(long, requires = "output")]
        json: bool,
    },
    /// Run the sidecar: a reverse proxy that turns away triggered inputs.
    ///
    /// Policy and limits are read again on SIGHUP and when the file changes; a file with an error
    /// changes nothing.
    #[command(after_help = "Example:\n  doorward serve -c doorward.toml")]
    Serve {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Put the sidecar into pods as a Kubernetes cluster creates them: an admission webhook.
    #[command(after_help = "Example:\n  doorward webhook -c injection.toml")]
    Webhook {
        /// Settings for all pods and of the webhook, as config/injection.toml has them.
        #[arg(short = 'c', long = "config", value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Validate a file, load the model and print its input, output and operators.
    #[command(after_help = "Example:\n  doorward config check doorward.toml")]
    Check { file: PathBuf },
    /// Print the configuration in effect: defaults, the file, the environment.
    #[command(
        after_help = "Example:\n  DOORWARD_POLICY__MODE=monitor doorward config show doorward.toml"
    )]
    Show { file: Option<PathBuf> },
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration file; without it, the environment has to say all that has no default.
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ModelFile {
    #[command(flatten)]
    config: ConfigFile,
    /// Which of the file's [[models]], by name.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
}

/// Runs the program's arguments.
pub fn run() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Calibrate { config, rotate, json } => {
            for config in &config.load_all()? {
                offline::calibrate(config, rotate, json)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(ConfigCommand::Check { file }) => {
            for config in &load(Some(&file))? {
                offline::check(config)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(ConfigCommand::Show { file }) => {
            print!("{}", Settings::load(file.as_deref(), environment())?.to_toml());
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo { serve, json } => online::demo(serve, json),
        Command::Evaluate { config, clean, triggered, target, rule, json } => {
            let rules = if rule.is_empty() { Rule::without_baselines().collect() } else { rule };
            let sources = offline::EvaluationSources { clean, triggered, target, rules };
            offline::evaluate(&config.load()?, &sources, json)
        }
        Command::Health { config } => {
            // The admin listener is one for all models.
            let configs = load(config.file.as_deref())?;
            health::health(configs.first().context("there is no model")?)
        }
        Command::Inject { manifest, config } => kubernetes::inject(&manifest, config.as_deref()),
        Command::Inspect { config, report, triggered, neural_cleanse, data_inspection, json } => {
            let report = report.map(|folder| ReportRequest { folder, triggered });
            let baselines = inspect::Baselines { data_inspection, neural_cleanse };
            inspect::inspect(&config.load()?, report.as_ref(), &baselines, json)
        }
        Command::Scan { config, images, shard, output, json } => {
            scan::scan(&config.load()?, &images, shard, output.as_deref(), json)
        }
        Command::Serve { config: ConfigFile { file } } => {
            let read = {
                let file = file.clone();
                move || Settings::load(file.as_deref(), environment())
            };
            online::serve(file.as_deref(), read)
        }
        Command::Webhook { config } => kubernetes::webhook(config.as_deref()),
    }
}

impl ModelFile {
    /// Of the one model.
    fn load(&self) -> Result<Config> {
        let mut configs = self.load_all()?;
        match configs.pop() {
            Some(config) if configs.is_empty() => Ok(config),
            _ => bail!("the settings have several [[models]]: say which one with --model NAME"),
        }
    }

    /// Of the model that was asked for, or of all.
    fn load_all(&self) -> Result<Vec<Config>> {
        let mut configs = load(self.config.file.as_deref())?;
        if let Some(name) = &self.model {
            let known: Vec<String> =
                configs.iter().filter_map(|it| it.server.model.name.clone()).collect();
            configs.retain(|config| config.server.model.name.as_ref() == Some(name));
            if configs.is_empty() {
                bail!("--model {name}: the settings have no such model, only {known:?}");
            }
        }
        Ok(configs)
    }
}

fn load(file: Option<&std::path::Path>) -> Result<Vec<Config>> {
    let configs = Settings::load(file, environment())?.configs()?;
    if let Some(config) = configs.first() {
        telemetry::init(&config.server.telemetry)?;
    }
    Ok(configs)
}

/// Variables that are not UTF-8 cannot be settings.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
}
