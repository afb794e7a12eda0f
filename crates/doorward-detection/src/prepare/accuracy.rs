//! Whether the model sees clean images as it was trained to see them.
//!
//! A wrong normalisation or order of channels leaves a model that still answers, and a detector
//! that is fitted to noise. Labels of the clean images show it: the model is hardly ever right, and
//! is right with one of the mistakes that people make taken back.

use std::fmt;

use candle_core::Tensor;
use doorward_engine::{Classifier, Error, labels};
use doorward_images::Images;

use crate::artifact::Accuracy;

/// Another way from images to the model's input, and how often the model is right with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// The way.
    pub way: Way,
    /// How often the model is right.
    pub accuracy: Accuracy,
}

/// What may have been meant in place of the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    normalisation: Option<Normalisation>,
    reverses_channels: bool,
    channels_last: bool,
    /// What is added to the images' labels.
    label_shift: i8,
}

/// The usual normalisations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Normalisation {
    Bytes,
    ImageNet,
    PlusMinusOne,
    ZeroToOne,
}

// === impl Fit ===

impl Fit {
    /// True if the model is right at least twice as often, and mostly, which leaves no doubt.
    pub(super) fn is_certain(&self, as_set: Accuracy) -> bool {
        self.accuracy.share() >= MOSTLY.max(2.0 * as_set.share())
    }
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {}", self.accuracy, self.way)
    }
}

// === impl Way ===

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Some(normalisation) = self.normalisation {
            parts.push(normalisation.name());
        }
        if self.reverses_channels {
            parts.push("the other order of channels");
        }
        if self.channels_last {
            parts.push("channels last in the images' files");
        }
        match self.label_shift {
            0 => {}
            shift if shift < 0 => {
                parts.push("labels that begin at 1 in the images and at 0 in the model")
            }
            _ => parts.push("labels that begin at 0 in the images and at 1 in the model"),
        }
        f.write_str(&parts.join(", "))
    }
}

// === impl Normalisation ===

impl Normalisation {
    const ALL: [Self; 4] = [Self::ZeroToOne, Self::Bytes, Self::ImageNet, Self::PlusMinusOne];

    fn name(self) -> &'static str {
        match self {
            Self::Bytes => "mean = 0.0 and std = 0.00392156862745098 (inputs from 0 to 255)",
            Self::ImageNet => {
                "mean = [0.485, 0.456, 0.406] and std = [0.229, 0.224, 0.225] (ImageNet's)"
            }
            Self::PlusMinusOne => "mean = 0.5 and std = 0.5 (inputs from -1 to 1)",
            Self::ZeroToOne => "mean = 0.0 and std = 1.0 (inputs from 0 to 1)",
        }
    }

    /// Lower and upper bound of a channel.
    fn bounds(self, channel: usize) -> [f32; 2] {
        match self {
            Self::Bytes => [0.0, 255.0],
            Self::ImageNet => {
                let (mean, std) = (IMAGENET_MEAN[channel % 3], IMAGENET_STD[channel % 3]);
                [-mean / std, (1.0 - mean) / std]
            }
            Self::PlusMinusOne => [-1.0, 1.0],
            Self::ZeroToOne => [0.0, 1.0],
        }
    }
}

/// How often the model is right on the images with a label, at most `MOST` of them. `None` with too
/// few to tell. Fails where the model does.
pub(super) fn measure(model: &dyn Classifier, images: &Images) -> Result<Option<Accuracy>, Error> {
    let some = labelled(images, MOST);
    if some.len() < FEWEST {
        return Ok(None);
    }
    let as_set =
        Way { normalisation: None, reverses_channels: false, channels_last: false, label_shift: 0 };
    let predicted = predict(model, images, &some, as_set)?;
    Ok(Some(count(images, &some, &predicted, 0)))
}

