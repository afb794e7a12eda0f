//! What a step of a program can do: the operator and, in a file of its kind each, the operators.

pub(crate) mod affine;
pub(crate) mod binary;
pub(crate) mod composed;
pub(crate) mod conv;
pub(crate) mod einsum;
pub(crate) mod folded;
pub(crate) mod linear;
pub(crate) mod lrn;
pub(crate) mod matmul;
pub(crate) mod norm;
pub(crate) mod pool;
pub(crate) mod prelu;
pub(crate) mod reduce;
pub(crate) mod resample;
pub(crate) mod select;
pub(crate) mod shape;
pub(crate) mod unary;

use candle_core::{Result, Tensor};

use crate::composition::Kept;
use crate::kernels::affine::ChannelAffine;

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
