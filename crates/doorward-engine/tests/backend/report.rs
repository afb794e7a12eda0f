//! All of ONNX's backend tests that `make.py` wrote, counted by operator.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use doorward_engine::{Error as Refusal, Program};
use serde_json::{Value, json};

use super::runner::{Case, Outcome};

#[derive(Default)]
struct Counts {
    passed: usize,
    /// Number of the passed with a gradient checked.
    gradients: usize,
    /// Number of the passed on constants alone.
    folded: usize,
    failed: usize,
    unsupported: usize,
}

/// Runs `folder/CATEGORY/CASE`; whether none fails. What is not supported counts as no failure.
pub(crate) fn run(folder: &Path, only: &[String], json: bool) -> Result<bool, Box<dyn Error>> {
    // A panic is reported as a failure of its case.
    std::panic::set_hook(Box::new(|_| ()));
    let mut counts: BTreeMap<(String, String), Counts> = BTreeMap::new();
    let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut lines: Vec<Value> = Vec::new();
    for category in folders(folder)? {
        for path in folders(&category)? {
            let (category, name) = (text(&category), text(&path));
            if !only.is_empty() && !only.iter().any(|part| name.contains(part)) {
                continue;
            }
            let (op, outcome) = match Case::load(&path)? {
                Ok(case) => (case.op.clone(), case.run(&on_cpu)),
                Err(reason) => ("other element types".into(), Outcome::Unsupported(reason)),
            };
            let count = counts.entry((category.clone(), op.clone())).or_default();
            let (state, why) = match outcome {
                Outcome::Failed(why) => {
                    count.failed += 1;
                    if !json {
                        println!("FAIL {category}/{name} ({op}): {why}");
                    }
                    ("failed", Some(why))
                }
                Outcome::Passed(passed) => {
                    count.passed += 1;
                    count.gradients += usize::from(passed.gradient);
                    count.folded += usize::from(!passed.rows);
                    (if passed.rows { "passed" } else { "passed on constants" }, None)
                }
                Outcome::Unsupported(why) => {
                    count.unsupported += 1;
                    reasons.entry(why.clone()).or_default().push(name.clone());
                    ("unsupported", Some(why))
                }
            };
            lines.push(json!({
                "category": category, "name": name, "op": op, "state": state, "reason": why,
            }));
        }
    }
    let total = |of: fn(&Counts) -> usize| counts.values().map(of).sum::<usize>();
    let (passed, failed) = (total(|c| c.passed), total(|c| c.failed));
    let (gradients, folded) = (total(|c| c.gradients), total(|c| c.folded));
    let unsupported = total(|c| c.unsupported);
    if json {
        let summary = json!({
            "passed": passed, "gradients": gradients, "on_constants": folded, "failed": failed,
            "unsupported": unsupported, "results": lines,
        });
        println!("{summary}");
    } else {
        println!("\n{:18} {:22} passed (gradient, constants)  failed  unsupported", "", "");
        for ((category, op), c) in &counts {
            println!(
                "{category:18} {op:22} {:6} ({:8}, {:9})  {:6}  {:11}",
                c.passed, c.gradients, c.folded, c.failed, c.unsupported
            );
        }
        println!("\nnot supported:");
        let mut reasons: Vec<_> = reasons.into_iter().collect();
        reasons.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
        for (reason, names) in reasons {
            println!("{:4} {reason}   {}", names.len(), names[0]);
        }
        println!(
            "\n{passed} passed, {gradients} of them with a gradient and {folded} on constants \
             alone; {failed} failed, {unsupported} not supported"
        );
    }
    Ok(passed > 0 && failed == 0)
}

fn on_cpu(model: &[u8], constants: &HashMap<String, Tensor>) -> Result<Program, Refusal> {
    Program::compile_rows(model, constants, &Device::Cpu)
}

fn folders(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
    let mut folders: Vec<PathBuf> =
        entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    Ok(folders)
}

fn text(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
