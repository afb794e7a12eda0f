//! Many values to one.

use super::folding::{Folding, Indices, dot, strides};
use crate::error::Error;
use crate::onnx::constant::{Constant, Values};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Reduction {
    Max,
    Mean,
    Min,
    Prod,
    Sum,
}

/// ONNX ReduceMax, ReduceMean, ReduceMin, ReduceProd and ReduceSum, opsets 1 to 26.
pub(super) fn reduce(folding: &Folding<'_>, reduction: Reduction) -> Result<Constant, Error> {
    folding.node.only(&["axes", "keepdims", "noop_with_empty_axes"])?;
    let source = folding.input(0)?;
    let rank = source.dims.len();
    let keep = folding.node.int("keepdims", 1)? != 0;
    let axes = folding.per_axis("axes", 1)?.unwrap_or_default();
    let mut reduced = vec![axes.is_empty(); rank];
    if axes.is_empty() && folding.node.int("noop_with_empty_axes", 0)? != 0 {
        reduced.fill(false);
    }
    for &axis in axes {
        reduced[folding.axis(axis, rank)?] = true;
    }
    let kept: Vec<usize> =
        source.dims.iter().zip(&reduced).map(|(&dim, &one)| if one { 1 } else { dim }).collect();
    let count = folding.count(&kept)?;
    folding.work(source.values.len())?;
    let mut strides = strides(&kept);
    for (stride, _) in strides.iter_mut().zip(&reduced).filter(|(_, reduced)| **reduced) {
        *stride = 0;
    }
    let empty = || folding.error(format!("nothing to reduce in shape {:?}", source.dims));
    let values = match &source.values {
        Values::F32(values) => {
            // Sums of many values in 64 bits, as the whole of calibration does it.
            let sums =
                accumulated(&source.dims, &strides, count, values, |old: Option<f64>, new| {
                    let new = f64::from(new);
                    Some(match (reduction, old) {
                        (_, None) => new,
                        (Reduction::Max, Some(old)) if old > new || old.is_nan() => old,
                        (Reduction::Min, Some(old)) if old < new || old.is_nan() => old,
                        (Reduction::Max | Reduction::Min, Some(_)) => new,
                        (Reduction::Prod, Some(old)) => old * new,
                        (Reduction::Mean | Reduction::Sum, Some(old)) => old + new,
                    })
                });
            let each = (values.len() / count.max(1)) as f64;
            let finished = sums.ok_or_else(empty)?.into_iter().map(|sum| match (reduction, sum) {
                (Reduction::Mean, Some(sum)) => Ok((sum / each) as f32),
                (_, Some(sum)) => Ok(sum as f32),
                (Reduction::Prod, None) => Ok(1.0),
                (Reduction::Sum, None) => Ok(0.0),
                _ => Err(empty()),
            });
            Values::F32(finished.collect::<Result<_, _>>()?)
        }
        Values::I64(values) => {
            let sums = accumulated(&source.dims, &strides, count, values, |old, new| {
                match (reduction, old) {
                    (_, None) => Some(new),
                    (Reduction::Max, Some(old)) => Some(old.max(new)),
                    (Reduction::Min, Some(old)) => Some(old.min(new)),
                    (Reduction::Prod, Some(old)) => old.checked_mul(new),
                    (Reduction::Mean | Reduction::Sum, Some(old)) => old.checked_add(new),
                }
            });
            let sums = sums.ok_or_else(|| folding.error("a result exceeds 64 bits".into()))?;
            let each = (values.len() / count.max(1)) as i64;
            let finished = sums.into_iter().map(|sum| match (reduction, sum) {
                (Reduction::Mean, Some(sum)) => Ok(sum / each),
                (_, Some(sum)) => Ok(sum),
                (Reduction::Prod, None) => Ok(1),
                (Reduction::Sum, None) => Ok(0),
                _ => Err(empty()),
            });
            Values::I64(finished.collect::<Result<_, _>>()?)
        }
    };
    let dims = match keep {
        true => kept,
        false => {
            let kept = kept.iter().zip(&reduced).filter(|(_, reduced)| !**reduced);
            kept.map(|(&dim, _)| dim).collect()
        }
    };
    Ok(Constant { dims, values })
}

/// One result for each index of the kept axes, `None` where there was no value.
fn accumulated<T: Copy, A: Copy>(
    dims: &[usize],
    strides: &[usize],
    count: usize,
    values: &[T],
    join: impl Fn(Option<A>, T) -> Option<A>,
) -> Option<Vec<Option<A>>> {
    let mut sums = vec![None; count];
    let mut indices = Indices::new(dims);
    for &value in values {
        let sum = &mut sums[dot(&indices.index, strides)];
        *sum = Some(join(*sum, value)?);
        indices.advance();
    }
    Some(sums)
}

/// ONNX CumSum, opsets 11 to 26.
pub(super) fn cum_sum(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["exclusive", "reverse"])?;
    let source = folding.input(0)?;
    let axis = folding.axis(folding.scalar(1)?, source.dims.len())?;
    let exclusive = folding.node.int("exclusive", 0)? != 0;
    let reverse = folding.node.int("reverse", 0)? != 0;
    folding.count(&source.dims)?;
    let inner: usize = match source.values.len() {
        0 => 1,
        _ => source.dims[axis + 1..].iter().product(),
    };
    let lanes = Lanes { size: source.dims[axis], inner, exclusive, reverse };
    let values = match &source.values {
        Values::F32(values) => {
            lanes.summed(values, |a: f64, b| Some(a + f64::from(b)), |a| a as f32).map(Values::F32)
        }
        Values::I64(values) => lanes.summed(values, i64::checked_add, |a| a).map(Values::I64),
    };
    let values = values.ok_or_else(|| folding.error("a sum exceeds 64 bits".into()))?;
    Ok(Constant { dims: source.dims.clone(), values })
}

struct Lanes {
    size: usize,
    inner: usize,
    exclusive: bool,
    reverse: bool,
}

// === impl Lanes ===

impl Lanes {
    fn summed<T: Copy, A: Copy + Default>(
        &self,
        values: &[T],
        add: impl Fn(A, T) -> Option<A>,
        finish: impl Fn(A) -> T,
    ) -> Option<Vec<T>> {
        let mut all = values.to_vec();
        let lanes = values.len() / self.size.max(1);
        for lane in 0..lanes {
            let first = lane / self.inner * self.size * self.inner + lane % self.inner;
            let mut sum = A::default();
            for i in 0..self.size {
                let i = if self.reverse { self.size - 1 - i } else { i };
                let at = first + i * self.inner;
                let before = sum;
                // The last sum of an exclusive lane goes nowhere, and may be too large.
                sum = match add(sum, values[at]) {
                    Some(sum) => sum,
                    None if self.exclusive => before,
                    None => return None,
                };
                all[at] = finish(if self.exclusive { before } else { sum });
            }
        }
        Some(all)
    }
}
