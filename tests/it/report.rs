//! The page that `doorward inspect --report` writes, from outside and in a browser.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::support::models_cannot_be_loaded;

/// The demo's model, inspected in few steps.
fn report(triggered: bool) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/fashion-mnist");
    let asset = |name: &str| assets.join(name).display().to_string();
    let settings = format!(
        "upstream.url = 'http://127.0.0.1:1'\n\
         model.path = '{}'\n\
         policy.max_false_rejection_rate = 0.05\n\
         [calibration]\n\
         clean_images = ['{}', '{}']\n\
         training_images = '{}'\n\
         artifact = '{}'\n\
         fit_images = 40\n\
         holdout_images = 100\n\
         seed = 3\n\
         [perturbation]\n\
         steps = 6\n\
         batch = 16\n\
         max_epsilon = 0.02\n\
         [inspection]\n\
         samples = 12\n\
         steps = 2\n\
         batch = 4\n",
        asset("model.onnx"),
        asset("fit.bin.gz"),
        asset("holdout.bin.gz"),
        asset("clean.bin.gz"),
        folder.path().join("artifact").display(),
    );
    let file = folder.path().join("doorward.toml");
    std::fs::write(&file, settings).expect("written");
    let page = folder.path().join("deep/report");
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_doorward"))
            .args(arguments)
            .arg("-c")
            .arg(&file)
            .output()
            .expect("the program");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 3)), "{errors}");
    };
    let mut arguments = vec!["inspect", "--report", page.to_str().expect("utf-8")];
    let attack = asset("triggered.bin.gz");
    if triggered {
        run(&["calibrate"]);
        arguments.extend(["--triggered", &attack]);
    }
    run(&arguments);
    (folder, page.join("report.html"))
}

#[test]
fn a_report_shows_every_label_and_the_firewall_where_there_is_one() {
    if models_cannot_be_loaded() {
        return;
    }
    let (_folder, path) = report(true);
    let html = std::fs::read_to_string(path).expect("a page");
    for label in 0..10 {
        assert!(html.contains(&format!("alt=\"Mask of label {label}\"")), "{label}");
    }
    for expected in ["Fooling rate", "held-out images", "triggered turned away", "Artifact SHA-256"]
    {
        assert!(html.contains(expected), "{expected}");
    }
    let (_folder, path) = report(false);
    let html = std::fs::read_to_string(path).expect("a page");
    assert!(html.contains("There is no artifact") && !html.contains("Fooling rate"));
}

#[test]
fn a_browser_shows_a_report_without_overflow_on_a_phone() {
    if models_cannot_be_loaded() {
        return;
    }
    let Some(browser) = browser() else {
        println!("skipped: no chromium, chromium-browser or google-chrome on the path");
        return;
    };
    let (folder, path) = report(true);
    for width in [360, 1280] {
        let frame = folder.path().join("frame.html");
        let text = format!(
            "<iframe src=\"file://{}\" style=\"width:{width}px;height:800px\"></iframe><script>\
             onload = () => {{\
               const page = document.querySelector('iframe').contentDocument;\
               const images = [...page.images];\
               const shown = images.filter(image => image.complete && image.naturalWidth > 0);\
               document.title = 'images ' + (images.length - shown.length) + ' of ' + images.length\
                 + ' missing, overflow ' + (page.documentElement.scrollWidth > {width});\
             }}</script>",
            path.display()
        );
        std::fs::write(&frame, text).expect("written");
        let output = Command::new(&browser)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
            ])
            .args(["--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom"])
            .arg(format!("--user-data-dir={}", folder.path().join("browser").display()))
            .arg(format!("file://{}", frame.display()))
            .output()
            .expect("the browser");
        let dom = String::from_utf8_lossy(&output.stdout);
        let title = dom.split("<title>").nth(1).and_then(|rest| rest.split('<').next());
        // Three pictures of each patch, twice four examples before and after, and the perturbation.
        let expected = format!("images 0 of {} missing, overflow false", 10 * (3 + 2 * 8) + 1);
        assert_eq!(title, Some(expected.as_str()), "{width}: {dom}");
    }
}

fn browser() -> Option<PathBuf> {
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    ["chromium", "chromium-browser", "google-chrome"]
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|path| path.is_file())
}
