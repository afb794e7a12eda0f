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
use crate::join::{Join, Line};
use crate::layers::{Layer, Layers};
use crate::patch::Patch;
use crate::ranges::Ranges;
use crate::representation::Representation;
use crate::row::Joined;
use crate::scale::Scale;
use crate::signal::{PerSignal, Signal};

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
    /// The statistics of the model's layers; `None` where it has no activations to read.
    pub layers: Option<Layers>,
    /// The ranges of the model's features; `None` where it does not tell them.
    pub ranges: Option<Ranges>,
    /// The join that makes one score of the signals.
    pub join: Join,
    /// The score of every held-out image: another budget needs no new run.
    pub holdout: Vec<Joined>,
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
    /// How often the model is right on them; absent with too few labels.
    pub accuracy: Option<Accuracy>,
    /// How often it is with the preprocessing that seems to be meant, where that is another one.
    pub better: Option<String>,
    /// The perturbations.
    pub perturbation: PerturbationSummary,
    /// DTInspector's findings; absent without training images.
    pub inspection: Option<InspectionSummary>,
    /// The fitted thresholds.
    pub thresholds: Thresholds,
}

/// How often the model is right on clean images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Images whose label the model predicts.
    pub right: usize,
    /// Images with a label that were looked at.
    pub labelled: usize,
}

/// The number of images that each part used; no image serves two parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageCounts {
    /// Fitted the perturbations, and the statistics of activations.
    pub fit: usize,
    /// Fitted the statistics of activations, and the lines of evidence.
    pub reference: usize,
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

// === impl Accuracy ===

impl Accuracy {
    /// The share of the labelled images on which the model is right.
    pub fn share(self) -> f64 {
        self.right as f64 / self.labelled.max(1) as f64
    }
}

impl std::fmt::Display for Accuracy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} labelled clean images", self.right, self.labelled)
    }
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
        if let Some(layers) = &self.layers {
            for (name, dims, values) in parts_of(layers) {
                let part = Tensor::from_vec(values, dims, &Device::Cpu);
                add(name, &part.map_err(|error| error.to_string())?)?;
            }
            for (index, layer) in layers.layers.iter().enumerate() {
                add(format!("{LAYER}{index}.projection"), &layer.projection)?;
            }
        }
        if let Some(ranges) = &self.ranges {
            let labels = self.manifest.labels;
            let bounds = [&ranges.low[..], &ranges.high[..]].concat();
            let bounds = Tensor::from_vec(bounds, (2, labels, ()), &Device::Cpu)
                .map_err(|error| error.to_string())?;
            add(RANGES.into(), &bounds)?;
            let floor = Tensor::new(&[ranges.floor], &Device::Cpu);
            add(RANGES_FLOOR.into(), &floor.map_err(|error| error.to_string())?)?;
        }
        let mut add_rows = |name: String, width: usize, values: Vec<f32>| -> Result<(), String> {
            let rows = Tensor::from_vec(values, ((), width), &Device::Cpu);
            add(name, &rows.map_err(|error| error.to_string())?)
        };
        for signal in Signal::ALL {
            let Some(line) = &self.join.lines[signal] else { continue };
            let scales = line.scales.iter().flat_map(|scale| [scale.location, scale.spread]);
            add_rows(line_part(signal, "scales"), 2, scales.collect())?;
            let reference = line.reference.iter().flat_map(|&(label, score)| [label as f32, score]);
            add_rows(line_part(signal, "reference"), 2, reference.collect())?;
        }
        for (label, weights) in &self.join.weights {
            let weights = Signal::ALL.into_iter().map(|signal| weights[signal]);
            add_rows(format!("{WEIGHTS}{label}"), Signal::COUNT, weights.collect())?;
        }
        let rows = self
            .holdout
            .iter()
            .flat_map(|row| [row.label as f32, row.evidence, row.weighed.unwrap_or(f32::INFINITY)]);
        add_rows(HOLDOUT.into(), 3, rows.collect())?;
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
        let values = |name: &str, dims: &[usize]| -> Result<Vec<f32>, Error> {
            flat(&tensor(name, dims)?).map_err(|error| corrupted(error.to_string()))
        };
        let shape_of = |name: &str| views.get(name).map(|view| view.shape().to_vec());
        let layers = match shape_of(LAYERS_CENTRE).as_deref() {
            Some(&[count]) => Some(Layers {
                centre: values(LAYERS_CENTRE, &[count])?,
                precision: values(LAYERS_PRECISION, &[count, count])?,
                layers: (0..count)
                    .map(|index| {
                        let name = |part| format!("{LAYER}{index}.{part}");
                        let projection = name("projection");
                        let dims = shape_of(&projection).unwrap_or_default();
                        let directions = dims.last().copied().unwrap_or_default();
                        let scales = values(&name("scales"), &[manifest.labels, 4])?;
                        let scale = |at: usize| {
                            let of = scales.chunks_exact(4);
                            of.map(|four| Scale { location: four[at], spread: four[at + 1] })
                                .collect()
                        };
                        Ok(Layer {
                            start: values(&name("start"), &[1])?[0] as usize,
                            projection: tensor(&projection, &dims)?,
                            means: values(&name("means"), &[manifest.labels, directions])?,
                            own: scale(0),
                            gap: scale(2),
                        })
                    })
                    .collect::<Result<_, Error>>()?,
            }),
            _ => None,
        };
        let labels = manifest.labels;
        let ranges = match shape_of(RANGES).as_deref() {
            Some(&[2, _, features]) => {
                let mut low = values(RANGES, &[2, labels, features])?;
                let high = low.split_off(labels * features);
                Some(Ranges { low, high, floor: values(RANGES_FLOOR, &[1])?[0] })
            }
            _ => None,
        };
        // A label that is none is found below.
        let label = |value: f32| value as usize;
        let line = |signal: Signal| -> Result<Option<Line>, Error> {
            let name = line_part(signal, "reference");
            let Some(&[count, 2]) = shape_of(&name).as_deref() else { return Ok(None) };
            let reference: Vec<(usize, f32)> = values(&name, &[count, 2])?
                .chunks_exact(2)
                .map(|row| (label(row[0]), row[1]))
                .collect();
            if count == 0 || reference.iter().any(|(label, _)| *label >= labels) {
                return Err(corrupted(format!("tensor {name} is not for {labels} labels")));
            }
            let scales = values(&line_part(signal, "scales"), &[labels, 2])?;
            let scales = scales.chunks_exact(2);
            let scales = scales.map(|two| Scale { location: two[0], spread: two[1] }).collect();
            Ok(Some(Line::of_standard(scales, reference)))
        };
        let mut join = Join::default();
        for signal in Signal::ALL {
            join.lines[signal] = line(signal)?;
        }
        for label in 0..labels {
            let name = format!("{WEIGHTS}{label}");
            if views.contains_key(&name) {
                let of = values(&name, &[1, Signal::COUNT])?;
                let weights = PerSignal::from_fn(|signal| of[signal as usize]);
                join.weights.insert(label, weights);
            }
        }
        let holdout: Vec<Joined> = values(HOLDOUT, &[manifest.images.holdout, 3])?
            .chunks_exact(3)
            .map(|row| Joined {
                label: label(row[0]),
                evidence: row[1],
                weighed: Some(row[2]).filter(|weighed| weighed.is_finite()),
            })
            .collect();
        // A score by weights that are not there would be compared with a threshold of another kind.
        if holdout.iter().any(|row| row.weighed.is_some() != join.weights.contains_key(&row.label))
        {
            return Err(corrupted("its weights are not those of its held-out scores".into()));
        }
        if manifest.thresholds.labels.len() != labels
            || holdout.iter().any(|row| row.label >= labels)
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
            layers,
            ranges,
            join,
            holdout,
            strip,
            manifest,
        })
    }
}

