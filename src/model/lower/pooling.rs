//! Pooling, and means over an image.

use super::context::{Context, Lowered, Operand, step};
use crate::model::Error;
use crate::model::conv::Window;
use crate::model::pool::{GlobalAveragePool, Kind, Pool};

/// ONNX MaxPool, opsets 1 to 21, two dimensions, without indices.
pub(super) fn max_pool(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&[
        "auto_pad",
        "ceil_mode",
        "dilations",
        "kernel_shape",
        "pads",
        "storage_order",
        "strides",
    ])?;
    pool(context, Kind::Max)
}

/// ONNX AveragePool, opsets 1 to 21, two dimensions.
pub(super) fn average_pool(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&[
        "auto_pad",
        "ceil_mode",
        "count_include_pad",
        "dilations",
        "kernel_shape",
        "pads",
        "strides",
    ])?;
    let count_padding = context.node.int("count_include_pad", 0)? != 0;
    pool(context, Kind::Average { count_padding })
}

fn pool(context: &Context<'_>, kind: Kind) -> Result<Lowered, Error> {
    let image = context.image(0)?;
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
            step(pool, &[channels, height, width])
        }
        None => Err(context.error(format!("{window:?} does not fit an image of {height}x{width}"))),
    }
}

/// ONNX GlobalAveragePool, opsets 1 to 21, two dimensions.
pub(super) fn global_average_pool(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&[])?;
    let [channels, _, _] = context.image(0)?;
    step(GlobalAveragePool { keep: true }, &[channels, 1, 1])
}

/// ONNX ReduceMean over both axes of an image, opsets 1 to 21.
pub(super) fn reduce_mean(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&["axes", "keepdims", "noop_with_empty_axes"])?;
    let [channels, _, _] = context.image(0)?;
    let axes = match (context.node.ints("axes")?, context.operand(1)) {
        (Some(axes), _) => axes,
        (None, Operand::Absent) => &[],
        (None, _) => context.integers(1)?,
    };
    if !matches!(axes, [2, 3] | [3, 2] | [-2, -1] | [-1, -2]) {
        return Err(context.error(format!("axes {axes:?}, expected both axes of an image")));
    }
    let keep = context.node.int("keepdims", 1)? != 0;
    let shape = if keep { vec![channels, 1, 1] } else { vec![channels] };
    step(GlobalAveragePool { keep }, &shape)
}

/// ONNX GlobalMaxPool, opsets 1 to 21, two dimensions.
pub(super) fn global_max_pool(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&[])?;
    let image = context.image(0)?;
    let window = Window {
        kernel: [image[1], image[2]],
        stride: [1; 2],
        dilation: [1; 2],
        pad_begin: [0; 2],
        pad_end: [0; 2],
    };
    pooled(context, Kind::Max, window, image, false)
}