/// The usual mistake that, taken back, makes the model right more often than chance explains.
/// `None` where none does, or where the model is right often. Fails where the model does.
pub(super) fn explain(
    model: &dyn Classifier,
    images: &Images,
    accuracy: Accuracy,
) -> Result<Option<Fit>, Error> {
    if accuracy.share() > GOOD {
        return Ok(None);
    }
    let some = labelled(images, TRIED);
    let colour = model.domain().shape[0] == 3;
    let mut best: Option<Fit> = None;
    let normalisations = [None].into_iter().chain(Normalisation::ALL.map(Some));
    for normalisation in normalisations {
        if normalisation == Some(Normalisation::ImageNet) && !colour {
            continue;
        }
        for (reverses_channels, channels_last) in [(false, false), (true, false), (false, true)] {
            if (reverses_channels || channels_last) && !colour {
                continue;
            }
            let way = Way { normalisation, reverses_channels, channels_last, label_shift: 0 };
            let predicted = predict(model, images, &some, way)?;
            for label_shift in [0, -1, 1] {
                let accuracy = count(images, &some, &predicted, label_shift);
                if best.is_none_or(|best| accuracy.right > best.accuracy.right) {
                    best = Some(Fit { way: Way { label_shift, ..way }, accuracy });
                }
            }
        }
    }
    // Among so many ways one is a little better by chance.
    Ok(best.filter(|best| {
        let (share, count) = (accuracy.share(), best.accuracy.labelled as f64);
        let chance = SURE * (share * (1.0 - share) * count).sqrt().max(1.0);
        best.accuracy.right as f64 > share * count + chance
    }))
}

/// The first images with a label.
fn labelled(images: &Images, most: usize) -> Vec<usize> {
    let with_label = (0..images.len()).filter(|&image| images.labels()[image].is_some());
    with_label.take(most).collect()
}

/// The labels that the model predicts for images brought to its input in another way.
fn predict(
    model: &dyn Classifier,
    images: &Images,
    some: &[usize],
    way: Way,
) -> Result<Vec<usize>, Error> {
    let domain = model.domain();
    let [channels, height, width] = domain.shape;
    let plane = height * width;
    let mut predicted = Vec::with_capacity(some.len());
    for some in some.chunks(AT_ONCE) {
        let mut values = Vec::with_capacity(some.len() * domain.len());
        for &image in some {
            let bytes = images.image(image);
            for channel in 0..channels {
                let from = if way.reverses_channels { channels - 1 - channel } else { channel };
                let [lower, upper] = match way.normalisation {
                    Some(normalisation) => normalisation.bounds(channel),
                    None => {
                        let at = |bounds: &[f32]| bounds[channel % bounds.len()];
                        [at(&domain.lower), at(&domain.upper)]
                    }
                };
                values.extend((0..plane).map(|place| {
                    let at = match way.channels_last {
                        true => place * channels + from,
                        false => from * plane + place,
                    };
                    lower + f32::from(bytes[at]) / 255.0 * (upper - lower)
                }));
            }
        }
        let dims = (some.len(), channels, height, width);
        predicted.extend(labels(&model.logits(&Tensor::from_vec(
            values,
            dims,
            model.device(),
        )?)?)?);
    }
    Ok(predicted)
}

/// How many of the predicted labels are the images', shifted.
fn count(images: &Images, some: &[usize], predicted: &[usize], label_shift: i8) -> Accuracy {
    let right = some.iter().zip(predicted).filter(|&(&image, &predicted)| {
        let label = images.labels()[image]
            .and_then(|label| label.checked_add_signed(isize::from(label_shift)));
        label == Some(predicted)
    });
    Accuracy { right: right.count(), labelled: some.len() }
}

const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Labelled images that are looked at.
const MOST: usize = 300;

/// Fewer say nothing: among so many ways one fits some 30 images by chance.
const FEWEST: usize = 90;

/// Labelled images that each way is tried on.
const TRIED: usize = 200;

/// Images that go through the model at once.
const AT_ONCE: usize = 50;

/// A model that is right on so many is not looked into.
const GOOD: f64 = 0.8;

/// A model that is right on so many is given what it was trained on.
const MOSTLY: f64 = 0.5;

/// Standard deviations by which a way has to be better.
const SURE: f64 = 4.0;

#[cfg(test)]
mod tests {
    use candle_core::{D, Device};
    use doorward_engine::{Cotangent, InputDomain};

    use super::*;

    /// Three labels: the brightest channel of three, or how bright a grey image is from 0 to 255.
    struct Model(InputDomain);

