//! The engine against ONNX's own tests of single operators; the whole set is too large to be here.

use std::path::Path;

use candle_core::Device;
use doorward_engine::Program;

#[path = "../backend/runner.rs"]
mod runner;

use runner::{Case, Outcome};

#[test]
fn the_backend_tests_of_onnx_pass() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/backend/cases/node");
    let (mut count, mut gradients, mut failures) = (0, 0, Vec::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let case = Case::load(&entry.unwrap().path()).unwrap().expect("element types that run");
        count += 1;
        match case.run(&|model, constants| Program::compile_rows(model, constants, &Device::Cpu)) {
            Outcome::Passed(passed) => gradients += usize::from(passed.gradient),
            Outcome::Failed(reason) | Outcome::Unsupported(reason) => {
                failures.push(format!("{} ({}): {reason}", case.name, case.op));
            }
        }
    }
    println!("{count} cases, {gradients} with their gradients");
    assert!(failures.is_empty(), "{} of {count} fail:\n{}", failures.len(), failures.join("\n"));
    assert!(
        count >= 200 && 3 * gradients >= 2 * count,
        "{count} cases, {gradients} with gradients"
    );
}
