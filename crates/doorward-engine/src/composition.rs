//! Parts that compositions of candle's operators share: constants on a device, and shapes.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Result, Tensor};

/// Constants of a composition on its device, each made when it is first asked for.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<BTreeMap<&'static str, Tensor>>);

// === impl Kept ===

impl Kept {
    /// Returns what `make` gave the first time.
    pub(crate) fn get(
        &self,
        name: &'static str,
        make: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ready) = kept.get(name) {
            return Ok(ready.clone());
        }
        let made = make()?;
        kept.insert(name, made.clone());
        Ok(made)
    }
}

/// `values` where `condition` holds, zero elsewhere.
pub(crate) fn only_where(condition: &Tensor, values: &Tensor) -> Result<Tensor> {
    condition.where_cond(values, &values.zeros_like()?)
}

/// The sum over every dimension that has one value in `dims`.
pub(crate) fn sum_to(x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    let mut x = x.clone();
    for (dim, &size) in dims.iter().enumerate() {
        if size == 1 && x.dim(dim)? != 1 {
            x = x.sum_keepdim(dim)?;
        }
    }
    Ok(x)
}

/// `x` as `[outer, size, inner]`, its middle dimension times a matrix `[size, other]`:
/// `[outer, other, inner]`.
pub(crate) fn along(x: &Tensor, inner: usize, matrix: &Tensor) -> Result<Tensor> {
    let (size, other) = matrix.dims2()?;
    let x = x.reshape(((), size, inner))?.transpose(1, 2)?.contiguous()?;
    let y = x.reshape(((), size))?.matmul(matrix)?;
    y.reshape(((), inner, other))?.transpose(1, 2)?.contiguous()
}

/// The matrix for [`along`] by which every output is a sum of weighted inputs, of `size` ones.
pub(crate) fn sums(outputs: &[Vec<(usize, f32)>], size: usize, device: &Device) -> Result<Tensor> {
    let mut matrix = vec![0.0; size * outputs.len()];
    for (to, taps) in outputs.iter().enumerate() {
        for &(from, weight) in taps {
            matrix[from * outputs.len() + to] += weight;
        }
    }
    Tensor::from_vec(matrix, (size, outputs.len()), device)
}

/// Places as candle's selections take them.
pub(crate) fn places(places: impl IntoIterator<Item = usize>, device: &Device) -> Result<Tensor> {
    let places: Vec<u32> = places.into_iter().map(|place| place as u32).collect();
    let count = places.len();
    Tensor::from_vec(places, count, device)
}

/// One value for each channel of `x`, beside it.
pub(crate) fn of_channels(
    name: &'static str,
    values: &[f32],
    x: &Tensor,
    kept: &Kept,
) -> Result<Tensor> {
    let mut shape = vec![1; x.rank()];
    shape[1] = values.len();
    kept.get(name, || Tensor::from_slice(values, shape, x.device()))
}

/// `[n, ...row]`
pub(crate) fn with_rows(n: usize, row: &[usize]) -> Vec<usize> {
    std::iter::once(n).chain(row.iter().copied()).collect()
}
