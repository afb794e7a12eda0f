//! Operators that pick values out of a row.

mod composed;

use candle_core::{Result, Tensor};

use crate::composition::with_rows;
use crate::kernels::loops;
use crate::kernels::strided::{Walk, copy, row_major};
use crate::operators::{Backward, Kernel, Operator};

/// Values of a row by their strides: ONNX `Slice`, `Expand` and `Gather` of one index.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) name: &'static str,
    pub(crate) in_row: Vec<usize>,
    /// Position of the first value in the input's row.
    pub(crate) offset: isize,
    /// Size and stride of each dimension of the output's row.
    pub(crate) dims: Vec<(usize, isize)>,
}

/// ONNX `Gather` along one dimension.
#[derive(Debug)]
pub(crate) struct Gather {
    pub(crate) indices: Vec<usize>,
    /// Size of the dimension, and values of the dimensions behind it.
    pub(crate) size: usize,
    pub(crate) inner: usize,
    pub(crate) rows: [Vec<usize>; 2],
}

// === impl View ===

impl View {
    fn walk(&self, n: usize) -> Walk<2> {
        let shape = with_rows(n, &self.row());
        let in_len: usize = self.in_row.iter().product();
        let strides: Vec<isize> = std::iter::once(in_len as isize)
            .chain(self.dims.iter().map(|&(_, stride)| stride))
            .collect();
        Walk::new(&shape, [&row_major(&shape), &strides])
    }

    fn row(&self) -> Vec<usize> {
        self.dims.iter().map(|&(size, _)| size).collect()
    }
}

impl Kernel for View {
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let n = inputs[0].dim(0)?;
        let walk = self.walk(n);
        loops::map(self.name, &inputs[0], with_rows(n, &self.row()), |x, out| {
            copy(&walk, self.offset, x, out);
        })
    }

    fn vjp(&self, at: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let cotangent = at.cotangent;
        let n = cotangent.dim(0)?;
        let (walk, offset) = (self.walk(n), self.offset);
        let stride = walk.inner[1];
        let gradient = loops::map(self.name, cotangent, with_rows(n, &self.in_row), |dy, out| {
            walk.each(|[from, to], len| {
                let to = to + offset;
                let dy = &dy[from as usize..][..len];
                if stride == 1 {
                    let out = &mut out[to as usize..][..len];
                    out.iter_mut().zip(dy).for_each(|(out, dy)| *out += dy);
                } else {
                    for (i, dy) in dy.iter().enumerate() {
                        out[(to + i as isize * stride) as usize] += dy;
                    }
                }
            });
        })?;
        Ok(vec![Some(gradient)])
    }
}

impl Kernel for Gather {
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let shape = with_rows(inputs[0].dim(0)?, &self.rows[1]);
        loops::map(self.name(), &inputs[0], shape, |x, out| {
            let blocks = x.chunks_exact(self.size * self.inner);
            for (x, out) in blocks.zip(out.chunks_exact_mut(self.indices.len() * self.inner)) {
                for (&index, out) in self.indices.iter().zip(out.chunks_exact_mut(self.inner)) {
                    out.copy_from_slice(&x[index * self.inner..][..self.inner]);
                }
            }
        })
    }

    fn vjp(&self, at: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let cotangent = at.cotangent;
        let shape = with_rows(cotangent.dim(0)?, &self.rows[0]);
        let gradient = loops::map(self.name(), cotangent, shape, |dy, out| {
            let blocks = dy.chunks_exact(self.indices.len() * self.inner);
            for (dy, out) in blocks.zip(out.chunks_exact_mut(self.size * self.inner)) {
                for (&index, dy) in self.indices.iter().zip(dy.chunks_exact(self.inner)) {
                    let out = &mut out[index * self.inner..][..self.inner];
                    out.iter_mut().zip(dy).for_each(|(out, dy)| *out += dy);
                }
            }
        })?;
        Ok(vec![Some(gradient)])
    }
}