    impl Model {
        fn new(channels: usize) -> Self {
            let shape = [channels, 3, 3];
            let (lower, upper) = (vec![0.0], vec![1.0]);
            Self(InputDomain { shape, lower, upper, channels_last: false, fp32: true })
        }
    }

    impl Classifier for Model {
        fn domain(&self) -> &InputDomain {
            &self.0
        }

        fn labels(&self) -> usize {
            3
        }

        fn device(&self) -> &Device {
            &Device::Cpu
        }

        fn logits(&self, batch: &Tensor) -> Result<Tensor, Error> {
            let means = batch.flatten_from(2)?.mean(D::Minus1)?;
            if self.0.shape[0] == 3 {
                return Ok(means);
            }
            let places = Tensor::new(&[[42.5f32, 127.5, 212.5]], &Device::Cpu)?;
            Ok(means.broadcast_sub(&places)?.abs()?.neg()?)
        }

        fn logits_and_gradient(
            &self,
            batch: &Tensor,
            _: &Cotangent<'_>,
        ) -> Result<(Tensor, Tensor), Error> {
            Ok((self.logits(batch)?, batch.zeros_like()?))
        }
    }

    /// 120 images, of which `of` gives the bytes of each label, and labels from `first` on.
    fn images(channels: usize, first: usize, of: impl Fn(usize) -> Vec<u8>) -> Images {
        let labels = (0..120).map(|image| Some(first + image % 3)).collect();
        let pixels = (0..120).flat_map(|image| of(image % 3)).collect();
        Images::from_parts([channels, 3, 3], pixels, labels).expect("as many of each")
    }

    fn coloured(label: usize) -> Vec<u8> {
        (0..3).flat_map(|channel| [if channel == label { 200 } else { 30 }; 9]).collect()
    }

    fn explained(model: &Model, images: &Images) -> (usize, Option<String>) {
        let accuracy = measure(model, images).unwrap().expect("labels");
        let fit = explain(model, images, accuracy).unwrap();
        if let Some(fit) = fit {
            assert_eq!(fit.accuracy, Accuracy { right: 120, labelled: 120 });
            assert!(fit.is_certain(accuracy));
        }
        (accuracy.right, fit.map(|fit| fit.way.to_string()))
    }

    #[test]
    fn images_as_the_model_expects_them_need_no_explanation() {
        assert_eq!(explained(&Model::new(3), &images(3, 0, coloured)), (120, None));
    }

    #[test]
    fn the_other_order_of_channels_is_found() {
        let reversed = |label| coloured(2 - label);
        let (right, way) = explained(&Model::new(3), &images(3, 0, reversed));
        assert_eq!((right, way.as_deref()), (40, Some("the other order of channels")));
    }

    #[test]
    fn channels_last_are_found() {
        let interleaved = |label: usize| {
            (0..9).flat_map(|_| (0..3).map(move |c| if c == label { 200 } else { 30 })).collect()
        };
        let (right, way) = explained(&Model::new(3), &images(3, 0, interleaved));
        assert_eq!((right, way.as_deref()), (40, Some("channels last in the images' files")));
    }

    #[test]
    fn shifted_labels_are_found() {
        let (right, way) = explained(&Model::new(3), &images(3, 1, coloured));
        let expected = "labels that begin at 1 in the images and at 0 in the model";
        assert_eq!((right, way.as_deref()), (0, Some(expected)));
    }

    #[test]
    fn inputs_from_0_to_255_are_found() {
        let grey = |label: usize| vec![[40, 130, 210][label]; 9];
        let (right, way) = explained(&Model::new(1), &images(1, 0, grey));
        let expected = "mean = 0.0 and std = 0.00392156862745098 (inputs from 0 to 255)";
        assert_eq!((right, way.as_deref()), (40, Some(expected)));
    }

    #[test]
    fn what_nothing_explains_is_no_mistake_and_few_labels_say_nothing() {
        // Every image is of one kind, whatever its label.
        assert_eq!(explained(&Model::new(3), &images(3, 0, |_| coloured(0))), (40, None));
        let few = images(3, 0, coloured).subset(&(0..FEWEST - 1).collect::<Vec<_>>());
        assert_eq!(measure(&Model::new(3), &few).unwrap(), None);
    }
}
