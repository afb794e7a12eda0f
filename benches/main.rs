//! Timings of Doorward's own parts, one JSON line a run.
//!
//! The scripts beside this file run it against a named peer and print the ratio:
//!
//! ```text
//! cargo bench --bench main -- engine MODEL.onnx --batch 32 --iterations 20 --threads 1
//! cargo bench --bench main -- engine MODEL.onnx --batch 50 --iterations 20 --gradient
//! cargo bench --bench main -- taps MODEL.onnx --batch 1
//! cargo bench --bench main -- universal MODEL.onnx IMAGES --fooling-rate 0.8
//! cargo bench --bench main -- patches MODEL.onnx IMAGES --steps 60
//! ```
//!
//! And two checks of the engine that are too large for `cargo test`, with exit status 1 if one fails:
//!
//! ```text
//! cargo bench --bench main -- agree DIR      # models of crates/doorward-engine/tests/exports/make.py
//! cargo bench --bench main -- backend DIR    # ONNX's own tests, from crates/doorward-engine/tests/backend/make.py
//! ```

#[path = "../crates/doorward-engine/tests/exports/agree.rs"]
mod agree;
mod learn;
#[path = "../crates/doorward-engine/tests/backend/report.rs"]
mod report;
#[path = "../crates/doorward-engine/tests/backend/runner.rs"]
mod runner;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use candle_core::{Device, Tensor};
use clap::{Parser, Subcommand};
use doorward_engine::{Classifier, Model};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    area: Area,
    /// What cargo adds.
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Area {
    /// Exported models against the logits and gradients of the framework they come from.
    Agree {
        folder: PathBuf,
        /// Only names that hold one of these.
        #[arg(long, num_args = 1..)]
        only: Vec<String>,
        #[arg(long)]
        json: bool,
    },
    /// ONNX's backend tests: values and gradients of single operators and small graphs.
    Backend {
        folder: PathBuf,
        /// Only cases whose names hold one of these.
        #[arg(long, num_args = 1..)]
        only: Vec<String>,
        #[arg(long)]
        json: bool,
    },
    /// One model's forward pass, or forward and gradient to the input.
    Engine {
        model: PathBuf,
        #[arg(long, default_value_t = 1)]
        batch: usize,
        #[arg(long, default_value_t = 20)]
        iterations: usize,
        #[arg(long)]
        gradient: bool,
        #[arg(long, default_value_t = 1)]
        threads: usize,
    },
    /// A forward pass with and without the statistics of activations, in turns.
    Taps {
        model: PathBuf,
        #[arg(long, default_value_t = 1)]
        batch: usize,
        #[arg(long, default_value_t = 50)]
        iterations: usize,
    },
    /// The patches of all labels, from the first images of each.
    Patches {
        model: PathBuf,
        #[arg(required = true)]
        images: Vec<PathBuf>,
        #[arg(long, default_value_t = 1000)]
        count: usize,
        #[arg(long, default_value_t = 60)]
        steps: usize,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long, default_value_t = 1)]
        threads: usize,
    },
    /// The universal perturbation of the first images.
    Universal {
        model: PathBuf,
        #[arg(required = true)]
        images: Vec<PathBuf>,
        #[arg(long, default_value_t = 300)]
        count: usize,
        #[arg(long, default_value_t = 0.8)]
        fooling_rate: f64,
        /// By DeepFool instead of sign steps.
        #[arg(long)]
        deepfool: bool,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long, default_value_t = 1)]
        threads: usize,
    },
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let passed = match Arguments::parse().area {
        Area::Agree { folder, only, json } => agree::run(&folder, &only, json)?,
        Area::Backend { folder, only, json } => report::run(&folder, &only, json)?,
        Area::Engine { model, batch, iterations, gradient, threads } => {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
            time(&model, batch, iterations, gradient)?;
            true
        }
        Area::Taps { model, batch, iterations } => {
            rayon::ThreadPoolBuilder::new().num_threads(1).build_global()?;
            taps(&model, batch, iterations)?;
            true
        }
        Area::Patches { model, images, count, steps, seed, threads } => {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
            println!("{}", learn::time_patches(&model, &images, count, steps, seed)?);
            true
        }
        Area::Universal { model, images, count, fooling_rate, deepfool, seed, threads } => {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
            let figures =
                learn::time_universal(&model, &images, count, fooling_rate, deepfool, seed)?;
            println!("{figures}");
            true
        }
    };
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Median seconds of either pass, and their ratio.
fn taps(model: &Path, batch: usize, iterations: usize) -> Result<(), Box<dyn Error>> {
    let device = Device::Cpu;
    let model = Model::load(model, &[0.0], &[1.0], &device)?;
    let [channels, height, width] = model.domain().shape;
    let values: Vec<f32> =
        (0..batch * model.domain().len()).map(|i| (i % 251) as f32 / 250.0).collect();
    let batch = Tensor::from_vec(values, (batch, channels, height, width), &device)?;
    let (mut forward, mut trace) = (Vec::new(), Vec::new());
    for iteration in 0..iterations + 2 {
        let start = Instant::now();
        model.logits(&batch)?;
        let between = Instant::now();
        model.trace(&batch)?;
        // The first two pack weights and fill the allocator.
        if iteration >= 2 {
            forward.push((between - start).as_secs_f64());
            trace.push(between.elapsed().as_secs_f64());
        }
    }
    let (forward, trace) = (median(&mut forward), median(&mut trace));
    println!(
        "{}",
        serde_json::json!({
            "activations": model.taps().len(),
            "statistics": model.taps().iter().sum::<usize>(),
            "forward_ms": forward * 1e3,
            "trace_ms": trace * 1e3,
            "ratio": trace / forward,
        })
    );
    Ok(())
}

