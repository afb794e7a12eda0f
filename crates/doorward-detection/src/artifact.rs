//! The artifact: preparation writes it, judging reads it.
//!
//! One safetensors file: the tensors, and in its metadata the [`Manifest`] as JSON with a digest of
//! both. It tells an attacker what to train against: `storage` keeps it. The digest inside finds
//! damage; whoever can write the file can write a digest that fits. Only one that is kept
//! elsewhere, [`Expected::artifact_digest`], tells that it was replaced.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::conformal::Thresholds;
use crate::findings::InspectionSummary;
use crate::patch::Patch;
use crate::representation::Representation;

/// All that preparation learned.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// Everything but the tensors.
    pub manifest: Manifest,
    /// `[perturbations, C, H, W]`
    pub universal: Tensor,
    /// `[labels, C, H, W]`
    pub class_conditional: Tensor,
    /// The patches of every inspected label.
    pub patches: BTreeMap<usize, Patch>,
    /// The representations of infected labels whose triggered images were found.
    pub representations: BTreeMap<usize, Representation>,
    /// Predicted label and joined score of every held-out image: another budget needs no new run.
    pub holdout: Vec<(usize, f32)>,
    /// Only where the settings ask for the rule `strip`.
    pub strip: Option<StripReference>,
}

/// The images and entropies that STRIP compares an input with.
#[derive(Clone, Debug)]
pub struct StripReference {
    /// `[n, C, H, W]`, clean images.
    pub overlays: Tensor,
    /// Mean entropy of held-out images under them, bits.
    pub entropies: Vec<f32>,
}

/// The digests that an artifact must have been made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// SHA-256 of the artifact itself; `None` takes any that fits.
    pub artifact_digest: Option<String>,
    /// SHA-256 of the ONNX file.
    pub model_digest: String,
    /// SHA-256 over the settings that shape the artifact.
    pub settings_digest: String,
    /// SHA-256 over the files of the images; `None` where they are not at hand.
    pub data_digest: Option<String>,
}

/// Why bytes are not the artifact that is wanted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are not what was written.
    #[error("artifact {artifact} is corrupted: {reason}")]
    Corrupted {
        /// Its place.
        artifact: String,
        /// The sign of it.
        reason: String,
    },
    /// Its values are none that can be written.
    #[error("the artifact cannot be encoded: {reason}")]
    Encode {
        /// Why.
        reason: String,
    },
    /// Another version of the program wrote it.
    #[error("artifact {artifact} has format {got}, expected {FORMAT}")]
    Format {
        /// Its place.
        artifact: String,
        /// Its format.
        got: u32,
    },
    /// It was made for something else.
    #[error(
        "artifact {artifact} does not fit the {what}: it was made for SHA-256 {got}, expected {expected}"
    )]
    Mismatch {
        /// Its place.
        artifact: String,
        /// The thing that differs.
        what: &'static str,
        /// The artifact's digest of it.
        got: String,
        /// The digest at hand.
        expected: String,
    },
    /// It is not the one that is pinned.
    #[error(
        "artifact {artifact} has SHA-256 {got}, expected {expected}: somebody has replaced it, or another one is meant"
    )]
    Replaced {
        /// Its place.
        artifact: String,
        /// Its own digest.
        got: String,
        /// The digest that is pinned.
        expected: String,
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

/// The number of images that each part used; no image serves two parts.
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

/// The effect of the universal perturbations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PerturbationSummary {
    /// l-infinity radius, in units of the full pixel range.
    pub epsilon: f32,
    /// Share of the held-out clean images whose label one of them changes.
    pub fooling_rate: f64,
    /// l2 norm of the first, in units of the full pixel range.
    pub l2: f64,
    /// The label most held-out images land on under the first.
    pub sink: usize,
    /// Share of the held-out images that land there.
    pub sink_share: f64,
}

// === impl Artifact ===

impl Artifact {
    /// From the bytes of `name`, checked against their digests and against what is expected.
    pub fn decode(
        bytes: &[u8],
        name: &str,
        expected: &Expected,
        device: &Device,
    ) -> Result<Self, Error> {
        if let Some(expected) = &expected.artifact_digest {
            let got = hex::encode(Sha256::digest(bytes));
            if got != *expected {
                let (artifact, expected) = (name.to_owned(), expected.clone());
                return Err(Error::Replaced { artifact, got, expected });
            }
        }
        let artifact = Self::parse(bytes, name, device)?;
        let manifest = &artifact.manifest;
        let data = expected.data_digest.as_ref().unwrap_or(&manifest.data_digest);
        for (what, got, expected) in [
            ("model", &manifest.model_digest, &expected.model_digest),
            ("settings", &manifest.settings_digest, &expected.settings_digest),
            ("images", &manifest.data_digest, data),
        ] {
            if got != expected {
                let (artifact, got, expected) = (name.to_owned(), got.clone(), expected.clone());
                return Err(Error::Mismatch { artifact, what, got, expected });
            }
        }
        Ok(artifact)
    }

    /// The bytes of the file.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        self.serialize().map_err(|reason| Error::Encode { reason })
    }

    fn serialize(&self) -> Result<Vec<u8>, String> {
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
        for (label, found) in &self.representations {
            let places = [&found.clean[..], &found.way[..]].concat();
            let places = Tensor::from_vec(places, (2, found.clean.len()), &Device::Cpu)
                .map_err(|error| error.to_string())?;
            add(format!("{REPRESENTATION}{label}"), &places)?;
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

    fn parse(bytes: &[u8], name: &str, device: &Device) -> Result<Self, Error> {
        let corrupted = |reason: String| Error::Corrupted { artifact: name.to_owned(), reason };
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
            return Err(Error::Format { artifact: name.to_owned(), got: format });
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
        let mut representations = BTreeMap::new();
        for &label in manifest.inspection.iter().flat_map(|inspection| &inspection.infected) {
            let name = format!("{REPRESENTATION}{label}");
            let Some(&[_, features]) = views.get(&name).map(TensorView::shape) else { continue };
            let places = flat(&tensor(&name, &[2, features])?)
                .map_err(|error| corrupted(error.to_string()))?;
            let (clean, way) = places.split_at(features);
            let (clean, way) = (clean.to_vec(), way.to_vec());
            representations.insert(label, Representation { clean, way });
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
        let universal = rows_of(UNIVERSAL).unwrap_or_default().max(1);
        Ok(Self {
            universal: tensor(UNIVERSAL, &[universal, channels, height, width])?,
            class_conditional: tensor(CLASS_CONDITIONAL, &[labels, channels, height, width])?,
            patches,
            representations,
            holdout,
            strip,
            manifest,
        })
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
    hex::encode(hash.finalize())
}

/// Layout of the file.
pub const FORMAT: u32 = 4;

const UNIVERSAL: &str = "universal";
const CLASS_CONDITIONAL: &str = "class_conditional";
const MASK: &str = "mask.";
const PATTERN: &str = "pattern.";
const REPRESENTATION: &str = "representation.";
const HOLDOUT: &str = "holdout";
const STRIP_OVERLAYS: &str = "strip.overlays";
const STRIP_ENTROPIES: &str = "strip.entropies";
const MANIFEST: &str = "doorward.manifest";
const DIGEST: &str = "doorward.sha256";
