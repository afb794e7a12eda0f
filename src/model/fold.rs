//! Nodes on constants alone, evaluated once while compiling.
//!
//! Exporters compute shapes and pads with little graphs of their own. Their operators only move
//! values, so they are written out here: candle-onnx's evaluator has them too, but panics on nodes
//! that are not as it expects them, and a model file may be anything.

use candle_onnx::onnx::tensor_proto::DataType;

use super::Error;
use super::graph::{Constant, Node, Values};

/// Whether `fold` may evaluate this operator.
pub(crate) fn folds(op: &str) -> bool {
    REGISTRY.iter().any(|(name, _)| *name == op)
}

/// What may be evaluated, in alphabetical order.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    REGISTRY.iter().map(|(name, _)| *name)
}

/// The node's output for constant inputs, `None` where one is absent.
///
/// A result of more than `limit` values is refused: a small file can ask for a large one.
pub(crate) fn fold(
    node: &Node,
    inputs: &[Option<&Constant>],
    limit: usize,
) -> Result<Constant, Error> {
    let folding = Folding { node, inputs, limit };
    match REGISTRY.iter().find(|(name, _)| *name == node.op) {
        Some((_, evaluate)) => evaluate(&folding),
        None => Err(Error::Operator { node: node.name.clone(), op: node.op.clone() }),
    }
}

type Evaluation = fn(&Folding<'_>) -> Result<Constant, Error>;

const REGISTRY: &[(&str, Evaluation)] = &[
    ("Cast", cast),
    ("Concat", concat),
    ("ConstantOfShape", constant_of_shape),
    ("Gather", gather),
    ("Reshape", reshape),
    ("Slice", slice),
    ("Transpose", transpose),
    ("Unsqueeze", unsqueeze),
];

struct Folding<'a> {
    node: &'a Node,
    inputs: &'a [Option<&'a Constant>],
    limit: usize,
}

// === impl Folding ===

impl<'a> Folding<'a> {
    fn optional(&self, index: usize) -> Option<&'a Constant> {
        self.inputs.get(index).copied().flatten()
    }

    fn input(&self, index: usize) -> Result<&'a Constant, Error> {
        self.optional(index).ok_or_else(|| self.error(format!("input {index} is absent")))
    }

    /// What opsets have moved from an attribute to an input.
    fn integers(&self, name: &str, index: usize) -> Result<Option<&'a [i64]>, Error> {
        if let Some(values) = self.node.ints(name)? {
            return Ok(Some(values));
        }
        let floats = || self.error(format!("input {index} holds floats, expected integers"));
        self.optional(index).map(|constant| constant.integers().ok_or_else(floats)).transpose()
    }

    fn required(&self, name: &str, index: usize) -> Result<&'a [i64], Error> {
        let absent = || self.error(format!("{name} is absent"));
        self.integers(name, index)?.ok_or_else(absent)
    }

    fn axis(&self, axis: i64, rank: usize) -> Result<usize, Error> {
        let positive = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(positive)
            .ok()
            .filter(|&axis| axis < rank)
            .ok_or_else(|| self.error(format!("axis {axis} is outside of rank {rank}")))
    }

    /// Number of values of a result.
    fn count(&self, dims: &[usize]) -> Result<usize, Error> {
        dims.iter()
            .try_fold(1usize, |product, &dim| product.checked_mul(dim))
            .filter(|&count| count <= self.limit)
            .ok_or_else(|| self.error(format!("its result of shape {dims:?} has too many values")))
    }

    /// A result whose value at an index is `source`'s at the flat position `at(index)`.
    fn moved(
        &self,
        source: &Constant,
        dims: Vec<usize>,
        at: impl Fn(&[usize]) -> usize,
    ) -> Result<Constant, Error> {
        let count = self.count(&dims)?;
        let mut index = vec![0; dims.len()];
        let mut positions = Vec::with_capacity(count);
        for _ in 0..count {
            positions.push(at(&index));
            for (index, &dim) in index.iter_mut().zip(&dims).rev() {
                *index += 1;
                if *index < dim {
                    break;
                }
                *index = 0;
            }
        }
        let values = match &source.values {
            Values::F32(values) => Values::F32(positions.iter().map(|&i| values[i]).collect()),
            Values::I64(values) => Values::I64(positions.iter().map(|&i| values[i]).collect()),
        };
        Ok(Constant { dims, values })
    }

    /// The same values in another shape.
    fn shaped(&self, source: &Constant, dims: Vec<usize>) -> Result<Constant, Error> {
        let count = self.count(&dims)?;
        if count != source.values.len() {
            let got = source.values.len();
            return Err(self.error(format!("{got} values do not fill a shape of {dims:?}")));
        }
        Ok(Constant { dims, values: source.values.clone() })
    }

    fn error(&self, reason: String) -> Error {
        self.node.error(reason)
    }
}

