//! One of two values, by a condition.

use candle_core::{Result, Tensor};

use crate::composition::{Kept, sum_to, with_rows};
use crate::operators::binary::Term;
use crate::operators::{Backward, Operator, Saves};

/// ONNX `Where`: the second operand where the first is not zero, else the third.
#[derive(Debug)]
pub(crate) struct Choose {
    pub(crate) terms: [Term; 3],
    /// Shape of the output's row.
    pub(crate) row: Vec<usize>,
}

// === impl Choose ===

impl Choose {
    /// The condition and both values, repeated to the output's shape.
    fn operands(&self, inputs: &[Tensor]) -> Result<[Tensor; 3]> {
        let mut given = inputs.iter();
        let shape = with_rows(inputs[0].dim(0)?, &self.row);
        let mut operand = |term: &Term| {
            let tensor = match term {
                Term::Constant(constant) => constant.clone(),
                Term::Input(row) => match given.next() {
                    Some(input) => input.reshape(with_rows(input.dim(0)?, row))?,
                    None => candle_core::bail!("an operand is absent"),
                },
            };
            tensor.broadcast_as(shape.as_slice())?.contiguous()
        };
        let [condition, holds, fails] = &self.terms;
        let condition = operand(condition)?.ne(0f32)?;
        Ok([condition, operand(holds)?, operand(fails)?])
    }
}

impl Operator for Choose {
    fn name(&self) -> &'static str {
        "Where"
    }

    fn compose(&self, inputs: &[Tensor], _kept: &Kept) -> Result<Tensor> {
        let [condition, holds, fails] = self.operands(inputs)?;
        condition.where_cond(&holds, &fails)
    }

    fn compose_vjp(&self, at: &Backward<'_>, _kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let [condition, ..] = self.operands(at.inputs)?;
        let none = at.cotangent.zeros_like()?;
        let shares = [
            none.clone(),
            condition.where_cond(at.cotangent, &none)?,
            condition.where_cond(&none, at.cotangent)?,
        ];
        let varying = self.terms.iter().zip(shares).filter_map(|(term, share)| match term {
            Term::Input(row) => Some((row, share)),
            Term::Constant(_) => None,
        });
        let rows = at.cotangent.dim(0)?;
        varying.map(|(row, share)| Ok(Some(sum_to(&share, &with_rows(rows, row))?))).collect()
    }

    fn saves(&self) -> Saves {
        Saves::INPUTS
    }
}
