//! Pooling, and means over an image.

use super::context::{Context, Lowered};
use super::reduce;
use crate::error::Error;
use crate::kernels::window::Window;
use crate::operators::pool::{Kind, Pool};
use crate::operators::reduce::Reduction;

/// ONNX MaxPool, opsets 1 to 26, two dimensions, without indices.
pub(super) fn max_pool(context: &Context<'_>) -> Result<Lowered, Error> {
    pool(context, Kind::Max)
}

/// ONNX AveragePool, opsets 1 to 26, two dimensions.
pub(super) fn average_pool(context: &Context<'_>) -> Result<Lowered, Error> {
    let count_padding = context.node.int("count_include_pad", 0)? != 0;
    pool(context, Kind::Average { count_padding })
}

fn pool(context: &Context<'_>, kind: Kind) -> Result<Lowered, Error> {
    let (_, image) = context.images(0)?;
    let window = context.window(context.kernel_shape()?, image)?;
    let ceil = context.node.int("ceil_mode", 0)? != 0;
    pooled(context, kind, window, image, ceil)
}

fn pooled(
    context: &Context<'_>,
    kind: Kind,
    window: Window,
    [channels, height, width]: [usize; 3],
    ceil: bool,
) -> Result<Lowered, Error> {
    match Pool::new(kind, window.clone(), [height, width], ceil) {
        Some(pool) => {
            let [height, width] = pool.out_size();
            context.on_images(pool, [channels, height, width])
        }
        None => Err(context.error(format!("{window:?} does not fit an image of {height}x{width}"))),
    }
}

/// ONNX GlobalAveragePool, opsets 1 to 26.
pub(super) fn global_average_pool(context: &Context<'_>) -> Result<Lowered, Error> {
    let axes = (2..context.activation(0)?.rank()).collect();
    reduce::over(context, Reduction::Mean, axes, true)
}

/// ONNX GlobalMaxPool, opsets 1 to 26, two dimensions.
pub(super) fn global_max_pool(context: &Context<'_>) -> Result<Lowered, Error> {
    let (_, image) = context.images(0)?;
    let window = Window {
        kernel: [image[1], image[2]],
        stride: [1; 2],
        dilation: [1; 2],
        pad_begin: [0; 2],
        pad_end: [0; 2],
    };
    pooled(context, Kind::Max, window, image, false)
}
