#!/usr/bin/env python3
"""Write the statistics of activations that the taps are tested against: taps-NET.safetensors beside this file.

    python crates/doorward-engine/tests/golden/taps.py

Needs numpy, onnx, onnxruntime, safetensors. One tensor for every value of the graph of NET.onnx, under the value's name: mean,
standard deviation and maximum of each channel over its positions, of the input in NET.safetensors. Channels are second in
`[n, channels, height, width]` and last in `[n, positions, channels]`; `[n, channels]` stands for itself.
"""
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
NETS = ["net-cnn6", "net-resnet", "net-densenet", "net-alexnet", "attention-class-token"]


def statistics(value):
    if value.ndim == 2:
        return value
    value = value.transpose(0, 2, 1) if value.ndim == 3 else value.reshape(*value.shape[:2], -1)
    return np.concatenate([value.mean(2), value.std(2), value.max(2)], 1)


def main():
    for net in NETS:
        model, batch = onnx.load(HERE / f"{net}.onnx"), load_file(HERE / f"{net}.safetensors")["input"]
        names = [name for node in model.graph.node if node.op_type != "Constant" for name in node.output]
        known = {output.name for output in model.graph.output}
        model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = dict(zip(names, session.run(names, {session.get_inputs()[0].name: batch})))
        fit = {name: value for name, value in values.items() if 2 <= value.ndim <= 4 and len(value) == len(batch) and value.dtype == np.float32}
        save_file({name: np.ascontiguousarray(statistics(value), np.float32) for name, value in fit.items()}, HERE / f"taps-{net}.safetensors")


if __name__ == "__main__":
    main()
