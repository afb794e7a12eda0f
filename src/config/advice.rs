//! Errors of the crates below, with the keys and commands that a user can do something about.

use doorward_detection::artifact;
use doorward_detection::prepare::{Error, Which};
use doorward_engine::{Error as ModelError, FileKind};

use super::Location;

/// A reason for which there is no detector, with the key to look at.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Advised {
    text: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Says behind an error about a model's file what to do about it.
pub fn of_model(error: ModelError) -> Box<dyn std::error::Error + Send + Sync> {
    let advice = match &error {
        ModelError::Foreign { kind } => match kind {
            FileKind::PyTorch | FileKind::Pickle | FileKind::Safetensors => {
                "export it in Python, torch.onnx.export(model.eval(), images, \"model.onnx\"), and set model.path to the result"
            }
            FileKind::Keras | FileKind::TfLite => {
                "convert it, python -m tf2onnx.convert --help says how, and set model.path to the result"
            }
            FileKind::GitLfs => "run `git lfs pull` in its repository",
            FileKind::Html => "fetch it again: what came is the page about it, or an error",
            FileKind::Zip | FileKind::Compressed => {
                "unpack it, and set model.path to the .onnx file in it"
            }
            FileKind::OpenVino => "set model.path to the ONNX model that it was made from",
            _ => "set model.path to an .onnx file",
        },
        ModelError::OpenShape { .. } => {
            "set model.input_shape to the sizes of one image as the file has them, such as [3, 224, 224]"
        }
        ModelError::InputShape { .. } => {
            "set model.input_shape to the sizes of one image as the file has them, or leave it away"
        }
        ModelError::Outputs { .. } | ModelError::NoOutput { .. } => {
            "set model.output to the one that holds a score for each label; a detector or a segmentation has none"
        }
        ModelError::Output { .. } => {
            "Doorward judges classifiers of images: a detector, a segmentation or an embedding has no scores of labels"
        }
        ModelError::Decisions { .. } => "export the model without its last step",
        ModelError::Opset { .. } => {
            "export it with another (opset_version=17), or convert it with onnx.version_converter"
        }
        ModelError::Operator { .. } => {
            "docs/operators.md lists those that are; another exporter, or onnxsim, may do without it"
        }
        ModelError::Bytes { .. } => "leave preprocess.mean and preprocess.std away",
        _ => return error.into(),
    };
    Advised { text: format!("{error}; {advice}"), source: None }.into()
}

/// Names the key that a failed preparation is about; other errors stay as they are.
pub fn of_preparation(
    error: Error,
    location: &Location,
) -> Box<dyn std::error::Error + Send + Sync> {
    match error {
        Error::Absent { sha256, .. } => {
            let text = format!(
                "artifact {location} is not there, and a fresh one would not have calibration.artifact_sha256 {sha256}"
            );
            Advised { text, source: None }.into()
        }
        Error::Artifact(artifact::Error::Replaced { artifact, got, expected }) => {
            let text = format!(
                "artifact {artifact} has SHA-256 {got}, expected calibration.artifact_sha256 {expected}: somebody has replaced it, or another one is meant"
            );
            Advised { text, source: None }.into()
        }
        Error::Artifact(unfit) => {
            let text = format!("run `doorward calibrate` to replace {location}, or remove it");
            Advised { text, source: Some(Box::new(unfit)) }.into()
        }
        Error::Mistaken { .. } => {
            let text = format!(
                "{error}; set [preprocess] as the model was trained, or mend calibration.clean_images"
            );
            Advised { text, source: None }.into()
        }
        Error::Images { which, source } => {
            let key = match which {
                Which::All => "the images",
                Which::Clean => "calibration.clean_images",
                Which::Training => "calibration.training_images",
            };
            Advised { text: format!("cannot use {key}"), source: Some(Box::new(source)) }.into()
        }
        Error::Store(error) => error,
        Error::TooFewImages { got, expected, fit, holdout, rate } => {
            let text = format!(
                "calibration.clean_images holds {got} images, expected at least {expected}: {fit} to fit the perturbations and {holdout} held out, without which a false-rejection rate of {rate} cannot be kept"
            );
            Advised { text, source: None }.into()
        }
        error => error.into(),
    }
}
