//! What a step of a program can do: the operator and, in a file of its kind each, the operators.

pub(crate) mod affine;
pub(crate) mod binary;
pub(crate) mod choose;
pub(crate) mod conv;
pub(crate) mod dynamic;
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

/// One differentiable operator with its attributes and constants: its meaning and its gradient.
///
/// Batch is the first dimension of every input and of the output.
pub(crate) trait Operator: std::fmt::Debug + Send + Sync {
    /// The ONNX name, for messages.
    fn name(&self) -> &'static str;

    /// The output for these inputs, by candle's operators: they run on every device.
    fn compose(&self, inputs: &[Tensor], kept: &Kept) -> Result<Tensor>;

    /// The gradient with respect to each input: the cotangent times the Jacobian at the inputs.
    /// `None` where the output does not depend on an input.
    ///
    /// By candle's operators, not by their gradients: several of those are wrong.
    fn compose_vjp(&self, at: &Backward<'_>, kept: &Kept) -> Result<Vec<Option<Tensor>>>;

    /// The values that the gradient reads; the rest is given to it empty.
    fn saves(&self) -> Saves {
        Saves { inputs: true, output: true }
    }

    /// The loops that run the operator on the CPU, where they are faster than its composition.
    fn kernel(&self) -> Option<&dyn Kernel> {
        None
    }

    /// The part of the operator that a neighbour can do for it.
    fn fusible(&self) -> Option<Fusible<'_>> {
        None
    }

    /// True if the output is the input.
    fn is_identity(&self) -> bool {
        false
    }

    /// This operator followed by `next` as one.
    fn followed_by(&self, next: &Fusible<'_>) -> Option<Box<dyn Operator>> {
        let _ = next;
        None
    }

    /// This operator on the output of `previous` as one.
    fn preceded_by(&self, previous: &ChannelAffine) -> Option<Box<dyn Operator>> {
        let _ = previous;
        None
    }
}

/// Loops that run an operator on the CPU.
pub(crate) trait Kernel {
    /// The same as [`Operator::compose`].
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor>;

    /// The same as [`Operator::compose_vjp`].
    fn vjp(&self, at: &Backward<'_>) -> Result<Vec<Option<Tensor>>>;

    /// Multiply-adds of a row, where [`Kernel::forward_shared`] can share them; `row` is the shape
    /// of the first input's.
    fn products(&self, row: &[usize]) -> usize {
        let _ = row;
        0
    }

    /// [`Kernel::forward`] in about as many shares, on the threads of rayon's pool.
    fn forward_shared(&self, inputs: &[Tensor], shares: usize) -> Result<Tensor> {
        let _ = shares;
        self.forward(inputs)
    }
}

/// The point at which a gradient is taken, and the gradient it begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backward<'a> {
    /// Inputs of the forward pass; empty where the operator does not save them.
    pub(crate) inputs: &'a [Tensor],
    /// Output of the forward pass; empty where the operator does not save it.
    pub(crate) output: &'a Tensor,
    /// The gradient with respect to the output.
    pub(crate) cotangent: &'a Tensor,
}

/// Simple work of an operator that the one before it can do as well, or the one after.
#[derive(Debug)]
pub(crate) enum Fusible<'a> {
    /// A scale, a shift and an activation for each channel; what follows may absorb it too.
    Affine(&'a ChannelAffine),
    /// A sum with these values along the last dimension.
    Bias(Vec<f32>),
    /// The dimensions in another order.
    Order(&'a [usize]),
    /// The same row in another shape.
    Row(&'a [usize]),
}

/// The values of a forward pass that a reverse pass reads.
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

/// Every operator's composition against its loops.
#[cfg(test)]
mod composed;
