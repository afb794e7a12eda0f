//! What a step of a program can do, and the per-channel affine that other operators absorb.

use candle_core::{Device, Result, Tensor};
use pulp::{Arch, Simd, WithSimd};

use super::activation::Activation;
use super::composed::Kept;
use super::kernel;
use super::load::{Affine, Load};

/// One differentiable operator with its attributes and constants.
///
/// Batch is the first dimension of every input and of the output.
pub(crate) trait Operator: std::fmt::Debug + Send + Sync {
    /// The ONNX name, for messages.
    fn name(&self) -> &'static str;

    /// The output for these inputs, by candle's operators: they run on every device.
    fn compose(&self, inputs: &[Tensor], kept: &Kept) -> Result<Tensor>;

    /// The gradient with respect to each input: `cotangent` times the Jacobian at `inputs`.
    /// `None` where the output does not depend on an input.
    ///
    /// By candle's operators, not by their gradients: several of those are wrong.
    fn compose_vjp(
        &self,
        inputs: &[Tensor],
        output: &Tensor,
        cotangent: &Tensor,
        kept: &Kept,
    ) -> Result<Vec<Option<Tensor>>>;

    /// [`Operator::compose`] on the CPU.
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        self.compose(inputs, &Kept::default())
    }

    /// [`Operator::compose_vjp`] on the CPU.
    fn vjp(
        &self,
        inputs: &[Tensor],
        output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        self.compose_vjp(inputs, output, cotangent, &Kept::default())
    }

    /// Multiply-adds of a row, where [`Operator::forward_shared`] can share them; `row` is the shape
    /// of the first input's.
    fn products(&self, row: &[usize]) -> usize {
        let _ = row;
        0
    }

    /// [`Operator::forward`] in about as many shares, on the threads of rayon's pool.
    fn forward_shared(&self, inputs: &[Tensor], shares: usize) -> Result<Tensor> {
        let _ = shares;
        self.forward(inputs)
    }

    /// What the gradient reads; the rest is given to it empty.
    fn saves(&self) -> Saves {
        Saves { inputs: true, output: true }
    }

    /// This operator as a per-channel affine, if it is one.
    fn as_channel_affine(&self) -> Option<ChannelAffine> {
        None
    }

    /// `previous` followed by this operator as one.
    fn absorbed_by(&self, previous: &dyn Operator) -> Option<Box<dyn Operator>> {
        previous.absorb_after(&self.as_channel_affine()?)
    }

    /// `x + bias` for every row of the last dimension, after this operator.
    fn absorb_bias(&self, bias: &[f32]) -> Option<Box<dyn Operator>> {
        let _ = bias;
        None
    }

    /// This operator followed by a transposition.
    fn absorb_order(&self, order: &[usize]) -> Option<Box<dyn Operator>> {
        let _ = order;
        None
    }

    /// This operator followed by a reshape of its row.
    fn absorb_reshape(&self, row: &[usize]) -> Option<Box<dyn Operator>> {
        let _ = row;
        None
    }

    /// Whether the output is the input.
    fn is_identity(&self) -> bool {
        false
    }

    /// This operator followed by `next` as one.
    fn absorb_after(&self, next: &ChannelAffine) -> Option<Box<dyn Operator>> {
        let _ = next;
        None
    }

    /// This operator on the output of `previous` as one.
    fn absorb_before(&self, previous: &ChannelAffine) -> Option<Box<dyn Operator>> {
        let _ = previous;
        None
    }
}

/// What of a forward pass a reverse pass reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Saves {
    pub(crate) inputs: bool,
    pub(crate) output: bool,
}

impl Saves {
    pub(crate) const NOTHING: Self = Self { inputs: false, output: false };
    pub(crate) const INPUTS: Self = Self { inputs: true, output: false };
    pub(crate) const OUTPUT: Self = Self { inputs: false, output: true };
}

/// `activation(scale[c] * x + shift[c])` for channel `c`, the dimension after the batch: batch
/// normalisation at inference, constant arithmetic per channel, ReLU and ReLU6.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ChannelAffine {
    pub(crate) scale: Vec<f32>,
    pub(crate) shift: Vec<f32>,
    pub(crate) activation: Activation,
}

impl ChannelAffine {
    /// An activation alone.
    pub(crate) fn unit(channels: usize, activation: Activation) -> Self {
        Self { scale: vec![1.0; channels], shift: vec![0.0; channels], activation }
    }

