//! What `doorward calibrate` writes, when it writes again, and what it leaves behind.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::SafeTensors;
use tempfile::TempDir;

use super::support::models_cannot_be_loaded;

/// A folder for the settings and the artifact of the demo's model and images.
struct Workplace {
    folder: TempDir,
}

impl Workplace {
    /// Small numbers everywhere; `more` is TOML.
    fn new(more: &str) -> Self {
        let workplace = Self { folder: tempfile::tempdir().expect("a folder") };
        std::fs::create_dir(workplace.folder.path().join("artifact")).expect("a folder");
        workplace.configure(more);
        workplace
    }

    fn configure(&self, more: &str) {
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/fashion-mnist");
        let asset = |name: &str| assets.join(name).display().to_string();
        let settings = format!(
            "upstream.url = 'http://127.0.0.1:1'\n\
             model.path = '{}'\n\
             calibration.clean_images = ['{}', '{}']\n\
             calibration.training_images = '{}'\n\
             calibration.artifact = '{}'\n\
             calibration.fit_images = 40\n\
             calibration.holdout_images = 60\n\
             perturbation.steps = 6\n\
             perturbation.batch = 16\n\
             perturbation.max_epsilon = 0.02\n\
             inspection.samples = 12\n\
             inspection.steps = 2\n\
             inspection.batch = 4\n\
             {more}\n",
            asset("model.onnx"),
            asset("fit.bin.gz"),
            asset("holdout.bin.gz"),
            asset("clean.bin.gz"),
            self.artifact().display(),
        );
        std::fs::write(self.settings(), settings).expect("written");
    }

    fn settings(&self) -> PathBuf {
        self.folder.path().join("doorward.toml")
    }

