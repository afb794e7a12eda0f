//! Pods before and after: every case of `tests/golden/k8s` gives what is written beside it.
//!
//! `DOORWARD_UPDATE=1 cargo test --release --test it injection` writes the results anew;
//! `tests/k8s/check.sh` validates them against the schemas of Kubernetes.

use std::path::{Path, PathBuf};

use doorward_injector::{ManifestError, Settings, inject_manifest};
use serde_json::Value;

pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/k8s")
}

/// The cases: files that are no results.
fn cases() -> Vec<PathBuf> {
    let files = std::fs::read_dir(golden()).expect("golden files");
    let mut cases: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    cases.retain(|path| {
        let name = path.to_string_lossy();
        name.ends_with(".yaml") && !name.ends_with(".injected.yaml")
    });
    cases.sort();
    assert!(cases.len() > 10, "the golden files are not where they were");
    cases
}

pub(crate) fn settings() -> Settings {
    doorward::config::injection::load(None).expect("the embedded settings")
}

fn inject(text: &str) -> Result<(String, String), ManifestError> {
    let manifest = inject_manifest(text, &settings().sidecar)?;
    let notes = manifest.notes.iter().map(|note| format!("{note}\n")).collect();
    Ok((manifest.text, notes))
}

pub(crate) fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).expect("YAML")
}

