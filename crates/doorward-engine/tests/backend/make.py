#!/usr/bin/env python3
"""Write ONNX's backend tests as files: a model, its inputs, the outputs it has to give.

    python crates/doorward-engine/tests/backend/make.py /tmp/backend                   all that concerns image classifiers
    cargo bench --bench main -- backend /tmp/backend            the engine against them
    cargo bench --bench main -- backend /tmp/backend --json > /tmp/backend.json
    python crates/doorward-engine/tests/backend/make.py /tmp/backend --vendor /tmp/backend.json
                                                                copies small ones that pass to crates/doorward-engine/tests/backend/cases

Needs onnx (1.23 was used; since 1.21 or so its wheel builds the node tests instead of shipping
them) and onnxruntime. DIR/CATEGORY/test_NAME/ holds model.onnx, test_data_set_0/{input,output}_I.pb
and data.json with the operator under test and the tolerances. Categories are ONNX's: `node`,
`pytorch-operator`, `pytorch-converted`, and `light`, published classifiers with made-up weights.

Node tests carry the newest version of their operator. Where that is later than --opset and the
model is still valid and gives the same outputs under --opset (versions that only add element
types), the model is written for --opset; otherwise as it is.
"""
import argparse, collections, json, shutil, sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper, version_converter
from onnx.backend.test import loader

# What the graphs of image classifiers have, and what PyTorch and TensorFlow write around them.
OPERATORS = set("""
    Abs Add And ArgMax ArgMin Attention AveragePool BatchNormalization Cast CastLike Ceil Celu CenterCropPad Clip Concat
    Constant ConstantOfShape Conv ConvTranspose CumSum DepthToSpace Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike
    Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual
    GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization LRN LayerNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg
    Not Or PRelu Pad Pow RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round ScatterElements ScatterND Selu Shape
    Shrink Sigmoid Sign Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tanh
    ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor""".split())
TYPES = {TensorProto.BOOL, TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64}
# ONNX's reference divides by the length before it is rounded; onnxruntime and PyTorch by the rounded one.
DISPUTED = {"test_resize_downsample_scales_cubic_align_corners", "test_resize_downsample_scales_linear_align_corners"}
VENDORED_BYTES, VENDORED_EACH = 1200, 3      # of a case, and cases of an operator


def default_opset(model):
    return next((i for i in model.opset_import if i.domain in ("", "ai.onnx")), None)


def arrays(values):
    return [value if isinstance(value, (TensorProto, np.ndarray, np.generic)) else None for value in values]


def typed(model):
    """Whether all that goes in and out has an element type that classifiers have."""
    infos = [*model.graph.input, *model.graph.output]
    return all(info.type.tensor_type.elem_type in TYPES for info in infos)


def relabelled(model, data, opset):
    """The model for an older operator set, if that changes nothing."""
    older = onnx.ModelProto()
    older.CopyFrom(model)
    default_opset(older).version = opset
    older.ir_version = min(older.ir_version, 10)
    try:
        onnx.checker.check_model(older, full_check=True)
        session = ort.InferenceSession(older.SerializeToString(), providers=["CPUExecutionProvider"])
        inputs, outputs = data
        feeds = {info.name: np.asarray(value) for info, value in zip(older.graph.input, inputs)}
        for got, expected in zip(session.run(None, feeds), outputs):
            np.testing.assert_allclose(got, expected, 1e-3, 1e-6)
    except Exception:                        # not valid, or not the same: the newer one stays
        return None
    return older


def write(folder, model, data, about):
    inputs, outputs = (arrays(values) for values in data)
    if any(value is None for value in [*inputs, *outputs]):
        return False                         # sequences and optionals
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "test_data_set_0").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    for kind, infos, values in (("input", model.graph.input, inputs), ("output", model.graph.output, outputs)):
        for index, (info, value) in enumerate(zip(infos, values)):
            tensor = value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), info.name)
            (folder / "test_data_set_0" / f"{kind}_{index}.pb").write_bytes(tensor.SerializeToString())
    (folder / "data.json").write_text(json.dumps(about) + "\n")
    return True