fn time(
    model: &Path,
    batch: usize,
    iterations: usize,
    gradient: bool,
) -> Result<(), Box<dyn Error>> {
    let device = Device::Cpu;
    let model = Model::load(model, &[0.0], &[1.0], &device)?;
    let [channels, height, width] = model.domain().shape;
    let values: Vec<f32> =
        (0..batch * model.domain().len()).map(|i| (i % 251) as f32 / 250.0).collect();
    let batch = Tensor::from_vec(values, (batch, channels, height, width), &device)?;
    let loaded = resident("VmRSS")?;
    let mut wall = Vec::new();
    let mut cpu = 0.0;
    // The first two runs pack weights and fill the allocator.
    for iteration in 0..iterations + 2 {
        if iteration == 2 {
            cpu = cpu_seconds()?;
        }
        let start = Instant::now();
        if gradient {
            model.logits_and_gradient(&batch, &|_, logits| logits.ones_like())?;
        } else {
            model.logits(&batch)?;
        }
        if iteration >= 2 {
            wall.push(start.elapsed().as_secs_f64());
        }
    }
    // The mean: one iteration can be shorter than the kernel's accounting.
    let cpu = (cpu_seconds()? - cpu) / iterations as f64;
    println!(
        "{}",
        serde_json::json!({
            "wall_ms": median(&mut wall) * 1e3,
            "cpu_ms": cpu * 1e3,
            "loaded_mib": loaded,
            "peak_mib": resident("VmHWM")?,
        })
    );
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Resident memory of this process in MiB: `VmRSS` now, `VmHWM` at most so far.
fn resident(field: &str) -> Result<f64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()).ok_or("no such field")?;
    Ok(kibibytes.parse::<f64>()? / 1024.0)
}

/// CPU time of this process so far; Linux counts it in nanoseconds per thread.
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let mut nanoseconds = 0u64;
    for task in std::fs::read_dir("/proc/self/task")? {
        let stat = std::fs::read_to_string(task?.path().join("schedstat"))?;
        nanoseconds += stat.split_whitespace().next().unwrap_or("0").parse::<u64>()?;
    }
    Ok(nanoseconds as f64 / 1e9)
}
