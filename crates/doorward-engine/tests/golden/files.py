#!/usr/bin/env python3
"""Make classifiers as people's files have them, each a few kilobytes, with onnxruntime's logits.

    python crates/doorward-engine/tests/golden/files.py             rewrites tests/golden/files/*
    python crates/doorward-engine/tests/golden/files.py --only qdq  those whose name contains a text

Needs onnx, onnxruntime and safetensors. A case is NAME.onnx and NAME.safetensors with tensors

    input        [3, C, H, W], values as the model takes them, channels first whatever the file has
    logits       [3, labels], of onnxruntime, each row in a call of its own
    input_shape  the shape of a row that has to be chosen, if there is one

Weights and inputs come from a seed that is made from the case's name.
"""
import argparse, zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T, helper as h, numpy_helper as nh
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent / "files"
ROWS, C, H, W, LABELS, WIDTH = 3, 3, 9, 8, 5, 6
FLOAT, X, Y = T.FLOAT, ("x", T.FLOAT, ["batch", C, H, W]), ("logits", T.FLOAT, ["batch", LABELS])
CASES = {}


def case(function):
    CASES[function.__name__.replace("_", "-")] = function
    return function


class Graph:
    """Nodes and initializers of one case; `logits` names the tensor that is compared."""

    def __init__(self, name):
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))
        self.nodes, self.constants, self.functions = [], [], []
        self.input, self.outputs, self.opset, self.ir = X, [Y], 17, 9
        self.logits, self.order, self.domains, self.input_shape = "logits", (0, 1, 2, 3), [], None

    def node(self, op, inputs, outputs, **attributes):
        outputs = [outputs] if isinstance(outputs, str) else outputs
        self.nodes.append(h.make_node(op, inputs.split() if isinstance(inputs, str) else inputs, outputs, **attributes))
        return outputs[0]

    def weights(self, name, *shape, scale=.5):
        self.constants.append(nh.from_array((self.rng.normal(size=shape) * scale).astype("f4"), name))
        return name

    def constant(self, name, value, dtype="f4"):
        self.constants.append(nh.from_array(np.array(value, dtype), name))
        return name

    def body(self, x="x", channels=C, labels=LABELS):
        """Convolution, ReLU, average, fully connected: `features` and `logits`."""
        self.stem(x, channels)
        return self.head("r", labels)

    def stem(self, x="x", channels=C):
        self.node("Conv", [x, self.weights("w", WIDTH, channels, 3, 3), self.weights("b", WIDTH)], "c")
        return self.node("Relu", "c", "r")

    def head(self, x, labels=LABELS):
        self.node("GlobalAveragePool", [x], "g")
        self.node("Flatten", "g", "features")
        return self.node("Gemm", ["features", self.weights("W", labels, WIDTH), self.weights("B", labels)], "logits", transB=1)

    def model(self, extra=()):
        value = lambda v: h.make_tensor_value_info(*v)
        outputs = [value(o) for o in [*self.outputs, *extra]]
        graph = h.make_graph(self.nodes, "case", [value(self.input)], outputs, self.constants)
        opsets = [h.make_opsetid("", self.opset), *[h.make_opsetid(d, v) for d, v in self.domains]]
        return h.make_model(graph, functions=self.functions, opset_imports=opsets, ir_version=self.ir)


# ---------------------------------------------------------------- inputs

@case
def open_height_width(g):
    g.input, g.input_shape = ("x", FLOAT, ["batch", C, "height", "width"]), [C, H, W]
    g.body()

@case
def open_everything(g):
    g.input, g.input_shape = ("x", FLOAT, ["batch", "channels", "height", "width"]), [C, H, W]
    g.body()

@case
def open_channels_last(g):
    g.input, g.input_shape, g.order = ("x", FLOAT, ["batch", None, None, C]), [H, W, C], (0, 2, 3, 1)
    g.node("Transpose", "x", "t", perm=[0, 3, 1, 2]); g.body("t")