    /// Whether only the activation is left.
    pub(crate) fn is_unit(&self) -> bool {
        self.scale.iter().all(|&scale| scale == 1.0) && self.shift.iter().all(|&shift| shift == 0.0)
    }

    /// `cotangent` times the derivative at `x`; at a bound of the activation it is zero, as PyTorch's.
    pub(crate) fn gradient(&self, x: &Tensor, cotangent: &Tensor) -> Result<Tensor> {
        let plane = self.plane(x);
        kernel::apply_two("affine gradient", x, cotangent, x.shape(), |x, dy, out| {
            Arch::new().dispatch(Gradient { affine: self, plane, x, dy, out });
        })
    }

    /// The output by candle's operators.
    pub(crate) fn composed(&self, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        self.activation.compose(&self.scaled(x, kept)?)
    }

    /// [`ChannelAffine::gradient`] by candle's operators.
    pub(crate) fn composed_gradient(
        &self,
        x: &Tensor,
        cotangent: &Tensor,
        kept: &Kept,
    ) -> Result<Tensor> {
        let passed = match self.activation {
            Activation::Identity => cotangent.clone(),
            activation => activation.composed_gate(&self.scaled(x, kept)?, cotangent)?,
        };
        match self.is_unit() {
            true => Ok(passed),
            false => passed.broadcast_mul(&of_channels("scale", &self.scale, x, kept)?),
        }
    }

    /// What the activation is taken of.
    fn scaled(&self, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        if self.is_unit() {
            return Ok(x.clone());
        }
        x.broadcast_mul(&of_channels("scale", &self.scale, x, kept)?)?.broadcast_add(&of_channels(
            "shift",
            &self.shift,
            x,
            kept,
        )?)
    }

    fn of_row(&self, row: usize) -> (f32, f32) {
        let channel = row % self.scale.len();
        (self.scale[channel], self.shift[channel])
    }

    fn plane(&self, x: &Tensor) -> usize {
        x.dims()[2..].iter().product()
    }
}

/// [`ChannelAffine::gradient`] of all planes.
struct Gradient<'a> {
    affine: &'a ChannelAffine,
    plane: usize,
    x: &'a [f32],
    dy: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { affine, plane, x, dy, out } = self;
        // Between infinities everything passes: no branch in the loop.
        let [low, high] = affine.activation.bounds();
        let rows =
            x.chunks_exact(plane).zip(dy.chunks_exact(plane)).zip(out.chunks_exact_mut(plane));
        for (i, ((x, dy), out)) in rows.enumerate() {
            let (scale, shift) = affine.of_row(i);
            let ((x, x_rest), (dy, dy_rest)) = (S::as_simd_f32s(x), S::as_simd_f32s(dy));
            let (out, out_rest) = S::as_mut_simd_f32s(out);
            let [scales, shifts, lows, highs] =
                [scale, shift, low, high].map(|value| simd.splat_f32s(value));
            for ((out, dy), x) in out.iter_mut().zip(dy).zip(x) {
                let y = simd.add_f32s(simd.mul_f32s(*x, scales), shifts);
                let inside =
                    simd.and_m32s(simd.greater_than_f32s(y, lows), simd.less_than_f32s(y, highs));
                let passed = simd.mul_f32s(*dy, scales);
                *out = simd.select_f32s(inside, passed, simd.splat_f32s(0.0));
            }
            for ((out, dy), x) in out_rest.iter_mut().zip(dy_rest).zip(x_rest) {
                let y = x * scale + shift;
                *out = if (y > low) & (y < high) { dy * scale } else { 0.0 };
            }
        }
    }
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

