//! A library of onnxruntime that cannot be loaded is an error of the program's, in words.

use std::process::Command;

use super::support::onnx::Graph;

#[test]
fn what_was_looked_for_is_said() {
    let folder = tempfile::TempDir::new().unwrap();
    let graph = Graph::new(&[1, 1, 2]).node("Flatten", &["x"], "y", vec![]);
    std::fs::write(folder.path().join("model.onnx"), graph.encode()).unwrap();
    std::fs::write(folder.path().join("library"), b"no library").unwrap();
    let settings = "upstream.url = 'http://127.0.0.1:1'\nmodel.path = 'model.onnx'\n\
         calibration.clean_images = 'model.onnx'\n";
    std::fs::write(folder.path().join("doorward.toml"), settings).unwrap();
    for library in ["/nowhere/libonnxruntime.so", "./library"] {
        let output = Command::new(env!("CARGO_BIN_EXE_doorward"))
            .args(["config", "check", "doorward.toml"])
            .current_dir(folder.path())
            .env("ORT_DYLIB_PATH", library)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        for words in ["onnxruntime", library, "ORT_DYLIB_PATH"] {
            assert!(errors.contains(words), "{errors}\ndoes not say\n{words}");
        }
        assert!(!errors.contains("panicked"), "{errors}");
    }
}