#[test]
fn pods_come_out_as_the_golden_files_say() {
    let mut differing = Vec::new();
    for case in cases() {
        let text = std::fs::read_to_string(&case).expect("readable");
        // A refusal has only notes.
        let (injected, notes) = match inject(&text) {
            Ok((injected, notes)) => (Some(injected), notes),
            Err(error) => (None, format!("{error}\n")),
        };
        for (suffix, got) in [("injected.yaml", injected), ("notes.txt", Some(notes))] {
            let file = case.with_extension(suffix);
            if std::env::var_os("DOORWARD_UPDATE").is_some() {
                match &got {
                    Some(got) => std::fs::write(&file, got).expect("written"),
                    None => drop(std::fs::remove_file(&file)),
                }
            }
            let expected = std::fs::read_to_string(&file).ok();
            if got != expected {
                differing.push(format!("{}: {got:?}", file.display()));
            }
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[test]
fn injecting_twice_changes_nothing() {
    let mut injected = 0;
    for case in cases() {
        let text = std::fs::read_to_string(&case).expect("readable");
        let Ok((once, _)) = inject(&text) else { continue };
        let (twice, _) = inject(&once).expect("what was injected can be read");
        assert_eq!(once, twice, "{}", case.display());
        injected += 1;
    }
    assert!(injected > 5, "{injected}");
}

#[test]
fn everything_else_in_a_manifest_stays() {
    for case in cases() {
        let text = std::fs::read_to_string(&case).expect("readable");
        let Ok((injected, _)) = inject(&text) else { continue };
        let (before, mut after) = (documents(&text), documents(&injected));
        after.retain(|document| document["kind"] != "NetworkPolicy");
        assert_eq!(before.len(), after.len(), "{}", case.display());
        for (before, after) in before.iter().zip(&after) {
            kept(before, after, &mut Vec::new());
        }
    }
}

/// Every value of `before` is in `after`, but for what injection is there to change.
fn kept(before: &Value, after: &Value, path: &mut Vec<String>) {
    const CHANGED: [&str; 6] = ["args", "command", "containerPort", "env", "port", "items"];
    if path.last().is_some_and(|key| CHANGED.contains(&key.as_str())) {
        return;
    }
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (key, value) in before {
                path.push(key.clone());
                let kept_value = after.get(key).unwrap_or_else(|| panic!("{path:?} is gone"));
                kept(value, kept_value, path);
                path.pop();
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            for (index, (before, after)) in before.iter().zip(after).enumerate() {
                path.push(index.to_string());
                kept(before, after, path);
                path.pop();
            }
            assert!(before.len() <= after.len(), "{path:?}");
        }
        _ => assert_eq!(before, after, "{path:?}"),
    }
}

#[test]
fn untouched_documents_keep_their_bytes() {
    let text = "# a comment\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}  # flow\ndata:\n  \
                octal: 0644\n  text: |\n    --- not a marker\n    yes\n";
    let (once, notes) = inject(text).expect("nothing to inject");
    assert_eq!((once.as_str(), notes.as_str()), (text, ""));
    let two = format!("{text}---\n{text}");
    assert_eq!(inject(&two).expect("nothing to inject").0, two);
}

#[test]
fn values_are_read_as_kubernetes_reads_them() {
    let case = std::fs::read_to_string(golden().join("deployment.yaml")).expect("readable");
    let text = case.replace(
        "metadata:\n  name: resnet\n",
        "metadata:\n  name: resnet\n  annotations: {a: \"yes\", b: 'on', c: \"0644\", d: '1e3', e: \"null\"}\n",
    );
    assert_ne!(case, text);
    let (injected, _) = inject(&text).expect("a pod");
    let annotations = &documents(&injected)[0]["metadata"]["annotations"];
    for (key, value) in [("a", "yes"), ("b", "on"), ("c", "0644"), ("d", "1e3"), ("e", "null")] {
        assert_eq!(annotations[key], value, "{injected}");
    }
    // What is quoted there has to be quoted in the result, for parsers that follow YAML 1.1.
    for quoted in ["\"yes\"", "\"on\"", "\"0644\"", "\"1e3\"", "\"null\""] {
        let single = quoted.replace('"', "'");
        assert!(injected.contains(quoted) || injected.contains(&single), "{quoted}: {injected}");
    }
}

#[test]
fn bad_input_is_named() {
    let deployment = std::fs::read_to_string(golden().join("deployment.yaml")).expect("readable");
    // Instead of the mode that it has.
    let deployment = deployment.replace("        doorward.dev/mode: monitor\n", "");
    let deployment =
        deployment.replace("        doorward.dev/max-false-rejection-rate: \"0.005\"\n", "");
    let annotate = |line: &str| {
        deployment.replace(
            "        doorward.dev/inject: \"true\"\n",
            &format!("        doorward.dev/inject: \"true\"\n        {line}\n"),
        )
    };
    for (text, expected) in [
        ("a: [1\n".to_owned(), "document 1, from line 1 on, is not YAML"),
        (format!("{deployment}---\na: b: c\n"), "document 3, from line 55 on, is not YAML: error: line 55 column 5"),
        (annotate("doorward.dev/mod: x"), "doorward.dev/mod is \"x\", expected a known annotation"),
        (annotate("doorward.dev/mode: on"), "doorward.dev/mode is \"true\", expected a string in quotes"),
        (annotate("doorward.dev/mode: off-duty"), "expected enforce or monitor"),
        (annotate("doorward.dev/app-port: \"0\""), "expected a port, 1 to 65535"),
        (annotate("doorward.dev/server: torch"), "one of kserve, mlserver, tensorflow-serving, triton, other"),
        (annotate("doorward.dev/max-false-rejection-rate: \"2\""), "policy.max_false_rejection_rate"),
        (annotate("config.doorward.dev/policy.rul: uap"), "DOORWARD_POLICY__RUL"),
        (annotate("config.doorward.dev/listen.http: \"0.0.0.0:1\""), "injection decides this key"),
        (annotate("doorward.dev/training-images: ../x"), "expected /PATH, pvc://CLAIM/PATH or secret"),
        (annotate("doorward.dev/training-images: /models/../x"), "a path without"),
        (annotate("doorward.dev/training-images: pvc://A/x"), "expected pvc://CLAIM/PATH"),
        (annotate("doorward.dev/container: nope"), "there is no container nope; there are mlserver"),
        ("kind: Deployment\napiVersion: apps/v1\n".to_owned(), "spec.template is missing"),
        ("kind: Pod\napiVersion: v1\nmetadata: {labels: {doorward.dev/inject: \"true\"}}\nspec: 1\n".to_owned(), "spec is a number"),
        ("kind: Pod\napiVersion: v1\nmetadata: {labels: {doorward.dev/inject: \"yes\"}}\n".to_owned(), "expected \"true\" or \"false\""),
    ] {
        let error = inject(&text).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}\nexpected: {expected}");
    }
}

#[test]
fn no_shape_of_a_pod_is_too_odd() {
    let odd = ["null", "1", "true", "\"x\"", "[]", "{}", "[1]"];
    let odd = odd.map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
    let mut outcomes = [0, 0];
    for name in ["deployment", "unknown-server", "triton-pod", "kserve-custom-predictor", "job"] {
        let text =
            std::fs::read_to_string(golden().join(format!("{name}.yaml"))).expect("readable");
        let document = documents(&text).swap_remove(0);
        let mut places = Vec::new();
        pointers(&document, String::new(), &mut places);
        for place in places {
            for value in &odd {
                let mut document = document.clone();
                *document.pointer_mut(&place).expect("a place") = value.clone();
                // It must not panic; what it did, it must not do twice.
                let once = inject(&document.to_string());
                outcomes[usize::from(once.is_ok())] += 1;
                if let Ok((once, _)) = once {
                    assert_eq!(inject(&once).expect("readable").0, once, "{place}: {value}");
                }
            }
        }
    }
    assert!(outcomes[0] > 100 && outcomes[1] > 100, "{outcomes:?}");
}

/// JSON pointers of everything below a value.
fn pointers(value: &Value, path: String, found: &mut Vec<String>) {
    let escape = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                pointers(value, format!("{path}/{}", escape(key)), found);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                pointers(value, format!("{path}/{index}"), found);
            }
        }
        _ => {}
    }
    found.push(path);
}
