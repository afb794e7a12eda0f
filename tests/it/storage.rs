//! Where artifacts are kept, and who takes one that was put in its place.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use doorward::config::{Config, Location};
use doorward::storage::Store;
use tempfile::TempDir;

use super::support::models_cannot_be_loaded;
use super::support::object_storage::ObjectStorage;

fn location(text: &str) -> Location {
    let settings = format!(
        "upstream.url = 'http://a'\nmodel.path = 'm'\ncalibration.clean_images = 'c'\n\
         calibration.artifact = '{text}'"
    );
    let none = std::iter::empty::<(&str, &str)>();
    Config::parse("test", &settings, none).expect("valid").artifact.location
}

fn object(storage: &ObjectStorage) -> Store {
    Store::open(&location("s3://bucket/models/a.safetensors"), storage.environment()).expect("open")
}

/// The error with its causes.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

#[test]
fn an_object_is_written_in_parts_by_who_the_environment_says() {
    let storage = ObjectStorage::start();
    let store = object(&storage);
    assert_eq!(store.read().expect("an answer"), None);

    store.check_writable().expect("writable");
    assert!(storage.shared().objects.is_empty() && storage.shared().uploads.is_empty());

    let first: Vec<u8> = (0..20_000_000_u32).map(|index| (index % 251) as u8).collect();
    for bytes in [&first[..], b"another"] {
        store.write(bytes).expect("written");
        assert!(storage.shared().objects["/bucket/models/a.safetensors"] == bytes);
        assert!(store.read().expect("read").as_deref() == Some(bytes));
    }
    assert!(storage.shared().uploads.is_empty());
    let ours = "AWS4-HMAC-SHA256 Credential=reader/";
    let shared = storage.shared();
    assert!(shared.authorizations.iter().all(|by| by.starts_with(ours) && by.contains("/s3/")));
    assert!(shared.authorizations.iter().all(|by| by.contains("/eu-central-1/")));
}

#[test]
fn what_fails_is_tried_again() {
    let storage = ObjectStorage::start();
    let store = object(&storage);
    storage.shared().failures = 2;
    store.write(b"bytes").expect("written");
    storage.shared().failures = 2;
    assert_eq!(store.read().expect("read").as_deref(), Some(&b"bytes"[..]));
}

#[test]
fn nothing_goes_unencrypted_unasked() {
    let storage = ObjectStorage::start();
    let mut environment = storage.environment();
    environment.retain(|(name, _)| name != "AWS_ALLOW_HTTP");
    let store = Store::open(&location("s3://bucket/key"), environment).expect("open");
    for error in [store.read().err(), store.check_writable().err(), store.write(b"x").err()] {
        let error = causes(&error.expect("refused"));
        assert!(error.contains("artifact s3://bucket/key: "), "{error}");
        assert!(error.contains("the endpoint is http://, expected https://"), "{error}");
    }
    assert!(storage.shared().authorizations.is_empty());
}

#[test]
fn an_authority_that_cannot_be_read_is_named() {
    let bundle = ("AWS_CA_BUNDLE".to_owned(), "/nowhere/ca.crt".to_owned());
    let error = Store::open(&location("s3://bucket/key"), [bundle]).expect_err("no authority");
    let error = causes(&error);
    assert!(error.contains("s3://bucket/key") && error.contains("/nowhere/ca.crt"), "{error}");
}

#[test]
fn a_folder_is_no_artifact() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("file://{}", folder.path().display());
    let store = Store::open(&location(&url), []).expect("open");
    for error in [store.read().err(), store.check_writable().err(), store.write(b"x").err()] {
        let error = causes(&error.expect("refused"));
        let path = folder.path().display().to_string();
        assert!(error.contains(&format!("artifact {path}: ")), "{error}");
    }
}

// === sidecars ===

/// Two sidecars' settings, and the one artifact that they share.
struct Shared {
    folder: TempDir,
    artifact: String,
    environment: Vec<(String, String)>,
}

impl Shared {
    fn new(artifact: &str, environment: Vec<(String, String)>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let artifact = artifact.replace("FOLDER", &folder.path().display().to_string());
        Self { folder, artifact, environment }
    }

    fn command(&self, arguments: &[&str], more: &str) -> Command {
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/fashion-mnist");
        let settings = format!(
            "upstream.url = 'http://127.0.0.1:1'\n\
             listen.http = '127.0.0.1:0'\n\
             admin.listen = '127.0.0.1:0'\n\
             model.path = '{0}/model.onnx'\n\
             calibration.clean_images = ['{0}/fit.bin.gz', '{0}/holdout.bin.gz']\n\
             calibration.artifact = '{1}'\n\
             calibration.fit_images = 20\n\
             calibration.holdout_images = 60\n\
             perturbation.steps = 2\n\
             perturbation.max_epsilon = 0.02\n\
             policy.max_false_rejection_rate = 0.1\n\
             {more}\n",
            assets.display(),
            self.artifact,
        );
        // A file of its own each: the other sidecar may be reading its.
        let file = tempfile::Builder::new().suffix(".toml").tempfile_in(&self.folder);
        let (mut file, path) = file.and_then(|file| Ok(file.keep()?)).expect("a file");
        file.write_all(settings.as_bytes()).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
        command.args(arguments).arg("-c").arg(path);
        command.envs(self.environment.iter().cloned());
        command
    }

