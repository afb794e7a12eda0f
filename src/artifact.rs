//! The file that the offline flow writes and the online flow reads.
//!
//! One safetensors file: the tensors, and in its metadata the [`Manifest`] as JSON with a digest of
//! both. It tells an attacker what to train against, so only its owner may read it (mode 0600), and
//! it is replaced in one step, so that no reader sees half of it.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::digest::hex;
use crate::inspect::Patch;

/// What the offline flow learned.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// Everything but the tensors.
    pub manifest: Manifest,
    /// `[1, C, H, W]`
    pub universal: Tensor,
    /// `[labels, C, H, W]`
    pub class_conditional: Tensor,
    /// Of every inspected label.
    pub patches: BTreeMap<usize, Patch>,
    /// Predicted label and joined score of every held-out image: another budget needs no new run.
    pub holdout: Vec<(usize, f32)>,
    /// Only where the settings ask for the rule `strip`.
    pub strip: Option<StripReference>,
}

/// What STRIP compares an input with.
#[derive(Clone, Debug)]
pub struct StripReference {
    /// `[n, C, H, W]`, clean images.
    pub overlays: Tensor,
    /// Mean entropy of held-out images under them, bits.
    pub entropies: Vec<f32>,
}

/// What an artifact must have been made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// SHA-256 of the ONNX file.
    pub model_digest: String,
    /// SHA-256 over the settings that shape the artifact.
    pub settings_digest: String,
    /// SHA-256 over the files of the images; `None` where they are not at hand.
    pub data_digest: Option<String>,
}

/// Why an artifact cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are not what was written.
    #[error("artifact {} is corrupted: {reason}", path.display())]
    Corrupted {
        /// The file.
        path: PathBuf,
        /// What gave it away.
        reason: String,
    },
    /// Another version of the program wrote it.
    #[error("artifact {} has format {got}, expected {FORMAT}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        got: u32,
    },
    /// It was made for something else.
    #[error(
        "artifact {} does not fit the {what}: it was made for SHA-256 {got}, expected {expected}",
        path.display()
    )]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// The artifact's digest of it.
        got: String,
        /// The digest at hand.
        expected: String,
    },
    /// The file cannot be read.
    #[error("cannot read artifact {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write artifact {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Everything about an artifact but its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Layout of the file; a reader takes only its own.
    pub format: u32,
    /// Version of the program that wrote it.
    pub doorward: String,
    /// When it was written, seconds since 1970-01-01 UTC.
    pub created: u64,
    /// SHA-256 of the ONNX file.
    pub model_digest: String,
    /// SHA-256 over the files of the clean and training images.
    pub data_digest: String,
    /// SHA-256 over the settings that shape the artifact.
    pub settings_digest: String,
    /// Seed of every random choice.
    pub seed: u64,
    /// Channels, height, width of the model input.
    pub input_shape: [usize; 3],
    /// Number of labels.
    pub labels: usize,
    /// Clean images used.
    pub images: ImageCounts,
    /// The perturbations.
    pub perturbation: PerturbationSummary,
    /// DTInspector's findings; absent without training images.
    pub inspection: Option<InspectionSummary>,
    /// The fitted thresholds.
    pub thresholds: Thresholds,
}

/// How many images each part used; no image serves two parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageCounts {
    /// Fitted the perturbations.
    pub fit: usize,
    /// Fitted the thresholds.
    pub holdout: usize,
    /// Were compared with the training images.
    pub probe: usize,
    /// Inspected training images.
    pub training: usize,
}

/// What the universal perturbation reached.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PerturbationSummary {
    /// l-infinity radius, in units of the full pixel range.
    pub epsilon: f32,
    /// Share of the held-out clean images whose label it changes.
    pub fooling_rate: f64,
    /// l2 norm of the universal perturbation, in units of the full pixel range.
    pub l2: f64,
    /// The label most perturbed held-out images land on.
    pub sink: usize,
    /// Share of the perturbed held-out images on the sink.
    pub sink_share: f64,
}

/// DTInspector's findings on every label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InspectionSummary {
    /// One entry per label that had enough samples, by label.
    pub labels: Vec<LabelInspection>,
    /// Labels named as a backdoor's target.
    pub infected: Vec<usize>,
}

/// DTInspector's findings on one label.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelInspection {
    /// The label.
    pub label: usize,
    /// Share of the low-confidence samples whose label the patch changes.
    pub transfer_ratio: f64,
    /// MAD anomaly index on the low side, 0 above the median.
    pub anomaly_index: f64,
    /// Share of the high-confidence samples whose label the patch changes.
    pub top_k_changed: f64,
    /// l1 norm of the mask, pixels.
    pub mask_l1: f64,
    /// Share of the high-confidence samples that keep their label under the perturbations.
    pub top_k_survival: f64,
    /// Share of the training images predicted as the label that keep it under the perturbations.
    pub survival: f64,
    /// That share less the share of clean images that keep it.
    pub survival_excess: f64,
    /// MAD anomaly index of the excess on the high side, 0 below the median.
    pub survival_anomaly_index: f64,
}

