//! What accelerators run, against what the CPU does: on the CPU, and on a CUDA device where there
//! is one.

use std::path::{Path, PathBuf};

use candle_core::safetensors;

use super::*;

#[path = "../../tests/backend/runner.rs"]
mod runner;

use runner::{Case, Outcome};

impl Program {
    /// The same with every operator as accelerators run it.
    fn composed(mut self) -> Self {
        self.mode = Mode::Composed;
        self
    }
}

/// The first CUDA device, if this build is for them and there is one.
fn cuda() -> Option<Device> {
    Device::new_cuda(0).inspect_err(|error| eprintln!("skipped on CUDA: {error}")).ok()
}

fn golden() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_model = |path: &PathBuf| path.extension().is_some_and(|end| end == "onnx");
    let mut paths: Vec<PathBuf> = paths.filter(is_model).collect();
    paths.sort();
    assert!(paths.len() >= 120);
    paths
}

/// The output and the gradient, on the CPU.
fn run(program: &Program, input: &Tensor, cotangent: &Tensor) -> [Tensor; 2] {
    let input = input.to_device(&program.device).unwrap();
    let cotangent = cotangent.to_device(&program.device).unwrap();
    let (output, gradients) = program
        .evaluate_vjp(&[input], &|output| cotangent.reshape(output.shape()))
        .unwrap_or_else(|error| panic!("{error}"));
    [&output, &gradients[0]].map(|tensor| tensor.to_device(&Device::Cpu).unwrap())
}

/// Largest difference, relative to the largest magnitude.
fn difference(got: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(got.dims(), expected.dims());
    let largest = |x: Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    largest((got - expected).unwrap()) / largest(expected.clone()).max(1e-6)
}

#[test]
fn golden_models_are_the_same_composed() {
    let cuda = cuda();
    for path in golden() {
        let name = path.file_stem().unwrap().to_string_lossy();
        let bytes = std::fs::read(&path).unwrap();
        let stored = safetensors::load(path.with_extension("safetensors"), &Device::Cpu).unwrap();
        let (input, cotangent) = (&stored["input"], &stored["cotangent"]);
        let compile = |device: &Device| Program::compile(&bytes, device).unwrap();
        let [output, gradient] = run(&compile(&Device::Cpu), input, cotangent);
        let mut others = vec![("composed", compile(&Device::Cpu).composed())];
        others.extend(cuda.iter().map(|device| ("on CUDA", compile(device))));
        for (how, program) in others {
            let [other_output, other_gradient] = run(&program, input, cotangent);
            let (a, b) =
                (difference(&other_output, &output), difference(&other_gradient, &gradient));
            println!("{name} {how}: output {a:.1e}, gradient {b:.1e}");
            assert!(a < 1e-5, "{name} {how}: output off by {a}");
            assert!(b < 1e-4, "{name} {how}: gradient off by {b}");
        }
    }
}

/// Every step shared between threads, against all of them on one.
#[test]
fn shares_change_nothing() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
    let mut shared = 0;
    for path in golden() {
        let name = path.file_stem().unwrap().to_string_lossy();
        let stored = safetensors::load(path.with_extension("safetensors"), &Device::Cpu).unwrap();
        let input = &stored["input"];
        let mut program = Program::compile(&std::fs::read(&path).unwrap(), &Device::Cpu).unwrap();
        let expected = program.evaluate(std::slice::from_ref(input)).unwrap();
        let products = |step: &Step| step.products(&program.rows[step.inputs[0]]);
        program.shares = program.steps.iter().map(|step| 4 * products(step).min(1)).collect();
        shared += usize::from(program.shares.contains(&4));
        for rows in [1, 2] {
            let part = |tensor: &Tensor| tensor.narrow(0, 0, rows).unwrap();
            let got = pool.install(|| program.forward(&part(input))).unwrap();
            let off = difference(&got, &part(&expected));
            assert!(off < 1e-5, "{name}: {rows} rows off by {off}");
        }
    }
    assert!(shared >= 30, "{shared} models with a step that can be shared");
}

#[test]
fn the_backend_tests_of_onnx_pass_composed() {
    let cuda = cuda();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/backend/cases/node");
    let (mut count, mut failures) = (0, Vec::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let case = Case::load(&entry.unwrap().path()).unwrap().expect("element types that run");
        let composed = case.run(&|model, constants| {
            Ok(Program::compile_rows(model, constants, &Device::Cpu)?.composed())
        });
        let on_cuda = cuda.as_ref().map(|device| {
            case.run(&|model, constants| Program::compile_rows(model, constants, device))
        });
        for outcome in std::iter::once(composed).chain(on_cuda) {
            count += 1;
            if let Outcome::Failed(reason) | Outcome::Unsupported(reason) = outcome {
                failures.push(format!("{} ({}): {reason}", case.name, case.op));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {count} fail:\n{}", failures.len(), failures.join("\n"));
    assert!(count >= 200, "{count} cases");
}
