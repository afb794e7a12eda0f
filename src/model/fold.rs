//! Nodes on constants alone, evaluated once while compiling.
//!
//! Exporters compute shapes and pads with little graphs of their own. candle-onnx's evaluator runs
//! them, for operators only that it is known to get right; the golden models check it.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_onnx::onnx::{GraphProto, ModelProto, ValueInfoProto};

use super::Error;
use super::graph::{Constant, Node, Values};

/// Whether `fold` may evaluate this operator.
pub(crate) fn folds(op: &str) -> bool {
    matches!(
        op,
        "Cast"
            | "Concat"
            | "ConstantOfShape"
            | "Gather"
            | "Reshape"
            | "Slice"
            | "Transpose"
            | "Unsqueeze"
    )
}

/// The node's output for constant inputs, by the names the graph gives them.
pub(crate) fn fold(node: &Node, inputs: &[(&str, &Constant)]) -> Result<Constant, Error> {
    let failed = |error: candle_core::Error| {
        node.error(format!("evaluating it on constants failed: {error}"))
    };
    let mut values = HashMap::new();
    for (name, constant) in inputs {
        values.insert((*name).to_owned(), tensor(constant).map_err(failed)?);
    }
    let output = ValueInfoProto { name: node.output.clone(), ..Default::default() };
    let graph =
        GraphProto { node: vec![node.proto.clone()], output: vec![output], ..Default::default() };
    let model = ModelProto { graph: Some(graph), ..Default::default() };
    let mut outputs = candle_onnx::simple_eval(&model, values).map_err(failed)?;
    match outputs.remove(&node.output) {
        Some(value) => constant(&value).map_err(failed),
        None => Err(node.error("evaluating it on constants gave nothing".into())),
    }
}

fn tensor(constant: &Constant) -> candle_core::Result<Tensor> {
    let dims = constant.dims.as_slice();
    match &constant.values {
        Values::F32(values) => Tensor::from_slice(values, dims, &Device::Cpu),
        Values::I64(values) => Tensor::from_slice(values, dims, &Device::Cpu),
    }
}

fn constant(value: &Tensor) -> candle_core::Result<Constant> {
    let flat = value.flatten_all()?;
    let values = match value.dtype() {
        DType::F32 | DType::F64 => Values::F32(flat.to_dtype(DType::F32)?.to_vec1()?),
        _ => Values::I64(flat.to_dtype(DType::I64)?.to_vec1()?),
    };
    Ok(Constant { dims: value.dims().to_vec(), values })
}