/// The calibrated rule, fitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// One per label, by label.
    pub labels: Vec<LabelThreshold>,
    /// Of infected labels: the weights of `s_u`, `s_c` and `s_p` in the score; of the others the
    /// least signal is the score.
    pub weights: BTreeMap<usize, [f32; 3]>,
    /// Upper bound on the probability that an input like the calibration images is rejected.
    pub false_rejection_rate_bound: f64,
    /// Share of the held-out images that the thresholds turn away.
    pub holdout_rejected: f64,
}

/// A label's threshold: reject when `(score - location) / spread > threshold`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelThreshold {
    /// Centre of the label's clean scores.
    pub location: f32,
    /// Spread of the label's clean scores.
    pub spread: f32,
    /// Largest standardised score that passes.
    pub threshold: f32,
    /// Held-out images behind the threshold.
    pub images: usize,
    /// Whether the threshold is shared with other labels.
    pub pooled: bool,
}

// === impl Artifact ===

impl Artifact {
    /// Whether a file can be written to `path`, known before the work it takes to fill it.
    pub fn check_writable(path: &Path) -> Result<(), Error> {
        let failed = |source| Error::Write { path: path.to_owned(), source };
        if path.is_dir() {
            return Err(failed(std::io::ErrorKind::IsADirectory.into()));
        }
        beside(path).map(drop).map_err(failed)
    }

    /// Writes the file in one step, readable for its owner alone.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let failed = |source: std::io::Error| Error::Write { path: path.to_owned(), source };
        let bytes = self.encode().map_err(|reason| failed(std::io::Error::other(reason)))?;
        let mut file = beside(path).map_err(failed)?;
        file.write_all(&bytes).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    /// Reads a file whole and checks it against its digest and against what is expected.
    pub fn read(path: &Path, expected: &Expected, device: &Device) -> Result<Self, Error> {
        let bytes =
            std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let artifact = Self::decode(&bytes, path, device)?;
        let manifest = &artifact.manifest;
        let data = expected.data_digest.as_ref().unwrap_or(&manifest.data_digest);
        for (what, got, expected) in [
            ("model", &manifest.model_digest, &expected.model_digest),
            ("settings", &manifest.settings_digest, &expected.settings_digest),
            ("images", &manifest.data_digest, data),
        ] {
            if got != expected {
                let (path, got, expected) = (path.to_owned(), got.clone(), expected.clone());
                return Err(Error::Mismatch { path, what, got, expected });
            }
        }
        Ok(artifact)
    }

    fn encode(&self) -> Result<Vec<u8>, String> {
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, tensor: &Tensor| -> Result<(), String> {
            let values: Vec<f32> = flat(tensor).map_err(|error| error.to_string())?;
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            tensors.insert(name, (tensor.dims().to_vec(), bytes));
            Ok(())
        };
        add(UNIVERSAL.into(), &self.universal)?;
        add(CLASS_CONDITIONAL.into(), &self.class_conditional)?;
        for (label, patch) in &self.patches {
            add(format!("{MASK}{label}"), &patch.mask)?;
            add(format!("{PATTERN}{label}"), &patch.pattern)?;
        }
        let rows: Vec<f32> =
            self.holdout.iter().flat_map(|&(label, score)| [label as f32, score]).collect();
        let rows = Tensor::from_vec(rows, (self.holdout.len(), 2), &Device::Cpu)
            .map_err(|error| error.to_string())?;
        add(HOLDOUT.into(), &rows)?;
        if let Some(strip) = &self.strip {
            let entropies = Tensor::new(&strip.entropies[..], &Device::Cpu)
                .map_err(|error| error.to_string())?;
            add(STRIP_OVERLAYS.into(), &strip.overlays)?;
            add(STRIP_ENTROPIES.into(), &entropies)?;
        }
        let manifest = serde_json::to_string(&self.manifest).map_err(|error| error.to_string())?;
        let digest = digest(&manifest, tensors.iter().map(|(name, (_, bytes))| (name, &bytes[..])));
        let metadata =
            HashMap::from([(MANIFEST.to_owned(), manifest), (DIGEST.to_owned(), digest)]);
        let views = tensors
            .iter()
            .map(|(name, (dims, bytes))| {
                let view = TensorView::new(Dtype::F32, dims.clone(), bytes);
                Ok((name.clone(), view.map_err(|error| error.to_string())?))
            })
            .collect::<Result<Vec<_>, String>>()?;
        safetensors::serialize(views, Some(metadata)).map_err(|error| error.to_string())
    }