@case
def bytes_channels_first(g):
    g.input = ("x", T.UINT8, ["batch", C, H, W])
    g.node("Cast", "x", "f", to=FLOAT); g.node("Div", ["f", g.constant("k", 255)], "n"); g.body("n")

@case
def bytes_channels_last(g):
    g.input, g.order = ("x", T.UINT8, ["batch", H, W, C]), (0, 2, 3, 1)
    g.node("Cast", "x", "f", to=FLOAT); g.node("Transpose", "f", "t", perm=[0, 3, 1, 2])
    g.node("Sub", ["t", g.constant("m", np.arange(C).reshape(C, 1, 1) + 120)], "s")
    g.node("Mul", ["s", g.constant("k", 1 / 64)], "n"); g.body("n")

@case
def one_channel_last_reshaped(g):
    g.input, g.order = ("x", FLOAT, ["batch", H, W, 1]), (0, 2, 3, 1)
    g.node("Reshape", ["x", g.constant("s", [-1, 1, H, W], "i8")], "t"); g.body("t", 1)

@case
def channels_last_as_a_list(g):
    g.input, g.order = ("x", FLOAT, ["batch", H, W, C]), (0, 2, 3, 1)
    g.node("Reshape", ["x", g.constant("s", [-1, H * W * C], "i8")], "t")
    g.node("MatMul", ["t", g.weights("W", H * W * C, LABELS)], "logits")

@case
def width_of_three(g):
    g.input = ("x", FLOAT, ["batch", 8, 9, 3])
    g.node("Mul", ["x", g.constant("k", 2)], "n"); g.body("n", 8)

@case
def half_precision(g):
    g.input, g.outputs = ("x", T.FLOAT16, ["batch", C, H, W]), [("y", T.FLOAT16, ["batch", LABELS])]
    g.node("Cast", "x", "f", to=FLOAT); g.body("f"); g.node("Cast", "logits", "y", to=T.FLOAT16)

@case
def batch_of_eight(g):
    g.input, g.outputs = ("x", FLOAT, [8, C, H, W]), [("logits", FLOAT, [8, LABELS])]
    g.body()


# ---------------------------------------------------------------- outputs

@case
def features_beside(g):
    g.outputs = [("features", FLOAT, ["batch", WIDTH]), Y]
    g.body()

@case
def map_beside(g):
    # A projection of the features, which the scores are not made of.
    g.outputs = [("e", FLOAT, ["batch", WIDTH, H - 2, W - 2]), Y]
    g.body(); g.node("Tanh", "c", "e")

@case
def probabilities_beside(g):
    g.outputs = [Y, ("p", FLOAT, ["batch", LABELS])]
    g.body(); g.node("Softmax", "logits", "p", axis=1)

@case
def label_beside(g):
    g.outputs = [("label", T.INT64, ["batch"]), ("p", FLOAT, ["batch", LABELS])]
    g.body(); g.node("Softmax", "logits", "p", axis=1); g.node("ArgMax", "p", "label", axis=1, keepdims=0)

@case
def label_alone(g):
    g.outputs = [("label", T.INT64, ["batch"])]
    g.body(); g.node("ArgMax", "logits", "label", axis=1, keepdims=0)

@case
def highest_two(g):
    g.outputs = [("v", FLOAT, ["batch", 2]), ("i", T.INT64, ["batch", 2])]
    g.body(); g.node("TopK", ["logits", g.constant("k", [2], "i8")], ["v", "i"], axis=1)

@case
def dictionary(g):
    g.opset, g.domains = 12, [("ai.onnx.ml", 1)]
    g.body(); g.node("Softmax", "logits", "p", axis=1)
    g.node("ArgMax", "logits", "l", axis=1, keepdims=0)
    g.nodes.append(h.make_node("ZipMap", ["p"], ["z"], domain="ai.onnx.ml", classlabels_int64s=list(range(LABELS))))
    g.outputs = [("l", T.INT64, ["batch"]), ("p", FLOAT, ["batch", LABELS])]