impl Operator for ChannelAffine {
    fn name(&self) -> &'static str {
        "channel affine"
    }

    fn compose(&self, inputs: &[Tensor], kept: &Kept) -> Result<Tensor> {
        self.composed(&inputs[0], kept)
    }

    fn compose_vjp(
        &self,
        inputs: &[Tensor],
        _output: &Tensor,
        cotangent: &Tensor,
        kept: &Kept,
    ) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.composed_gradient(&inputs[0], cotangent, kept)?)])
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let plane = self.plane(&inputs[0]);
        let load = Affine { scale: &self.scale, shift: &self.shift, activation: self.activation };
        kernel::map("affine", &inputs[0], inputs[0].shape(), |x, out| {
            for (i, (x, out)) in x.chunks_exact(plane).zip(out.chunks_exact_mut(plane)).enumerate()
            {
                load.row(i % self.scale.len(), x, out);
            }
        })
    }

    fn vjp(
        &self,
        inputs: &[Tensor],
        _output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.gradient(&inputs[0], cotangent)?)])
    }

    fn saves(&self) -> Saves {
        Saves::INPUTS
    }

    fn as_channel_affine(&self) -> Option<ChannelAffine> {
        Some(self.clone())
    }

    fn absorb_after(&self, next: &ChannelAffine) -> Option<Box<dyn Operator>> {
        if self.activation != Activation::Identity {
            return None;
        }
        let scale = self.scale.iter().zip(&next.scale).map(|(a, b)| a * b).collect();
        let shift = self
            .shift
            .iter()
            .zip(next.scale.iter().zip(&next.shift))
            .map(|(shift, (scale, next))| shift * scale + next)
            .collect();
        Some(Box::new(Self { scale, shift, activation: next.activation }))
    }
}

/// An operator on images where rows hold several of them, or have them in other dimensions.
#[derive(Debug)]
pub(crate) struct Folded {
    /// Of `[n, C, H, W]`, one input.
    pub(crate) operator: Box<dyn Operator>,
    /// An image of the input and of the output.
    pub(crate) images: [[usize; 3]; 2],
    /// Of the output.
    pub(crate) row: Vec<usize>,
}

impl Folded {
    fn images(&self, tensor: &Tensor, which: usize) -> Result<Tensor> {
        let [channels, height, width] = self.images[which];
        tensor.reshape(((), channels, height, width))
    }

    fn on_images(
        &self,
        inputs: &[Tensor],
        run: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let y = run(&[self.images(&inputs[0], 0)?])?;
        y.reshape(with_rows(inputs[0].dim(0)?, &self.row))
    }

    fn vjp_on_images(
        &self,
        inputs: &[Tensor],
        output: &Tensor,
        cotangent: &Tensor,
        run: impl Fn(&[Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>>,
    ) -> Result<Vec<Option<Tensor>>> {
        // What was not kept is empty, and stays so.
        let kept = |tensor: &Tensor, which: usize| match tensor.elem_count() {
            0 => Ok(tensor.clone()),
            _ => self.images(tensor, which),
        };
        let (x, y) = (kept(&inputs[0], 0)?, kept(output, 1)?);
        let dy = self.images(cotangent, 1)?;
        let rows = |gradient: Tensor| gradient.reshape((cotangent.dim(0)?, ()));
        let gradients = run(&[x], &y, &dy)?.into_iter();
        gradients.map(|gradient| gradient.map(rows).transpose()).collect()
    }
}

impl Operator for Folded {
    fn name(&self) -> &'static str {
        self.operator.name()
    }

    fn compose(&self, inputs: &[Tensor], kept: &Kept) -> Result<Tensor> {
        self.on_images(inputs, |images| self.operator.compose(images, kept))
    }

    fn compose_vjp(
        &self,
        inputs: &[Tensor],
        output: &Tensor,
        cotangent: &Tensor,
        kept: &Kept,
    ) -> Result<Vec<Option<Tensor>>> {
        let run = |x: &[Tensor], y: &Tensor, dy: &Tensor| self.operator.compose_vjp(x, y, dy, kept);
        self.vjp_on_images(inputs, output, cotangent, run)
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        self.on_images(inputs, |images| self.operator.forward(images))
    }

    fn vjp(
        &self,
        inputs: &[Tensor],
        output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let run = |x: &[Tensor], y: &Tensor, dy: &Tensor| self.operator.vjp(x, y, dy);
        self.vjp_on_images(inputs, output, cotangent, run)
    }

    fn saves(&self) -> Saves {
        self.operator.saves()
    }
}

/// `[n, ...row]`
pub(crate) fn with_rows(n: usize, row: &[usize]) -> Vec<usize> {
    std::iter::once(n).chain(row.iter().copied()).collect()
}

/// `x + y` for equal shapes; on the CPU on this thread, where candle's own would wake its thread
/// pool.
pub(crate) fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if !matches!(x.device(), Device::Cpu) {
        return x + y;
    }
    kernel::zip("add", x, y, x.shape(), |x, y, out| {
        for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
            *out = x + y;
        }
    })
}