def node_tests(folder, opset):
    count, others, newer = 0, 0, []
    tests = loader.load_model_tests(kind="node")
    named = {test.name: test for test in tests}
    for test in tests:
        base = named.get(test.name.split("_expanded")[0], test)
        op = base.model.graph.node[0].op_type
        if op not in OPERATORS or any(i.domain not in ("", "ai.onnx") for i in test.model.opset_import) or test.name in DISPUTED:
            continue
        if not typed(test.model):
            others += 1
            continue
        model, data = test.model, test.data_sets[0]
        version = default_opset(model).version
        if version > opset:
            older = relabelled(model, data, opset)
            newer += [] if older else [test.name]
            model = older or model
        elif version < 9:                    # And, Or, Xor and Not have not changed since
            model = relabelled(model, data, 13) or model
        count += write(folder / "node" / test.name, model, data, {"op": op, "rtol": test.rtol, "atol": test.atol})
    print(f"node: {count} cases ({others} of other element types left out), {len(newer)} of them only for operator sets after {opset}: {' '.join(newer)}")


def shipped(folder, kind):
    count = 0
    for source in sorted((Path(loader.DATA_DIR) / kind).glob("test_*")):
        model = onnx.load(source / "model.onnx")
        about = {"op": model.graph.node[-1].op_type, "rtol": 1e-3, "atol": 1e-7}
        if (source / "data.json").exists():
            about |= {key: value for key, value in json.loads((source / "data.json").read_text()).items() if key in about}
        shutil.copytree(source, folder / kind / source.name, dirs_exist_ok=True)
        if default_opset(model).version < 9:
            try:                             # what opset 6 meant, in the words of 13
                model.ir_version = 8         # initializers need not be inputs
                model = version_converter.convert_version(model, 13)
                onnx.checker.check_model(model)
                (folder / kind / source.name / "model.onnx").write_bytes(model.SerializeToString())
            except Exception as error:
                print(f"{source.name} stays as it is: {str(error).strip().splitlines()[0][:150]}")
        (folder / kind / source.name / "data.json").write_text(json.dumps(about) + "\n")
        count += 1
    print(f"{kind}: {count} cases")


def light(folder):
    """As onnx.backend.test.runner does: input values are numbered, outputs come with the wheel."""
    from onnx.backend.test.runner import Runner
    from onnx.backend.test.case import model as models
    count = 0
    for test in models.collect_testcases():
        if test.kind != "real":
            continue
        source = Path(loader.DATA_DIR) / "light" / f"light_{test.model_name}.onnx"
        model = onnx.load(source)
        stored = {tensor.name for tensor in model.graph.initializer}
        infos = [info for info in model.graph.input if info.name not in stored]
        inputs = [Runner.generate_dummy_data(info, seed=0, name=test.model_name, random=False) for info in infos]
        output = onnx.load_tensor(source.with_name(f"light_{test.model_name}_output_0.pb"))
        count += write(folder / "light" / test.name, model, (inputs, [output]), {"op": "classifier", "rtol": test.rtol, "atol": test.atol})
    print(f"light: {count} cases")


def vendor(folder, results):
    """A few of the smallest node tests of each operator, that the engine passes, for `cargo test`."""
    target = Path(__file__).resolve().parent / "cases" / "node"
    shutil.rmtree(target, ignore_errors=True)
    found = collections.defaultdict(list)
    for result in json.loads(results.read_text())["results"]:
        case = folder / result["category"] / result["name"]
        if result["category"] != "node" or not result["state"].startswith("passed") or "_expanded" in result["name"]:
            continue
        size = sum(path.stat().st_size for path in case.rglob("*") if path.is_file())
        if size <= VENDORED_BYTES:
            found[result["op"]].append((size, case))
    for _, cases in sorted(found.items()):
        for _, case in sorted(cases)[-VENDORED_EACH:]:           # the largest of the small
            shutil.copytree(case, target / case.name)
    print(f"{sum(1 for _ in target.iterdir())} cases, {sum(path.stat().st_size for path in target.rglob('*') if path.is_file())} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--opset", type=int, default=21)
    parser.add_argument("--vendor", type=Path, metavar="RESULTS")
    arguments = parser.parse_args()
    if arguments.vendor:
        return vendor(arguments.folder, arguments.vendor)
    node_tests(arguments.folder, arguments.opset)
    for kind in ("pytorch-converted", "pytorch-operator"):
        shipped(arguments.folder, kind)
    light(arguments.folder)


if __name__ == "__main__":
    main()