    fn calibrate(&self, arguments: &[&str], more: &str) -> (String, String) {
        let arguments = [&["calibrate", "--json"], arguments].concat();
        let Output { status, stdout, stderr } =
            self.command(&arguments, more).output().expect("the program");
        let errors = String::from_utf8_lossy(&stderr).into_owned();
        assert!(status.success(), "{errors}");
        let report: serde_json::Value = serde_json::from_slice(&stdout).expect("JSON");
        assert!(self.artifact.ends_with(report["artifact"].as_str().expect("a place")));
        (report["artifact_sha256"].as_str().expect("a digest").to_owned(), errors)
    }

    fn serve(&self, more: &str) -> Child {
        let mut command = self.command(&["serve"], more);
        command.stderr(Stdio::piped()).spawn().expect("the program")
    }

    /// Two sidecars that judge.
    fn both_are_ready(&self, more: &str) {
        let both = [self.serve(more), self.serve(more)];
        for mut sidecar in both {
            let mut lines = BufReader::new(sidecar.stderr.take().expect("a pipe")).lines();
            let mut seen = String::new();
            while !seen.contains("ready rule") {
                let line = lines.next().unwrap_or_else(|| panic!("it ended: {seen}"));
                seen.push_str(&line.expect("text"));
            }
            sidecar.kill().expect("killed");
            sidecar.wait().expect("its end");
        }
    }

    /// Two sidecars that end, and say all of `words`.
    fn both_refuse(&self, more: &str, words: &[&str]) {
        for mut sidecar in [self.serve(more), self.serve(more)] {
            let mut said = String::new();
            sidecar.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
            assert_eq!(sidecar.wait().expect("its end").code(), Some(1), "{said}");
            for word in words {
                assert!(said.contains(word), "{said}");
            }
        }
    }
}

/// Damage is always found. That somebody put another valid artifact there is found by the pin alone.
fn sidecars_share_one_artifact_and_refuse_another(
    shared: &Shared,
    damage: impl Fn(),
    remove: impl Fn(),
) {
    let (first, _) = shared.calibrate(&[], "");
    let pinned = format!("calibration.artifact_sha256 = '{}'", first.to_uppercase());
    shared.both_are_ready(&pinned);
    let (again, _) = shared.calibrate(&[], &pinned);
    assert_eq!(again, first, "a valid one stays");

    // What somebody makes who wants to know the perturbations. Nothing is wrong with it.
    remove();
    let (second, _) = shared.calibrate(&[], "");
    assert_ne!(second, first);
    shared.both_are_ready("");
    shared.both_refuse(&pinned, &["calibration.artifact_sha256", &first, &second]);

    damage();
    shared.both_refuse("", &["is corrupted", "run `doorward calibrate`"]);
    shared.both_refuse(&pinned, &["calibration.artifact_sha256", &first]);

    remove();
    shared.both_refuse(&pinned, &["is not there", &first]);
    let (third, errors) = shared.calibrate(&["--rotate"], &pinned);
    assert!(errors.contains("has to become") && errors.contains(&third), "{errors}");
}

#[test]
fn sidecars_share_a_file() {
    if models_cannot_be_loaded() {
        return;
    }
    let shared = Shared::new("file://FOLDER/artifact", vec![]);
    let path = shared.folder.path().join("artifact");
    let damage = || {
        let mut bytes = std::fs::read(&path).expect("an artifact");
        *bytes.last_mut().expect("bytes") ^= 1;
        std::fs::write(&path, bytes).expect("written");
    };
    let remove = || std::fs::remove_file(&path).expect("removed");
    sidecars_share_one_artifact_and_refuse_another(&shared, damage, remove);
}

#[test]
fn sidecars_share_an_object() {
    if models_cannot_be_loaded() {
        return;
    }
    let storage = ObjectStorage::start();
    let shared = Shared::new("s3://bucket/artifact", storage.environment());
    let damage = || {
        let mut storage = storage.shared();
        let object = storage.objects.get_mut("/bucket/artifact").expect("an artifact");
        let mut bytes = object.to_vec();
        *bytes.last_mut().expect("bytes") ^= 1;
        *object = bytes.into();
    };
    let remove = || drop(storage.shared().objects.remove("/bucket/artifact").expect("removed"));
    sidecars_share_one_artifact_and_refuse_another(&shared, damage, remove);
}
