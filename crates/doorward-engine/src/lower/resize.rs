//! Resizing: where every value of the result comes from.

use super::context::{Context, Lowered, Operand};
use crate::error::Error;
use crate::layout::Layout;
use crate::operators::Operator;
use crate::operators::resample::Resample;
use crate::size::Size;

/// ONNX Resize, opsets 10 to 26, and Upsample, opset 9, by nearest, linear or cubic interpolation.
pub(super) fn resize(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let rank = layout.rank();
    let axes: Vec<usize> = match context.node.ints("axes")? {
        None => (0..rank).collect(),
        Some(axes) => {
            axes.iter().map(|&axis| context.node.axis(axis, rank)).collect::<Result<_, _>>()?
        }
    };
    let given = |index: usize| match context.operand(index) {
        Operand::Constant(constant) if constant.values.len() > 0 => Some(index),
        _ => None,
    };
    let old = context.node.op == "Upsample" || context.node.opset < 11;
    let (scales, sizes) = match old {
        true => (given(1), None),
        false => (given(2), given(3)),
    };
    // New size and scale of every axis.
    let wanted: Vec<(usize, f64)> = match (scales, sizes) {
        (Some(index), None) => {
            let scales = context.floats(index)?.1;
            let scaled = axes.iter().zip(scales).map(|(&axis, &scale)| {
                let size = (layout.size(axis) as f64 * f64::from(scale)).floor();
                (size.clamp(0.0, MAX_SIZE) as usize, f64::from(scale))
            });
            scaled.collect()
        }
        (None, Some(index)) => {
            let sizes = context.integers(index)?;
            let sized = axes.iter().zip(sizes).map(|(&axis, &size)| {
                let size = match Size::of_integer(size) {
                    _ if layout.is_batch(axis) => layout.size(axis),
                    Size::Batches(count) => count,
                    Size::Fixed(size) => usize::try_from(size).unwrap_or(0),
                };
                (size, size as f64 / layout.size(axis) as f64)
            });
            sized.collect()
        }
        _ => {
            return Err(context.error("expected scales or sizes, one of them, as constants".into()));
        }
    };
    if wanted.len() != axes.len()
        || wanted.iter().any(|&(size, _)| size == 0 || size as f64 >= MAX_SIZE)
    {
        return Err(context.error(format!("new sizes {wanted:?} for axes {axes:?} of {layout}")));
    }
    let sampling = Sampling::read(context, old)?;
    let mut current = layout.clone();
    let mut steps: Vec<(Box<dyn Operator>, Layout)> = Vec::new();
    for (&axis, (size, scale)) in axes.iter().zip(wanted) {
        if size == layout.size(axis) && scale == 1.0 {
            continue;
        }
        if layout.is_batch(axis) {
            return Err(context.error(format!("axis {axis} of {layout} is the batch")));
        }
        let from = current.clone();
        current = current.resized(&[(axis, size)]);
        let taps = (0..size)
            .map(|at| sampling.taps(at, from.size(axis), size, scale))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| context.error("its attributes are not supported".into()))?;
        let rows = [from.row(), current.row()];
        let resample = Resample { taps, size: from.size(axis), inner: from.behind(axis), rows };
        steps.push((Box::new(resample), current.clone()));
    }
    match steps.is_empty() {
        true => Ok(Lowered::Same),
        false => Ok(Lowered::Chain(steps)),
    }
}

struct Sampling<'a> {
    mode: &'a str,
    coordinates: &'a str,
    nearest: &'a str,
    cubic: f64,
    outside: bool,
}

impl<'a> Sampling<'a> {
    fn read(context: &Context<'a>, old: bool) -> Result<Self, Error> {
        let node = context.node;
        if node.int("antialias", 0)? != 0 {
            return Err(context.error("attribute \"antialias\" is set".into()));
        }
        let policy = node.text("keep_aspect_ratio_policy")?.unwrap_or("stretch");
        if policy != "stretch" {
            return Err(context.error(format!(
                "attribute \"keep_aspect_ratio_policy\" is {policy:?}, expected \"stretch\""
            )));
        }
        let (coordinates, nearest) = match old {
            // Before opset 11 there was no choice.
            true => ("asymmetric", "floor"),
            false => (
                node.text("coordinate_transformation_mode")?.unwrap_or("half_pixel"),
                node.text("nearest_mode")?.unwrap_or("round_prefer_floor"),
            ),
        };
        Ok(Self {
            mode: node.text("mode")?.unwrap_or("nearest"),
            coordinates,
            nearest,
            cubic: f64::from(node.float("cubic_coeff_a", -0.75)?),
            outside: node.int("exclude_outside", 0)? != 0,
        })
    }

    /// The input places and weights of output place `at`; `None` for a mode that is not known.
    fn taps(&self, at: usize, size: usize, new: usize, scale: f64) -> Option<Vec<(usize, f32)>> {
        let (at, last) = (at as f64, size as f64 - 1.0);
        let x = match self.coordinates {
            "half_pixel" => (at + 0.5) / scale - 0.5,
            "half_pixel_symmetric" => {
                let adjusted = new as f64 / (size as f64 * scale);
                let offset = size as f64 / 2.0 * (1.0 - adjusted);
                offset + (at + 0.5) / scale - 0.5
            }
            "pytorch_half_pixel" if new == 1 => 0.0,
            "pytorch_half_pixel" => (at + 0.5) / scale - 0.5,
            "align_corners" if new == 1 => 0.0,
            "align_corners" => at * last / (new as f64 - 1.0),
            "asymmetric" => at / scale,
            _ => return None,
        };
        let weighted: Vec<(f64, f64)> = match self.mode {
            "nearest" => {
                let place = match self.nearest {
                    "round_prefer_floor" => (x - 0.5).ceil(),
                    "round_prefer_ceil" => (x + 0.5).floor(),
                    "floor" => x.floor(),
                    "ceil" => x.ceil(),
                    _ => return None,
                };
                vec![(place, 1.0)]
            }
            "linear" => {
                let x = x.clamp(0.0, last);
                let share = x - x.floor();
                vec![(x.floor(), 1.0 - share), (x.floor() + 1.0, share)]
            }
            "cubic" => {
                let (first, share, a) = (x.floor(), x - x.floor(), self.cubic);
                let near = |t: f64| ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0;
                let far = |t: f64| ((a * t - 5.0 * a) * t + 8.0 * a) * t - 4.0 * a;
                let weights = [far(share + 1.0), near(share), near(1.0 - share), far(2.0 - share)];
                (0..4).map(|i| (first - 1.0 + f64::from(i), weights[i as usize])).collect()
            }
            _ => return None,
        };
        let inside = |place: f64| (0.0..=last).contains(&place);
        let counted = |place: f64| !self.outside || inside(place);
        let total: f64 =
            weighted.iter().filter(|(place, _)| counted(*place)).map(|(_, weight)| weight).sum();
        let taps = weighted
            .into_iter()
            .filter(|&(place, weight)| weight != 0.0 && counted(place))
            .map(|(place, weight)| (place.clamp(0.0, last) as usize, (weight / total) as f32));
        Some(taps.collect())
    }
}

/// No axis of an image is longer.
const MAX_SIZE: f64 = 65_536.0;
