"""Writes the ONNX specification's own examples of the operators that are folded, one file each:

    onnx_cases.py DIR
    DOORWARD_ONNX_CASES=DIR cargo test --release specification

A file holds the node, and its inputs and expected outputs as initializers. Needs the Python package onnx.
"""

import pathlib
import re
import sys

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

REGISTRY = pathlib.Path(__file__).parents[2] / "src/model/fold/mod.rs"


def initializer(name, value):
    tensor = onnx.TensorProto()
    tensor.CopyFrom(value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(np.asarray(value)))
    tensor.name = name
    return tensor


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    operators = set(re.findall(r'^    \("(\w+)"', REGISTRY.read_text(), re.MULTILINE))
    for case in collect_testcases(None):
        if case.model is None or len(case.model.graph.node) != 1:
            continue
        graph = case.model.graph
        if graph.node[0].op_type not in operators:
            continue
        for index, (inputs, outputs) in enumerate(case.data_sets or []):
            model = onnx.ModelProto(opset_import=case.model.opset_import)
            model.graph.node.append(graph.node[0])
            try:
                for info, value in zip(graph.input, inputs):
                    model.graph.initializer.append(initializer(info.name, value))
                for info, value in zip(graph.output, outputs):
                    model.graph.initializer.append(initializer("expected_" + info.name, value))
            except (TypeError, NotImplementedError):
                continue  # A sequence or an optional value.
            (folder / f"{case.name}_{index}.onnx").write_bytes(model.SerializeToString())


main(pathlib.Path(sys.argv[1]))
