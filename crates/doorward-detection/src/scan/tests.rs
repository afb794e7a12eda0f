use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::signal::Signal;

fn header(model: &str) -> Header {
    Header {
        doorward: "1".into(),
        model_digest: model.into(),
        artifact_digest: "a".into(),
        sources: vec!["one.bin".into(), "two".into()],
        sources_digest: "s".into(),
        shard: Shard::WHOLE.to_string(),
        rule: "calibrated".into(),
        max_false_rejection_rate: 0.01,
        infected_budget: 10.0,
    }
}

fn finding(source: &str, index: usize, suspicious: bool) -> Finding {
    let mut scores = Scores::default();
    scores[Signal::Universal] = Some(-1.5);
    scores[Signal::ClassConditional] = Some(0.1);
    Finding {
        source: source.into(),
        index,
        file: source.into(),
        number: Some(index),
        label: Some(3),
        predicted: index % 2,
        scores,
        excess: Some(0.25),
        rules: [("calibrated".to_owned(), suspicious), ("uap".to_owned(), true)].into(),
        suspicious,
    }
}

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scan.jsonl");
    (folder, path)
}

fn message(result: Result<Output, Error>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn shards_share_out_every_image_once() {
    let mut seen = vec![0; 20];
    for index in 0..3 {
        let shard: Shard = format!("{index}/3").parse().unwrap();
        let mut next = 0;
        while shard.first_from(next) < seen.len() {
            next = shard.first_from(next) + 1;
            seen[next - 1] += 1;
        }
    }
    assert_eq!(seen, [1; 20]);
    for wrong in ["3/3", "1", "/2", "1/", "-1/2", "0/0", "a/b"] {
        assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
    }
}

#[test]
fn an_interrupted_output_goes_on_behind_its_last_whole_line() {
    let (_folder, path) = folder();
    let mut output = Output::open(&path, &header("m")).unwrap();
    assert_eq!(output.next(), Position::default());
    output.add(&[finding("one.bin", 0, true), finding("two", 4, false)]).unwrap();
    drop(output);
    let whole = fs::read(&path).unwrap();
    let mut torn = whole.clone();
    torn.extend_from_slice(b"{\"source\":\"two\",\"ind");
    fs::write(&path, &torn).unwrap();
    let mut output = Output::open(&path, &header("m")).unwrap();
    assert_eq!(output.next(), Position { source: 1, index: 5 });
    assert_eq!((output.tally().images, output.tally().suspicious), (2, 1));
    assert_eq!(output.tally().rules["uap"], 2);
    output.add(&[finding("two", 5, false)]).unwrap();
    drop(output);
    let lines = fs::read_to_string(&path).unwrap();
    assert!(lines.as_bytes().starts_with(&whole) && lines.lines().count() == 4, "{lines}");
}

#[test]
fn half_a_first_line_is_begun_again() {
    let (_folder, path) = folder();
    fs::write(&path, b"{\"doorw").unwrap();
    drop(Output::open(&path, &header("m")).unwrap());
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(serde_json::from_str::<Header>(text.trim()).unwrap(), header("m"));
}

#[test]
fn other_files_and_other_scans_are_left_alone() {
    let (_folder, path) = folder();
    for text in ["my notes", "my notes\n", "{}\n"] {
        fs::write(&path, text).unwrap();
        assert!(message(Output::open(&path, &header("m"))).contains("not the output of a scan"));
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
    fs::remove_file(&path).unwrap();
    let output = Output::open(&path, &header("m")).unwrap();
    assert!(message(Output::open(&path, &header("m"))).contains("another scan is writing"));
    drop(output);
    let error = message(Output::open(&path, &header("n")));
    assert!(error.contains("was begun with model_digest \"m\", expected \"n\""), "{error}");
    let mut text = fs::read_to_string(&path).unwrap();
    text.push_str("{\"source\":1}\n");
    fs::write(&path, text).unwrap();
    assert!(message(Output::open(&path, &header("m"))).starts_with("line 2 of "));
}

#[test]
fn the_cleaned_list_names_what_is_not_suspicious() {
    let (folder, path) = folder();
    let mut output = Output::open(&path, &header("m")).unwrap();
    let beside = folder.path().join("sub/a#1.png").display().to_string();
    let picture = Finding { file: beside, number: None, ..finding("two", 7, false) };
    let elsewhere = Finding { file: "/x/b.bin".into(), label: None, ..finding("two", 8, false) };
    output.add(&[finding("two", 0, true), picture, elsewhere]).unwrap();
    let list = write_clean_list(&path).unwrap();
    assert_eq!(list, clean_list_path(&path));
    assert_eq!(fs::read_to_string(&list).unwrap(), "sub/a#1.png#0\t3\n/x/b.bin#8\n");
    let named = Finding { file: "a\tb.png".into(), ..finding("two", 9, false) };
    output.add(&[named]).unwrap();
    let error = write_clean_list(&path).unwrap_err();
    assert!(matches!(error, Error::Name { .. }), "{error}");
    assert!(Path::new(&list).exists());
}