    /// In a folder of its own, so that what else appears there shows.
    fn artifact(&self) -> PathBuf {
        self.folder.path().join("artifact/doorward.safetensors")
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.artifact()).expect("an artifact")
    }

    /// Name and bytes of every tensor.
    fn tensors(&self) -> BTreeMap<String, Vec<u8>> {
        let bytes = self.bytes();
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
    }

    fn files_beside_artifact(&self) -> Vec<PathBuf> {
        let folder = self.artifact().parent().expect("a folder").to_owned();
        std::fs::read_dir(folder)
            .expect("readable")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| *path != self.artifact())
            .collect()
    }

    fn run(&self, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_doorward"))
            .args(["calibrate", "--json", "-c"])
            .arg(self.settings())
            .args(more)
            .output()
            .expect("the program")
    }

    fn calibrate(&self, more: &[&str]) -> serde_json::Value {
        let output = self.run(more);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        serde_json::from_slice(&output.stdout).expect("one JSON object")
    }

    fn fails(&self, more: &[&str]) -> String {
        let output = self.run(more);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

#[test]
fn an_artifact_is_private_and_used_again_until_what_shapes_it_changes() {
    if models_cannot_be_loaded() {
        return;
    }
    let workplace = Workplace::new("calibration.seed = 3\npolicy.max_false_rejection_rate = 0.05");
    let report = workplace.calibrate(&[]);
    assert_eq!(
        report["images"],
        serde_json::json!({ "fit": 40, "reference": 15, "holdout": 33, "probe": 12 })
    );
    assert_eq!(report["seed"], 3);
    let metadata = std::fs::metadata(workplace.artifact()).expect("an artifact");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert_eq!(workplace.files_beside_artifact(), Vec::<PathBuf>::new());
    let (bytes, inode) = (workplace.bytes(), metadata.ino());

    let again = workplace.calibrate(&[]);
    assert_eq!(again["seconds"]["uap"], 0.0);
    for key in ["epsilon", "fooling_rate", "false_rejection_rate_bound", "infected_labels"] {
        assert_eq!(again[key], report[key], "{key}");
    }

    // Another budget: the same artifact, other thresholds.
    workplace.configure("calibration.seed = 3\npolicy.max_false_rejection_rate = 0.2");
    let relaxed = workplace.calibrate(&[]);
    assert_eq!(relaxed["seconds"]["uap"], 0.0);
    let bound = |report: &serde_json::Value| report["false_rejection_rate_bound"].as_f64();
    assert!(bound(&relaxed) > bound(&report));
    let metadata = std::fs::metadata(workplace.artifact()).expect("an artifact");
    assert_eq!((workplace.bytes(), metadata.ino()), (bytes.clone(), inode));

    let error = workplace.fails(&["--rotate"]);
    assert!(error.contains("calibration.seed is set"), "{error}");
    assert_eq!(workplace.bytes(), bytes);

    // Another seed does shape it.
    workplace.configure("calibration.seed = 4\npolicy.max_false_rejection_rate = 0.05");
    assert!(workplace.calibrate(&[])["seconds"]["uap"].as_f64() > Some(0.0));
    assert_ne!(workplace.bytes(), bytes);
}

#[test]
fn the_same_seed_gives_the_same_tensors() {
    if models_cannot_be_loaded() {
        return;
    }
    let settings = "calibration.seed = 11\npolicy.max_false_rejection_rate = 0.05";
    let (one, other) = (Workplace::new(settings), Workplace::new(settings));
    let (a, b) = (one.calibrate(&[]), other.calibrate(&[]));
    assert_eq!(a["epsilon"], b["epsilon"]);
    let tensors = one.tensors();
    assert!(["universal", "class_conditional", "holdout"].iter().all(|t| tensors.contains_key(*t)));
    assert!(tensors.keys().any(|name| name.starts_with("mask.")));
    assert!(tensors == other.tensors());
}

#[test]
fn another_number_of_perturbations_is_another_artifact() {
    if models_cannot_be_loaded() {
        return;
    }
    let settings = "calibration.seed = 11\npolicy.max_false_rejection_rate = 0.05";
    let workplace = Workplace::new(settings);
    let one = workplace.calibrate(&[]);
    let first = workplace.tensors()["universal"].clone();
    workplace.configure(&format!("{settings}\nperturbation.count = 2"));
    let two = workplace.calibrate(&[]);
    let both = workplace.tensors()["universal"].clone();
    assert_eq!((both.len(), &both[..first.len()]), (2 * first.len(), &*first));
    assert!(two["fooling_rate"].as_f64() >= one["fooling_rate"].as_f64());
    // It is read again as it was written.
    assert_eq!(workplace.calibrate(&[])["seconds"]["uap"], 0.0);
}

#[test]
fn rotation_makes_another_artifact() {
    if models_cannot_be_loaded() {
        return;
    }
    let workplace = Workplace::new("policy.max_false_rejection_rate = 0.05");
    let first = workplace.calibrate(&[]);
    let tensors = workplace.tensors();
    assert_eq!(workplace.calibrate(&[])["seed"], first["seed"]);
    let rotated = workplace.calibrate(&["--rotate"]);
    assert_ne!(rotated["seed"], first["seed"]);
    assert_ne!(workplace.tensors()["universal"], tensors["universal"]);
    assert_eq!(workplace.files_beside_artifact(), Vec::<PathBuf>::new());
}

#[test]
fn a_failed_write_leaves_what_was_there() {
    if models_cannot_be_loaded() {
        return;
    }
    let workplace = Workplace::new("policy.max_false_rejection_rate = 0.05");
    std::fs::write(workplace.artifact(), b"an older one").expect("written");
    // No file may grow above four kilobytes, as on a full disk.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" calibrate -c \"$1\""])
        .arg(env!("CARGO_BIN_EXE_doorward"))
        .arg(workplace.settings())
        .output()
        .expect("a shell");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("cannot write artifact") && errors.contains("File too large"),
        "{errors}"
    );
    assert_eq!(workplace.bytes(), b"an older one");
    assert_eq!(workplace.files_beside_artifact(), Vec::<PathBuf>::new());
}

#[test]
fn an_artifact_that_cannot_be_written_is_said_before_the_work() {
    if models_cannot_be_loaded() {
        return;
    }
    let workplace = Workplace::new("policy.max_false_rejection_rate = 0.05");
    std::fs::remove_dir(workplace.artifact().parent().expect("a folder")).expect("removed");
    let start = std::time::Instant::now();
    let error = workplace.fails(&[]);
    assert!(error.contains("cannot write artifact"), "{error}");
    assert!(error.contains("No such file or directory"), "{error}");
    assert!(start.elapsed().as_secs_f64() < 2.0, "{:?}", start.elapsed());
}

#[test]
fn a_folder_that_cannot_be_written_stays_as_it_is() {
    if models_cannot_be_loaded() {
        return;
    }
    let workplace = Workplace::new("policy.max_false_rejection_rate = 0.05");
    let folder = workplace.artifact().parent().expect("a folder").to_owned();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o500)).expect("set");
    if std::fs::write(folder.join("probe"), b"").is_ok() {
        println!("skipped: this user may write into read-only folders");
        return;
    }
    let error = workplace.fails(&[]);
    assert!(error.contains("cannot write artifact"), "{error}");
    assert!(error.contains("Permission denied"), "{error}");
    assert_eq!(std::fs::read_dir(&folder).expect("readable").count(), 0);
}