fn line_part(signal: Signal, part: &str) -> String {
    format!("line.{}.{part}", signal.name())
}

/// Names, shapes and values of all of the layers but their projections.
fn parts_of(layers: &Layers) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let count = layers.layers.len();
    let mut parts = vec![
        (LAYERS_CENTRE.to_owned(), vec![count], layers.centre.clone()),
        (LAYERS_PRECISION.to_owned(), vec![count, count], layers.precision.clone()),
    ];
    for (index, layer) in layers.layers.iter().enumerate() {
        let labels = layer.own.len();
        let scales = layer
            .own
            .iter()
            .zip(&layer.gap)
            .flat_map(|(own, gap)| [own.location, own.spread, gap.location, gap.spread]);
        let directions = layer.means.len() / labels.max(1);
        parts.extend([
            (format!("{LAYER}{index}.start"), vec![1], vec![layer.start as f32]),
            (format!("{LAYER}{index}.means"), vec![labels, directions], layer.means.clone()),
            (format!("{LAYER}{index}.scales"), vec![labels, 4], scales.collect()),
        ]);
    }
    parts
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
pub const FORMAT: u32 = 6;

const UNIVERSAL: &str = "universal";
const CLASS_CONDITIONAL: &str = "class_conditional";
const MASK: &str = "mask.";
const PATTERN: &str = "pattern.";
const REPRESENTATION: &str = "representation.";
const LAYER: &str = "layer.";
const LAYERS_CENTRE: &str = "layers.centre";
const LAYERS_PRECISION: &str = "layers.precision";
const RANGES: &str = "ranges";
const RANGES_FLOOR: &str = "ranges.floor";
const WEIGHTS: &str = "weights.";
const HOLDOUT: &str = "holdout";
const STRIP_OVERLAYS: &str = "strip.overlays";
const STRIP_ENTROPIES: &str = "strip.entropies";
const MANIFEST: &str = "doorward.manifest";
const DIGEST: &str = "doorward.sha256";
