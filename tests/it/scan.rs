//! What `doorward scan` writes, how it goes on, and that its list is a source.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use doorward_images::Images;
use serde_json::Value;
use tempfile::TempDir;

use super::support::models_cannot_be_loaded;
use super::support::onnx::Graph;

/// A folder with a small model, images and settings.
struct Workplace {
    folder: TempDir,
}

impl Workplace {
    fn new() -> Self {
        let workplace = Self { folder: tempfile::tempdir().expect("a folder") };
        // Flattens four pixels into the logits of four labels.
        let model = Graph::new(&[1, 2, 2]).node("Flatten", &["x"], "y", vec![]).encode();
        workplace.write("model.onnx", &model);
        workplace.write("clean.bin", &records(300, 0));
        workplace.write("training.bin", &records(200, 7));
        let path = |name: &str| workplace.path(name).display().to_string();
        let settings = format!(
            "upstream.url = 'http://127.0.0.1:1'\n\
             model.path = '{}'\n\
             calibration.clean_images = '{}'\n\
             calibration.artifact = '{}'\n\
             calibration.fit_images = 100\n\
             calibration.holdout_images = 200\n\
             calibration.seed = 5\n\
             perturbation.steps = 3\n\
             policy.max_false_rejection_rate = 0.1\n",
            path("model.onnx"),
            path("clean.bin"),
            path("artifact"),
        );
        workplace.write("doorward.toml", settings.as_bytes());
        workplace
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).expect("written");
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("readable")
    }

    fn scan(&self, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_doorward"))
            .current_dir(self.folder.path())
            .args(["scan", "-c", "doorward.toml", "--images", "training.bin"])
            .args(more)
            .output()
            .expect("the program")
    }

    fn summary(&self, more: &[&str]) -> Value {
        let output = self.scan(&[more, &["--json"]].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 3)), "{errors}");
        serde_json::from_slice(&output.stdout).expect("one JSON object")
    }
}

/// Records of four pixels, one of them clearly the brightest; seeded by `salt`.
fn records(count: usize, salt: usize) -> Vec<u8> {
    let record = |index: usize| {
        let label = (index * 7 + salt) % 4;
        let noise = |pixel: usize| ((index * 31 + pixel * 17 + salt) % 90) as u8;
        let mut record = vec![label as u8];
        record.extend((0..4).map(|pixel| noise(pixel) + if pixel == label { 110 } else { 0 }));
        record
    };
    (0..count).flat_map(record).collect()
}

#[test]
fn a_scan_in_parts_or_interrupted_gives_the_lines_of_a_whole_one() {
    if models_cannot_be_loaded() {
        return;
    }
    let workplace = Workplace::new();
    let summary = workplace.summary(&["-o", "whole.jsonl"]);
    assert_eq!(summary["images"], 200);
    let whole = workplace.read("whole.jsonl");
    let lines: Vec<&str> = whole.lines().collect();
    assert_eq!(lines.len(), 201);
    for (index, line) in lines[1..].iter().enumerate() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!((&line["index"], &line["number"]), (&index.into(), &index.into()));
        assert_eq!(line["label"], (index * 7 + 7) % 4);
        assert_eq!(line["suspicious"], line["rules"]["calibrated"]);
        assert_eq!(line["rules"]["uap"], line["s_u"].as_f64().expect("a number") > 0.0);
        assert_eq!(line["rules"]["patch"], false);
    }

    let mut parts: Vec<(u64, String)> = Vec::new();
    for shard in ["0/3", "1/3", "2/3"] {
        let output = workplace.scan(&["--shard", shard]);
        assert!(matches!(output.status.code(), Some(0 | 3)));
        for line in String::from_utf8(output.stdout).expect("text").lines() {
            let index = serde_json::from_str::<Value>(line).expect("JSON")["index"].as_u64();
            parts.push((index.expect("an index"), line.to_owned()));
        }
    }
    parts.sort();
    assert!(parts.iter().map(|(_, line)| line.as_str()).eq(lines[1..].iter().copied()));

    // As if the run had ended in the middle of a line.
    workplace.write("whole.jsonl", &whole.as_bytes()[..whole.len() / 2]);
    assert_eq!(workplace.summary(&["-o", "whole.jsonl"]), summary);
    assert_eq!(workplace.read("whole.jsonl"), whole);
}

#[test]
fn the_cleaned_list_is_a_source_of_what_is_not_suspicious() {
    if models_cannot_be_loaded() {
        return;
    }
    let workplace = Workplace::new();
    // Far brighter than any clean image: its margin survives, as a trigger's does.
    let mut training = records(200, 7);
    for record in training.chunks_exact_mut(5).step_by(4) {
        record.copy_from_slice(&[2, 255, 0, 0, 0]);
    }
    workplace.write("training.bin", &training);
    let output = workplace.scan(&["-o", "scan.jsonl"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("scan.jsonl.clean.txt"), "{text}");
    let shape = [1, 2, 2];
    let kept = Images::read(workplace.path("scan.jsonl.clean.txt"), shape).expect("a source");
    let all = Images::read(workplace.path("training.bin"), shape).expect("a source");
    let lines = workplace.read("scan.jsonl");
    let indices: Vec<usize> = lines
        .lines()
        .skip(1)
        .enumerate()
        .filter(|(_, line)| line.contains("\"suspicious\":false"))
        .map(|(index, _)| index)
        .collect();
    assert_eq!(kept, all.subset(&indices));
    assert!(indices.iter().all(|index| index % 4 != 0), "{indices:?}");
    assert!(indices.len() > 100, "{}", indices.len());
}

#[test]
fn what_does_not_fit_an_earlier_run_is_refused() {
    if models_cannot_be_loaded() {
        return;
    }
    let workplace = Workplace::new();
    workplace.summary(&["-o", "scan.jsonl"]);
    let fails = |more: &[&str], expected: &str| {
        let output = workplace.scan(more);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains(expected), "{errors}");
    };
    fails(&["-o", "scan.jsonl", "--shard", "0/2"], "was begun with shard \"0/1\"");
    fails(&["-o", "doorward.toml"], "is not the output of a scan");
    fails(&["--images", "training.bin"], "--images names training.bin twice");
    fails(&["--images", "none.bin", "-o", "new.jsonl"], "none.bin is not there");
    workplace.write("training.bin", &records(200, 8));
    fails(&["-o", "scan.jsonl"], "was begun with sources_digest");
    let output = workplace.scan(&["--shard", "2/2"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("expected I/N with I from 0 to N - 1"), "{errors}");
    assert!(!Path::new(&workplace.path("new.jsonl")).exists());
}