@case
def four_axes(g):
    g.outputs = [("logits", FLOAT, ["batch", LABELS, 1, 1])]
    g.stem(); g.node("GlobalAveragePool", "r", "g"); g.node("Conv", ["g", g.weights("k", LABELS, WIDTH, 1, 1)], "logits")


# ---------------------------------------------------------------- graphs

def plain(opset, ir):
    def build(g):
        g.opset, g.ir = opset, ir
        g.body()
    return build

for opset, ir in [(7, 4), (8, 4), (22, 10), (23, 11), (24, 11)]:
    CASES[f"opset-{opset}"] = plain(opset, ir)

@case
def nodes_out_of_order(g):
    g.body("h"); g.nodes.reverse(); g.node("Identity", "x", "h")

@case
def own_function(g):
    inner = h.make_function("local", "scaled", ["a"], ["b"], [
        h.make_node("Constant", [], ["two"], value_float=2.), h.make_node("Mul", ["a", "two"], ["b"])],
        [h.make_opsetid("", 17)])
    body = [h.make_node("scaled", ["a"], ["s"], domain="local"), h.make_node("LeakyRelu", ["s"], ["b"])]
    body[1].attribute.append(onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope"))
    outer = h.make_function("local", "act", ["a"], ["b"], body, [h.make_opsetid("", 17), h.make_opsetid("local", 1)], ["slope"])
    g.functions, g.domains = [inner, outer], [("local", 1)]
    g.body()
    g.nodes[1] = h.make_node("act", ["c"], ["r"], domain="local", slope=.25)
    # Called twice: what is inside has a name of its own each time.
    g.nodes.insert(0, h.make_node("act", ["x"], ["x2"], domain="local", slope=.5)); g.nodes[1].input[0] = "x2"

@case
def constant_if(g):
    g.stem(); g.node("GlobalAveragePool", "r", "g")
    axes = nh.from_array(np.array([2, 3]), "axes")
    squeeze = h.make_graph([h.make_node("Squeeze", ["g", "axes"], ["sq"])], "then", [], [h.make_tensor_value_info("sq", FLOAT, None)], [axes])
    same = h.make_graph([h.make_node("Identity", ["g"], ["id"])], "else", [], [h.make_tensor_value_info("id", FLOAT, None)])
    g.node("Shape", "g", "sh"); g.node("Gather", ["sh", g.constant("two", 2, "i8")], "d"); g.node("Equal", ["d", g.constant("one", 1, "i8")], "is")
    g.node("If", "is", "f", then_branch=squeeze, else_branch=same)
    g.node("Gemm", ["f", g.weights("W", WIDTH, LABELS)], "logits")

@case
def initializers_as_inputs(g):
    g.body()

@case
def where_greater(g):
    g.stem(); g.node("Greater", ["r", g.constant("t", .5)], "m"); g.node("Where", ["m", "r", g.weights("o", WIDTH, 1, 1)], "q"); g.head("q")

@case
def masked_attention(g):
    # Scores with minus infinity where a constant says so.
    g.stem(); n = (H - 2) * (W - 2)
    g.node("Reshape", ["r", g.constant("s", [0, WIDTH, -1], "i8")], "k"); g.node("Transpose", "k", "q", perm=[0, 2, 1])
    g.node("MatMul", "q k", "a"); g.node("Where", [g.constant("m", np.tri(n), "?"), "a", g.constant("low", -np.inf)], "am")
    g.node("Softmax", "am", "p", axis=-1); g.node("MatMul", "p q", "o"); g.node("ReduceMean", "o", "f", axes=[1], keepdims=0)
    g.node("Gemm", ["f", g.weights("W", WIDTH, LABELS)], "logits")

@case
def logic(g):
    g.stem(); g.node("Less", ["r", g.constant("t", .75)], "a"); g.node("GreaterOrEqual", ["r", g.constant("u", .25)], "e")
    g.node("LessOrEqual", ["c", g.constant("v", .5)], "l"); g.node("Not", "l", "n")
    g.node("And", "a e", "both"); g.node("Or", "both n", "any"); g.node("Cast", "any", "f", to=FLOAT); g.node("Mul", "f c", "z"); g.head("z")

@case
def rounding(g):
    g.stem(); g.node("Mul", ["c", g.constant("k", 4)], "s")
    for op in ("Floor", "Ceil", "Round", "Sign"):
        g.node(op, "s", op)
    g.node("Sum", "Floor Ceil Round Sign s", "z"); g.head("z")

@case
def mean_of_three(g):
    g.stem(); g.node("Neg", "c", "n"); g.node("Mean", "r n c", "z"); g.head("z")

@case
def lp_normalized(g):
    g.stem(); g.node("LpNormalization", "r", "a", axis=1, p=2); g.node("LpNormalization", "c", "b1", axis=-1, p=1)
    g.node("Add", "a b1", "z"); g.head("z")

@case
def mean_variance_normalized(g):
    g.stem(); g.node("MeanVarianceNormalization", "c", "n", axes=[2, 3]); g.node("Relu", "n", "z"); g.head("z")

@case
def global_lp_pool(g):
    g.stem(); g.node("GlobalLpPool", "r", "g", p=2); g.node("Flatten", "g", "f"); g.node("Gemm", ["f", g.weights("W", WIDTH, LABELS)], "logits")

@case
def tiled(g):
    g.stem(); g.node("Tile", ["r", g.constant("t", [1, 1, 2, 3], "i8")], "t2"); g.node("Conv", ["t2", g.weights("v", WIDTH, WIDTH, 3, 3)], "z"); g.head("z")

def transposed(name, groups, shape, **attributes):
    def build(g):
        g.stem(); g.node("ConvTranspose", ["r", g.weights("v", *shape), g.weights("vb", shape[1] * groups)], "t", group=groups, **attributes)
        g.node("Relu", "t", "u"); g.node("GlobalAveragePool", "u", "g"); g.node("Flatten", "g", "f")
        g.node("Gemm", ["f", g.weights("W", shape[1] * groups, LABELS)], "logits")
    CASES[f"conv-transpose-{name}"] = build

transposed("stride-2", 1, (WIDTH, 4, 2, 2), strides=[2, 2])
transposed("pads", 1, (WIDTH, 4, 3, 4), strides=[3, 2], pads=[1, 0, 2, 1], output_padding=[1, 0])
transposed("groups", 2, (WIDTH, 2, 3, 3), pads=[1, 1, 1, 1])
transposed("dilated", 3, (WIDTH, 1, 2, 3), strides=[1, 2], dilations=[2, 1])
transposed("same-upper", 1, (WIDTH, 4, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER")

@case
def resized_constant(g):
    g.node("Resize", [g.weights("pe", 1, WIDTH, 4, 3), "", "", g.constant("size", [1, WIDTH, H - 2, W - 2], "i8")], "per",
           mode="cubic", coordinate_transformation_mode="half_pixel", cubic_coeff_a=-.75)
    g.stem(); g.node("Add", "c per", "a"); g.node("Relu", "a", "z"); g.head("z")

@case
def standardised_weights(g):
    g.node("BatchNormalization", [g.weights("wr", 1, WIDTH, C * 9), g.weights("s", WIDTH), g.constant("zero", np.zeros(WIDTH)), "zero", g.constant("one", np.ones(WIDTH))],
           ["ws", "mm", "vv"], training_mode=1, epsilon=1e-6)
    g.node("Reshape", ["ws", g.constant("shape", [WIDTH, C, 3, 3], "i8")], "w")
    g.node("Conv", "x w", "c"); g.node("Relu", "c", "r"); g.head("r")

@case
def mask_over_the_batch(g):
    # Shifted windows whose mask is expanded to the batch, as transformers' Swin writes it.
    g.input = ("x", FLOAT, ["batch", C, 8, 8])
    g.node("Conv", ["x", g.weights("w", 4, C, 1, 1)], "c")
    g.node("Reshape", ["c", g.constant("r1", [-1, 4, 2, 4, 2, 4], "i8")], "a"); g.node("Transpose", "a", "b", perm=[0, 2, 4, 3, 5, 1])
    g.node("Reshape", ["b", g.constant("r2", [-1, 1, 16, 4], "i8")], "t"); g.node("Transpose", "t", "tt", perm=[0, 1, 3, 2]); g.node("MatMul", "t tt", "s")
    g.node("Shape", "x", "sh"); g.node("Gather", ["sh", g.constant("i0", [0], "i8")], "bb"); g.node("Concat", ["bb", g.constant("rest", [4, 1, 16, 16], "i8")], "es", axis=0)
    g.node("Unsqueeze", [g.weights("mask", 4, 1, 16, 16, scale=3), "i0"], "mu"); g.node("Expand", "mu es", "me"); g.node("Reshape", ["me", g.constant("r3", [-1, 1, 16, 16], "i8")], "mr")
    g.node("Add", "s mr", "sm"); g.node("Softmax", "sm", "p", axis=-1); g.node("MatMul", "p t", "o"); g.node("Reshape", ["o", g.constant("r4", [-1, 64, 4], "i8")], "oo")
    g.node("ReduceMean", "oo", "g", axes=[1], keepdims=0); g.node("Gemm", ["g", g.weights("W", 4, LABELS)], "logits")

@case
def gate_of_softmax(g):
    g.stem(); g.node("GlobalAveragePool", "r", "g"); g.node("Softmax", "g", "gs", axis=1); g.node("Mul", "g gs", "gg"); g.node("Flatten", "gg", "f")
    g.node("Gemm", ["f", g.weights("W", WIDTH, LABELS)], "logits")

@case
def softmax_by_default_axis(g):
    g.opset, g.outputs = 11, [("p", FLOAT, ["batch", LABELS])]
    g.body(); g.node("Softmax", "logits", "p")

@case
def fused_by_onnxruntime(g):
    g.domains = [("com.microsoft", 1)]
    g.node("FusedConv", ["x", g.weights("w", WIDTH, C, 3, 3), g.weights("b", WIDTH)], "r", activation="LeakyRelu", activation_params=[.1])
    g.nodes[-1].domain = "com.microsoft"
    g.node("FusedConv", ["r", g.weights("w2", WIDTH, WIDTH, 1, 1)], "q", activation="Relu"); g.nodes[-1].domain = "com.microsoft"
    for op, inputs, output in [("Gelu", "q", "a"), ("QuickGelu", "a", "b2"), ("FastGelu", "b2", "z")]:
        g.node(op, inputs, output); g.nodes[-1].domain = "com.microsoft"
    g.head("z")


# ---------------------------------------------------------------- integers

def quantize(g, x, scale, zero, dtype="i1"):
    s, z = g.constant(f"{x}_s", scale), g.constant(f"{x}_z", zero, dtype)
    g.node("QuantizeLinear", [x, s, z], f"{x}_q")
    return g.node("DequantizeLinear", [f"{x}_q", s, z], f"{x}_d")

@case
def qdq_signed(g):
    x = quantize(g, "x", .01, -5)
    g.constants.append(nh.from_array(g.rng.integers(-99, 99, (WIDTH, C, 3, 3)).astype("i1"), "wq"))
    g.node("DequantizeLinear", ["wq", g.constant("ws", np.linspace(.004, .008, WIDTH)), g.constant("wz", np.zeros(WIDTH), "i1")], "w", axis=0)
    g.node("Conv", [x, "w"], "c"); g.node("Relu", "c", "r"); g.head(quantize(g, "r", .0217, -128))

@case
def qdq_unsigned(g):
    x = quantize(g, "x", .008, 3, "u1")
    g.stem(x); g.head(quantize(g, "r", .02, 0, "u1"))

@case
def qdq_of_constants(g):
    # Weights that are quantised in the graph, one scale for each output.
    g.weights("wf", WIDTH, C, 3, 3); s, z = g.constant("ws", np.linspace(.01, .02, WIDTH)), g.constant("wz", np.zeros(WIDTH), "i1")
    g.node("QuantizeLinear", ["wf", s, z], "wq", axis=0); g.node("DequantizeLinear", ["wq", s, z], "w", axis=0)
    g.node("Conv", "x w", "c"); g.node("Relu", "c", "r"); g.head("r")

@case
def dequantized_weight(g):
    g.stem(); g.node("GlobalAveragePool", "r", "g"); g.node("Flatten", "g", "f")
    g.constants.append(nh.from_array(g.rng.integers(-99, 99, (WIDTH, LABELS)).astype("i1"), "Wq"))
    g.node("DequantizeLinear", ["Wq", g.constant("ws", .01)], "Wf"); g.node("MatMul", "f Wf", "logits")

@case
def dynamic_matrix(g):
    g.stem(); g.node("GlobalAveragePool", "r", "g"); g.node("Flatten", "g", "f")
    g.node("DynamicQuantizeLinear", "f", ["fq", "fs", "fz"])
    g.constants.append(nh.from_array(g.rng.integers(-99, 99, (WIDTH, LABELS)).astype("i1"), "Wq"))
    g.node("MatMulInteger", ["fq", "Wq", "fz", g.constant("wz", 2, "i1")], "mi"); g.node("Cast", "mi", "mf", to=FLOAT)
    g.node("Mul", ["fs", g.constant("ws", .01)], "sc"); g.node("Mul", "mf sc", "m"); g.node("Add", ["m", g.weights("B", LABELS)], "logits")

@case
def dynamic_tokens_by_channel(g):
    # A scale for each output, on tokens and then on their mean.
    g.stem(); g.node("Reshape", ["r", g.constant("s", [0, WIDTH, -1], "i8")], "k"); g.node("Transpose", "k", "t", perm=[0, 2, 1])
    for x, name, outputs in [("t", "u", WIDTH), ("m", "logits", LABELS)]:
        if x == "m":
            g.node("ReduceMean", "u", "m", axes=[1], keepdims=0)
        g.node("DynamicQuantizeLinear", x, [f"{x}q", f"{x}s", f"{x}z"])
        g.constants.append(nh.from_array(g.rng.integers(-99, 99, (WIDTH, outputs)).astype("i1"), f"{x}W"))
        g.node("MatMulInteger", [f"{x}q", f"{x}W", f"{x}z"], f"{x}i"); g.node("Cast", f"{x}i", f"{x}f", to=FLOAT)
        g.node("Mul", [f"{x}s", g.constant(f"{x}ws", np.linspace(.004, .01, outputs))], f"{x}c"); g.node("Mul", [f"{x}f", f"{x}c"], name)

@case
def dynamic_convolution(g):
    g.node("DynamicQuantizeLinear", "x", ["xq", "xs", "xz"])
    g.constants.append(nh.from_array(g.rng.integers(0, 255, (WIDTH, C, 3, 3)).astype("u1"), "wq"))
    g.node("ConvInteger", ["xq", "wq", "xz", g.constant("wz", 128, "u1")], "ci", pads=[1, 1, 1, 1]); g.node("Cast", "ci", "cf", to=FLOAT)
    g.node("Mul", ["xs", g.constant("ws", .005)], "sc"); g.node("Mul", "cf sc", "m"); g.node("Relu", "m", "r"); g.head("r")

@case
def operators_on_integers(g):
    g.domains = [("com.microsoft", 1)]
    one = lambda name, value, dtype="f4": g.constant(name, value, dtype)
    g.node("QuantizeLinear", ["x", one("xs", .008), one("xz", 3, "u1")], "x0")
    g.node("Pad", ["x0", one("pads", [0, 0, 1, 0, 0, 0, 1, 2], "i8"), "xz"], "xq")
    g.constants.append(nh.from_array(g.rng.integers(-99, 99, (WIDTH, C, 3, 3)).astype("i1"), "wq"))
    g.constants.append(nh.from_array(g.rng.integers(-900, 900, WIDTH).astype("i4"), "bq"))
    g.node("QLinearConv", ["xq", "xs", "xz", "wq", one("ws", np.linspace(.004, .008, WIDTH)), one("wz", np.zeros(WIDTH), "i1"), one("cs", .03), one("cz", 90, "u1"), "bq"], "cq")
    ms = lambda op, inputs, output, **a: (g.node(op, inputs, output, **a), setattr(g.nodes[-1], "domain", "com.microsoft"))
    ms("QLinearLeakyRelu", ["cq", "cs", "cz", one("rs", .02), one("rz", 40, "u1")], "rq", alpha=.1)
    ms("QLinearAdd", ["rq", "rs", "rz", "cq", "cs", "cz", one("as", .05), one("az", 100, "u1")], "aq")
    ms("QLinearGlobalAveragePool", ["aq", "as", "az", one("gs", .02), one("gz", 110, "u1")], "gq")
    g.node("Flatten", "gq", "fq")
    g.constants.append(nh.from_array(g.rng.integers(-99, 99, (WIDTH, LABELS)).astype("i1"), "Wq"))
    g.node("QLinearMatMul", ["fq", "gs", "gz", "Wq", one("Ws", .01), one("Wz", 0, "i1"), one("ys", .01), one("yz", 128, "u1")], "yq")
    g.node("DequantizeLinear", "yq ys yz", "logits")


def write(name, build):
    g = Graph(name)
    build(g)
    model = g.model()
    if name == "initializers-as-inputs":
        model.ir_version = 3
        model.graph.input.extend(h.make_tensor_value_info(t.name, t.data_type, t.dims) for t in g.constants)
    onnx.save(model, HERE / f"{name}.onnx")
    dims = g.input[2]
    chosen = g.input_shape or dims[1:]
    declared = [1, *chosen]
    rows = [declared[g.order.index(axis)] for axis in range(4)]            # channels first
    kinds = {T.FLOAT: "f4", T.FLOAT16: "f2", T.UINT8: "u1"}
    inputs = g.rng.random((ROWS, *rows[1:])) * (255 if g.input[1] == T.UINT8 else 1)
    inputs = inputs.astype(kinds[g.input[1]])
    given = {o[0] for o in g.outputs}
    extra = [] if g.logits in given else [(g.logits, FLOAT, None)]
    whole = g.model(extra)
    options = ort.SessionOptions(); options.log_severity_level = 4
    # As the operators are defined: fused, some products of integers are rounded elsewhere.
    if name.startswith(("dequantized", "qdq")):
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(whole.SerializeToString(), options)
    logits = []
    for row in inputs:
        fed = np.transpose(row[None], g.order)
        if isinstance(dims[0], int):
            fed = np.repeat(fed, dims[0], 0)
        logits.append(session.run([g.logits], {"x": fed})[0][:1].reshape(1, -1))
    tensors = {"input": inputs.astype("f4"), "logits": np.concatenate(logits).astype("f4")}
    if g.input_shape:
        tensors["input_shape"] = np.array(g.input_shape, "i8")
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, HERE / f"{name}.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    only = parser.parse_args().only
    HERE.mkdir(exist_ok=True)
    for name, build in CASES.items():
        if only in name:
            write(name, build)
            print(name)
