//! Loads a classifier, prints what it predicts for a grey image, and where that is most sensitive.

use std::path::PathBuf;

use candle_core::Tensor;
use doorward_engine::{Classifier, Model, device, label, margin_cotangent};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path: PathBuf = std::env::args_os().nth(1).ok_or("usage: outside MODEL.onnx")?.into();
    let model = Model::load(&path, &[0.0], &[1.0], &device())?;
    let [channels, height, width] = model.domain().shape;
    let grey = Tensor::full(0.5f32, (1, channels, height, width), model.device())?;
    let logits = model.logits(&grey)?.flatten_all()?.to_vec1::<f32>()?;
    let predicted = label(&logits);
    println!("label {predicted} of {}, logit {}", model.labels(), logits[predicted]);
    let (_, gradient) = model.logits_and_gradient(&grey, &|rows, logits| {
        margin_cotangent(logits, &vec![predicted; rows.len()], |_| 1.0)
    })?;
    let slopes = gradient.flatten_all()?.to_vec1::<f32>()?;
    let steepest = slopes.iter().map(|slope| slope.abs()).fold(0.0, f32::max);
    println!("{} slopes, the steepest {steepest}", slopes.len());
    Ok(())
}