/// ONNX Cast, opsets 9 to 21, between the types that constants are kept as.
fn cast(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["saturate", "to"])?;
    let source = folding.input(0)?;
    folding.count(&source.dims)?;
    let to = folding.node.int("to", 0)?;
    let kind = i32::try_from(to).ok().and_then(|to| DataType::try_from(to).ok());
    let values = match (kind, &source.values) {
        (Some(DataType::Float | DataType::Double), Values::F32(values)) => {
            Values::F32(values.clone())
        }
        (Some(DataType::Float | DataType::Double), Values::I64(values)) => {
            Values::F32(values.iter().map(|&value| value as f32).collect())
        }
        (Some(DataType::Int32 | DataType::Int64), Values::I64(values)) => {
            Values::I64(values.clone())
        }
        (Some(DataType::Int32 | DataType::Int64), Values::F32(values)) => {
            Values::I64(values.iter().map(|&value| value as i64).collect())
        }
        (Some(DataType::Bool), Values::I64(values)) => {
            Values::I64(values.iter().map(|&value| i64::from(value != 0)).collect())
        }
        (Some(DataType::Bool), Values::F32(values)) => {
            Values::I64(values.iter().map(|&value| i64::from(value != 0.0)).collect())
        }
        _ => return Err(folding.error(format!("attribute \"to\" is {to}"))),
    };
    Ok(Constant { dims: source.dims.clone(), values })
}

/// ONNX Concat, opsets 4 to 21.
fn concat(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["axis"])?;
    let first = folding.input(0)?;
    let axis = folding.axis(folding.node.int("axis", 0)?, first.dims.len())?;
    let mut dims = first.dims.clone();
    dims[axis] = 0;
    let mut parts = Vec::with_capacity(folding.inputs.len());
    for index in 0..folding.inputs.len() {
        let part = folding.input(index)?;
        let fits = part.dims.len() == dims.len()
            && (0..dims.len()).all(|i| i == axis || part.dims[i] == first.dims[i]);
        if !fits {
            return Err(folding.error(format!(
                "input {index} of shape {:?} does not join {:?} along axis {axis}",
                part.dims, first.dims
            )));
        }
        dims[axis] = dims[axis].saturating_add(part.dims[axis]);
        parts.push(part);
    }
    // Without values there is nothing to loop over, however large the other dimensions are.
    let outer = match folding.count(&dims)? {
        0 => 0,
        _ => dims[..axis].iter().product(),
    };
    let values = match &first.values {
        Values::F32(_) => joined(&parts, axis, outer, Constant::floats).map(Values::F32),
        Values::I64(_) => joined(&parts, axis, outer, Constant::integers).map(Values::I64),
    };
    let values = values.ok_or_else(|| folding.error("its inputs differ in type".into()))?;
    Ok(Constant { dims, values })
}