    fn decode(bytes: &[u8], path: &Path, device: &Device) -> Result<Self, Error> {
        let corrupted = |reason: String| Error::Corrupted { path: path.to_owned(), reason };
        let (_, header) =
            SafeTensors::read_metadata(bytes).map_err(|error| corrupted(error.to_string()))?;
        let file = SafeTensors::deserialize(bytes).map_err(|error| corrupted(error.to_string()))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let (Some(text), Some(expected)) = (metadata.get(MANIFEST), metadata.get(DIGEST)) else {
            return Err(corrupted("it has no manifest".into()));
        };
        // Before the digest, which another format may take in another way.
        let format = serde_json::from_str::<FormatOnly>(text)
            .map_err(|error| corrupted(error.to_string()))?
            .format;
        if format != FORMAT {
            return Err(Error::Format { path: path.to_owned(), got: format });
        }
        let views: BTreeMap<String, TensorView<'_>> = file.tensors().into_iter().collect();
        let got = digest(text, views.iter().map(|(name, view)| (name, view.data())));
        if got != *expected {
            return Err(corrupted(format!("its digest is {got}, expected {expected}")));
        }
        let manifest: Manifest =
            serde_json::from_str(text).map_err(|error| corrupted(error.to_string()))?;
        let tensor = |name: &str, dims: &[usize]| -> Result<Tensor, Error> {
            let view = views.get(name).ok_or_else(|| corrupted(format!("no tensor {name}")))?;
            if view.shape() != dims || view.dtype() != Dtype::F32 {
                return Err(corrupted(format!(
                    "tensor {name} has shape {:?}, expected {dims:?}",
                    view.shape()
                )));
            }
            let (chunks, _) = view.data().as_chunks::<4>();
            let values: Vec<f32> = chunks.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect();
            Tensor::from_vec(values, dims, device).map_err(|error| corrupted(error.to_string()))
        };
        let [channels, height, width] = manifest.input_shape;
        let mut patches = BTreeMap::new();
        for inspected in manifest.inspection.iter().flat_map(|inspection| &inspection.labels) {
            let label = inspected.label;
            let mask = tensor(&format!("{MASK}{label}"), &[1, 1, height, width])?;
            let pattern = tensor(&format!("{PATTERN}{label}"), &[1, channels, height, width])?;
            patches.insert(label, Patch { mask, pattern });
        }
        let rows = flat(&tensor(HOLDOUT, &[manifest.images.holdout, 2])?)
            .map_err(|error| corrupted(error.to_string()))?;
        let holdout: Vec<(usize, f32)> =
            rows.chunks_exact(2).map(|row| (row[0] as usize, row[1])).collect();
        let labels = manifest.labels;
        if manifest.thresholds.labels.len() != labels
            || holdout.iter().any(|(label, _)| *label >= labels)
        {
            return Err(corrupted(format!("its thresholds are not for {labels} labels")));
        }
        let rows_of = |name| views.get(name).and_then(|view| view.shape().first().copied());
        let strip = match (rows_of(STRIP_OVERLAYS), rows_of(STRIP_ENTROPIES)) {
            (Some(overlays), Some(entropies)) => Some(StripReference {
                overlays: tensor(STRIP_OVERLAYS, &[overlays, channels, height, width])?,
                entropies: flat(&tensor(STRIP_ENTROPIES, &[entropies])?)
                    .map_err(|error| corrupted(error.to_string()))?,
            }),
            _ => None,
        };
        Ok(Self {
            universal: tensor(UNIVERSAL, &[1, channels, height, width])?,
            class_conditional: tensor(CLASS_CONDITIONAL, &[labels, channels, height, width])?,
            patches,
            holdout,
            strip,
            manifest,
        })
    }
}

/// A file in the folder of `path`, readable for its owner alone and gone unless it is persisted.
fn beside(path: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => tempfile::NamedTempFile::new_in(parent),
        _ => tempfile::NamedTempFile::new_in("."),
    }
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

fn flat(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

fn digest<'a>(manifest: &str, tensors: impl Iterator<Item = (&'a String, &'a [u8])>) -> String {
    let mut hash = Sha256::new();
    hash.update((manifest.len() as u64).to_le_bytes());
    hash.update(manifest);
    for (name, bytes) in tensors {
        for part in [name.as_bytes(), bytes] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    hex(&hash.finalize())
}

/// Layout of the file.
pub const FORMAT: u32 = 2;

const UNIVERSAL: &str = "universal";
const CLASS_CONDITIONAL: &str = "class_conditional";
const MASK: &str = "mask.";
const PATTERN: &str = "pattern.";
const HOLDOUT: &str = "holdout";
const STRIP_OVERLAYS: &str = "strip.overlays";
const STRIP_ENTROPIES: &str = "strip.entropies";
const MANIFEST: &str = "doorward.manifest";
const DIGEST: &str = "doorward.sha256";
