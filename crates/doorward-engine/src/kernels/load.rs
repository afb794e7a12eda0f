//! The way of an input's values into a kernel: as they are, or through what precedes it.

use crate::kernels::activation::Activation;

/// The way of input values into the planes; copies as many values as both slices have.
pub(crate) trait Load: Copy + Sync {
    /// True if values enter as they are.
    const PLAIN: bool = false;

    fn row(&self, channel: usize, from: &[f32], to: &mut [f32]);
}

/// Values as they are.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Load for Plain {
    const PLAIN: bool = true;

    #[inline(always)]
    fn row(&self, _channel: usize, from: &[f32], to: &mut [f32]) {
        let n = from.len().min(to.len());
        copy(&from[..n], &mut to[..n]);
    }
}

/// Lengths known while compiling need no call.
#[inline(always)]
pub(crate) fn copy(from: &[f32], to: &mut [f32]) {
    match from.len() {
        32 => to.copy_from_slice(&from[..32]),
        16 => to.copy_from_slice(&from[..16]),
        8 => to.copy_from_slice(&from[..8]),
        4 => to.copy_from_slice(&from[..4]),
        _ => to.copy_from_slice(from),
    }
}

/// Every `step`th value, as many as `to` takes.
#[inline(always)]
pub(crate) fn every(step: usize, from: &[f32], to: &mut [f32]) {
    if step == 2 {
        // A constant step becomes shuffles; the last value may have no partner.
        for (to, pair) in to.iter_mut().zip(from.as_chunks::<2>().0) {
            *to = pair[0];
        }
        if let (Some(to), [last]) = (to.get_mut(from.len() / 2), from.as_chunks::<2>().1) {
            *to = *last;
        }
        return;
    }
    for (to, from) in to.iter_mut().zip(from.iter().step_by(step)) {
        *to = *from;
    }
}

/// Scaled, shifted and cut at the bounds of the activation, per channel.
#[derive(Clone, Copy)]
pub(crate) struct Affine<'a> {
    pub(crate) scale: &'a [f32],
    pub(crate) shift: &'a [f32],
    pub(crate) activation: Activation,
}

impl Load for Affine<'_> {
    #[inline(always)]
    fn row(&self, channel: usize, from: &[f32], to: &mut [f32]) {
        let (scale, shift) = (self.scale[channel], self.shift[channel]);
        match self.activation {
            Activation::Identity => {
                for (to, from) in to.iter_mut().zip(from) {
                    *to = from * scale + shift;
                }
            }
            Activation::Relu => {
                for (to, from) in to.iter_mut().zip(from) {
                    *to = (from * scale + shift).max(0.0);
                }
            }
            Activation::Clip { low, high } => {
                for (to, from) in to.iter_mut().zip(from) {
                    *to = (from * scale + shift).max(low).min(high);
                }
            }
        }
    }
}