fn joined<'a, T: Copy + 'a>(
    parts: &[&'a Constant],
    axis: usize,
    outer: usize,
    values: impl Fn(&'a Constant) -> Option<&'a [T]>,
) -> Option<Vec<T>> {
    let mut all = Vec::new();
    for row in 0..outer {
        for &part in parts {
            let len: usize = part.dims[axis..].iter().product();
            all.extend_from_slice(&values(part)?[row * len..][..len]);
        }
    }
    Some(all)
}

/// ONNX ConstantOfShape, opsets 9 to 21.
fn constant_of_shape(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["value"])?;
    let wanted = folding.required("shape", 0)?;
    let dims = wanted
        .iter()
        .map(|&dim| usize::try_from(dim).map_err(|_| folding.error(format!("shape {wanted:?}"))))
        .collect::<Result<Vec<_>, _>>()?;
    let zero = Constant { dims: vec![1], values: Values::F32(vec![0.0]) };
    let value = folding.node.tensor("value")?.unwrap_or(&zero);
    if value.values.len() != 1 {
        let got = value.values.len();
        return Err(folding.error(format!("attribute \"value\" holds {got} values, expected one")));
    }
    folding.moved(value, dims, |_| 0)
}

/// ONNX Gather, opsets 1 to 21.
fn gather(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["axis"])?;
    let (source, indices) = (folding.input(0)?, folding.input(1)?);
    let axis = folding.axis(folding.node.int("axis", 0)?, source.dims.len())?;
    let size = source.dims[axis];
    let Some(raw) = indices.integers() else {
        return Err(folding.error("input 1 holds floats, expected integers".into()));
    };
    let picked = raw
        .iter()
        .map(|&index| {
            let positive = if index < 0 { index + size as i64 } else { index };
            usize::try_from(positive).ok().filter(|&index| index < size).ok_or_else(|| {
                folding.error(format!("index {index} is outside of axis {axis} of size {size}"))
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let rank = indices.dims.len();
    let dims = [&source.dims[..axis], indices.dims.as_slice(), &source.dims[axis + 1..]].concat();
    let (strides, index_strides) = (strides(&source.dims), strides(&indices.dims));
    folding.moved(source, dims, |index| {
        let (before, rest) = index.split_at(axis);
        let (within, after) = rest.split_at(rank);
        dot(before, &strides[..axis])
            + picked[dot(within, &index_strides)] * strides[axis]
            + dot(after, &strides[axis + 1..])
    })
}

/// ONNX Reshape, opsets 5 to 21.
fn reshape(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["allowzero"])?;
    let source = folding.input(0)?;
    let wanted = folding.required("shape", 1)?;
    let copies = folding.node.int("allowzero", 0)? == 0;
    let refuse = || folding.error(format!("shape {wanted:?} for {:?}", source.dims));
    let mut open = None;
    let mut dims = Vec::with_capacity(wanted.len());
    for (i, &dim) in wanted.iter().enumerate() {
        dims.push(match dim {
            -1 if open.is_none() => {
                open = Some(i);
                1
            }
            0 if copies => *source.dims.get(i).ok_or_else(refuse)?,
            dim => usize::try_from(dim).map_err(|_| refuse())?,
        });
    }
    if let Some(open) = open {
        let known = folding.count(&dims)?;
        dims[open] = source.values.len().checked_div(known).ok_or_else(refuse)?;
    }
    folding.shaped(source, dims)
}

/// ONNX Slice, opsets 1 to 21.
fn slice(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["axes", "ends", "starts"])?;
    let source = folding.input(0)?;
    let (starts, ends) = (folding.required("starts", 1)?, folding.required("ends", 2)?);
    let all: Vec<i64> = (0..starts.len() as i64).collect();
    let axes = folding.integers("axes", 3)?.unwrap_or(&all);
    let ones = vec![1; starts.len()];
    let steps = folding.integers("steps", 4)?.unwrap_or(&ones);
    if [ends, axes, steps].iter().any(|other| other.len() != starts.len()) {
        return Err(folding.error("starts, ends, axes and steps differ in number".into()));
    }
    let mut dims = source.dims.clone();
    let mut from: Vec<(i128, i128)> = vec![(0, 1); dims.len()];
    for (i, &axis) in axes.iter().enumerate() {
        let axis = folding.axis(axis, dims.len())?;
        let (size, step) = (source.dims[axis] as i128, i128::from(steps[i]));
        let (lowest, highest) = match step {
            0 => return Err(folding.error("a step is 0".into())),
            1.. => (0, size),
            _ => (-1, size - 1),
        };
        let bound = |value: i64| {
            let value = i128::from(value);
            (if value < 0 { value + size } else { value }).clamp(lowest, highest)
        };
        let (start, end) = (bound(starts[i]), bound(ends[i]));
        let count = (end - start + step - step.signum()) / step;
        dims[axis] = usize::try_from(count).unwrap_or(0);
        from[axis] = (start, step);
    }
    let strides = strides(&source.dims);
    folding.moved(source, dims, |index| {
        let at = index.iter().zip(&from).map(|(&i, (start, step))| start + i as i128 * step);
        at.zip(&strides).map(|(at, stride)| at as usize * stride).sum()
    })
}

/// ONNX Transpose, opsets 1 to 21.
fn transpose(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["perm"])?;
    let source = folding.input(0)?;
    let rank = source.dims.len();
    let permutation = match folding.node.ints("perm")? {
        None => (0..rank).rev().collect(),
        Some(axes) => {
            axes.iter().map(|&axis| folding.axis(axis, rank)).collect::<Result<Vec<_>, _>>()?
        }
    };
    if (0..rank).any(|axis| !permutation.contains(&axis)) || permutation.len() != rank {
        return Err(folding.error(format!("{permutation:?} is no permutation of {rank} axes")));
    }
    let strides = strides(&source.dims);
    let dims = permutation.iter().map(|&axis| source.dims[axis]).collect();
    let strides: Vec<usize> = permutation.iter().map(|&axis| strides[axis]).collect();
    folding.moved(source, dims, |index| dot(index, &strides))
}

/// ONNX Unsqueeze, opsets 1 to 21.
fn unsqueeze(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["axes"])?;
    let source = folding.input(0)?;
    let axes = folding.required("axes", 1)?;
    let rank = source.dims.len() + axes.len();
    let mut added = vec![false; rank];
    for &axis in axes {
        added[folding.axis(axis, rank)?] = true;
    }
    let mut old = source.dims.iter();
    let dims: Vec<usize> =
        added.iter().filter_map(|&new| if new { Some(1) } else { old.next().copied() }).collect();
    if dims.len() != rank {
        return Err(folding.error(format!("axes {axes:?} repeat")));
    }
    folding.shaped(source, dims)
}

/// Of a row-major layout. Wraps where another dimension is zero: nothing is read there.
fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; dims.len()];
    for axis in (1..dims.len()).rev() {
        strides[axis - 1] = strides[axis].wrapping_mul(dims[axis]);
    }
    strides
}

fn dot(index: &[usize], strides: &[usize]) -> usize {
    index.iter().zip(strides).map(|(index, stride)| index * stride).sum()
}
