#!/usr/bin/env python3
"""Convert classifiers as people do before they serve them, with onnxruntime's logits.

    python crates/doorward-engine/tests/exports/convert.py /tmp/converted MODEL.onnx ...   what is not there yet
    python crates/doorward-engine/tests/exports/convert.py /tmp/converted FOLDER            every file below it
    cargo bench --bench main -- agree /tmp/converted                                        the engine against those

Needs onnx, onnxruntime and safetensors; onnxconverter-common and onnxslim where they are there. DIR/NAME-CONVERSION.onnx
has a DIR/SAME.safetensors with the tensors `input` [2, C, H, W], `logits` and, where sizes are open, `input_shape`. Images
are noise in [0, 1]. Sizes that a file leaves open become 64, channels 3. onnxruntime answers without fusions and row by
row. Files whose output is probabilities have their logarithm as `logits`, which has the same margins. In quantised files a
value between two steps may be rounded to the other one, which moves logits by a step: `agree` calls them OFF by a hundredth.
"""
import sys, zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from safetensors.numpy import save_file

SIDE, ROWS = 64, 2


def session(path, level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL, save=None):
    options = ort.SessionOptions()
    options.log_severity_level, options.graph_optimization_level = 4, level
    if save:
        options.optimized_model_filepath = str(save)
    return ort.InferenceSession(str(path), options)


def images(given, count):
    dims = [d if isinstance(d, int) else None for d in given.shape[1:]]
    chosen = [d or (3 if axis == 0 else SIDE) for axis, d in enumerate(dims)]
    rng = np.random.default_rng(zlib.crc32(given.name.encode()))
    return rng.random((count, *chosen)).astype("f4"), None if all(dims) else chosen


class Reader(CalibrationDataReader):
    def __init__(self, path):
        given = session(path).get_inputs()[0]
        self.name, self.rows = given.name, iter(images(given, 4)[0])

    def get_next(self):
        row = next(self.rows, None)
        return None if row is None else {self.name: row[None]}


def static(kind, **more):
    def convert(source, target):
        quantize_static(source, target, Reader(source), quant_format=kind, **more)
    return convert


def half(source, target):
    from onnxconverter_common import float16
    onnx.save(float16.convert_float_to_float16(onnx.load(source), keep_io_types=False), target)


def half_inside(source, target):
    from onnxconverter_common import float16
    onnx.save(float16.convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def slim(source, target):
    import onnxslim
    onnxslim.slim(str(source), str(target))


def newest(source, target):
    onnx.save(onnx.version_converter.convert_version(onnx.load(source), 22), target)


def optimised(level):
    return lambda source, target: session(source, level, target)


LEVELS = ort.GraphOptimizationLevel
CONVERSIONS = {
    "same": lambda source, target: onnx.save(onnx.load(source), target),
    "dynamic": lambda source, target: quantize_dynamic(source, target),
    "dynamic-channels": lambda source, target: quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8),
    "qdq": static(QuantFormat.QDQ),
    "qdq-channels": static(QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8),
    "operators": static(QuantFormat.QOperator, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8),
    "half": half,
    "half-inside": half_inside,
    "optimised-basic": optimised(LEVELS.ORT_ENABLE_BASIC),
    "optimised-extended": optimised(LEVELS.ORT_ENABLE_EXTENDED),
    "slim": slim,
    "opset-22": newest,
}


def reference(path):
    run = session(path)
    given = run.get_inputs()[0]
    rows, chosen = images(given, ROWS)
    kind = {"tensor(float)": "f4", "tensor(float16)": "f2"}[given.type]
    rows = rows.astype(kind)
    batch = given.shape[0] if isinstance(given.shape[0], int) else 1
    answers = [run.run(None, {given.name: np.repeat(row[None], batch, 0)})[0][:1].astype("f8") for row in rows]
    logits = np.concatenate(answers).reshape(ROWS, -1)
    if (logits >= 0).all() and np.allclose(logits.sum(1), 1, atol=1e-2):
        logits = np.log(np.maximum(logits, 1e-38))
    tensors = {"input": rows.astype("f4"), "logits": logits.astype("f4")}
    if chosen:
        tensors["input_shape"] = np.array(chosen, "i8")
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, str(path.with_suffix(".safetensors")))


def main(folder, *sources):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [file for source in map(Path, sources) for file in (sorted(source.rglob("*.onnx")) if source.is_dir() else [source])]
    for source in files:
        for kind, convert in CONVERSIONS.items():
            stem = source.parent.name if source.stem == "model" else source.stem
            target = folder / f"{stem}-{kind}.onnx"
            if target.with_suffix(".safetensors").exists():
                continue
            try:
                convert(source, target)
                reference(target)
            except Exception as error:                    # a converter that fails on a model says nothing of the engine
                print(f"not made: {target.name}: {type(error).__name__}: {str(error)[:120]}")
                target.unlink(missing_ok=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
