#!/usr/bin/env python3
"""Make the golden files of the model engine: tiny ONNX models, their outputs and input gradients.

    python crates/doorward-engine/tests/golden/make.py                         rewrites crates/doorward-engine/tests/golden/*.{onnx,safetensors}
    python crates/doorward-engine/tests/golden/make.py --only max-pool-ties    one case
    python crates/doorward-engine/tests/golden/make.py --zoo /tmp/zoo-golden   references for the trained models instead

Needs PyTorch, onnx and onnxruntime. Every case is two files: NAME.onnx, and NAME.safetensors with
float32 tensors

    input       [3, C, H, W], or what the case takes
    logits      the model's output for it
    cotangent   random, of the output's shape
    gradient    d sum(logits * cotangent) / d input

from PyTorch; the logits are checked against onnxruntime. Weights and inputs come from a seed that
is made from the case's name, so a case does not change when others come or go. With another
version of PyTorch the files may differ in the last bits.

Ties follow PyTorch, on purpose tested by the cases `*-ties`: the gradient of a max pool goes to the
first maximum of the window in row-major order, relu'(0) = 0, leaky_relu'(0) is the
negative slope, and clamp and relu6 have gradient 0 at their bounds (PyTorch 2.15; older ones had 1
for clamp).

`--zoo DIR` writes DIR/VICTIM.safetensors for each model of $DOORWARD_DATA/zoo (default
../shared), over the first 32 test images of its data set, divided by 255. PyTorch then runs the
ONNX file itself, node by node, as the weights come in no other form.
"""
import argparse, io, json, os, struct, sys, zlib
from pathlib import Path

import numpy as np
import onnx, onnx.numpy_helper as numpy_helper
import onnxruntime as ort
import torch, torch.nn as nn, torch.nn.functional as F
from onnx import TensorProto, helper

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("DOORWARD_DATA", HERE.parents[1] / "../shared"))
OPSET = 17
ATOL, RTOL = 1e-5, 1e-4                      # PyTorch against onnxruntime, float32

# ---------------------------------------------------------------- building blocks


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Residual(nn.Module):
    def __init__(self, *layers, short=None):
        super().__init__()
        self.body, self.short = nn.Sequential(*layers), short or nn.Identity()

    def forward(self, x):
        return F.relu(self.body(x) + self.short(x))


class Norm(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


class Dense(nn.Module):
    def __init__(self, channels, growth):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, growth, 3, 1, 1, bias=False)

    def forward(self, x):
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def block(i, o, k=3, s=1):
    return [nn.Conv2d(i, o, k, s, k // 2), nn.BatchNorm2d(o), nn.ReLU()]


def head(i, k):
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, k)]


def basic(i, o, s):
    short = nn.Sequential(nn.Conv2d(i, o, 1, s, bias=False), nn.BatchNorm2d(o)) if s > 1 or i != o else None
    return Residual(nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(),
                    nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o), short=short)


def mini_resnet():
    return nn.Sequential(Norm([.5, .4, .3], [.2, .25, .3]), nn.Conv2d(3, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6),
                         nn.ReLU(), basic(6, 6, 1), basic(6, 8, 2), basic(8, 12, 2), *head(12, 10))


def mini_densenet():
    return nn.Sequential(Norm([.286], [.353]), nn.Conv2d(1, 8, 3, 1, 1, bias=False), Dense(8, 4), Dense(12, 4),
                         nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1, bias=False), nn.AvgPool2d(2), Dense(8, 4),
                         Dense(12, 4), nn.BatchNorm2d(16), nn.ReLU(), *head(16, 10))


def mini_cnn6():
    return nn.Sequential(Norm([.5, .4, .3], [.2, .25, .3]), *block(3, 6), *block(6, 6), nn.MaxPool2d(2), *block(6, 8),
                         *block(8, 8), nn.MaxPool2d(2), *block(8, 10), *block(10, 10), nn.MaxPool2d(2), nn.Flatten(),
                         nn.Linear(10 * 2 * 3, 16), nn.ReLU(), nn.Dropout(.3), nn.Linear(16, 10))


def mini_alexnet():
    return nn.Sequential(Norm([.34, .31, .32], [.27, .26, .27]), *block(3, 6, 5), nn.MaxPool2d(3, 2), *block(6, 8),
                         nn.MaxPool2d(3, 2), *block(8, 10), *block(10, 8), *block(8, 8), nn.MaxPool2d(3, 2),
                         nn.Flatten(), nn.Dropout(.3), nn.Linear(8 * 1 * 2, 20), nn.ReLU(), nn.Dropout(.3),
                         nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 10))


# ---------------------------------------------------------------- cases made by PyTorch's exporter


def conv(*args, **kwargs):
    return lambda: nn.Conv2d(*args, **kwargs)


def after(*layers):
    """A convolution in front, so that an operator's gradient is tested inside a network too."""
    return lambda: nn.Sequential(nn.Conv2d(2, 3, 3, 1, 1), *layers)


def constant_regions(x):                     # few distinct values: most windows hold ties
    return torch.floor(x * 2).repeat_interleave(2, -1)[..., : x.shape[-1]]


def off_bounds(x):                           # spread over [-3, 9], at least 0.05 away from 0 and 6
    x = x * 12 - 3
    for bound in (0., 6.):
        x = torch.where((x - bound).abs() < .05, x + .1, x)
    return x


def signed(x):
    return x * 4 - 2


def exact_zeros(x):                          # relu's kink itself, in a third of the places
    x = signed(x)
    return torch.where(x.abs() < .7, torch.zeros_like(x), x)


def on_kinks(*kinks):                        # a third of the places exactly there, the rest away from them
    def transform(x):
        x = x * 12 - 6
        for kink in kinks:
            x = torch.where((x - kink).abs() < 12 / 9 / len(kinks), torch.full_like(x, kink), x)
        return x
    return transform


def positive(x):
    return x * 3 + .2


def distinct(x):                             # no two values of a row within 0.01: no ties for maxima
    flat = x.flatten(1)
    return (flat.argsort(1).argsort(1) * (4 / flat.shape[1]) - 2).reshape(x.shape)


IMAGE = (2, 5, 8)
CASES = {
    # name: (module, input shape without the batch, input transform)
    "conv-3x3": (conv(2, 3, 3, 1, 1), IMAGE, None),
    "conv-3x3-no-bias": (conv(2, 3, 3, 1, 1, bias=False), IMAGE, None),
    "conv-3x3-no-pad": (conv(2, 3, 3), IMAGE, None),
    "conv-3x3-stride-2-odd": (conv(2, 3, 3, 2, 1), (2, 5, 7), None),
    "conv-3x3-stride-2-even": (conv(2, 3, 3, 2, 1), (2, 6, 8), None),
    "conv-3x3-stride-2-remainder": (conv(2, 3, 3, 2, 0), (2, 6, 9), None),
    "conv-3x3-dilation-2": (conv(2, 3, 3, 1, 2, dilation=2), IMAGE, None),
    "conv-2x3-stride-2x1-pad-0x1": (conv(2, 3, (2, 3), (2, 1), (0, 1)), IMAGE, None),
    "conv-1x1": (conv(3, 4, 1), (3, 5, 8), None),
    "conv-1x1-stride-2": (conv(3, 4, 1, 2, bias=False), (3, 5, 8), None),
    "conv-5x5": (conv(2, 3, 5, 1, 2), IMAGE, None),
    "conv-7x7-stride-2": (conv(2, 3, 7, 2, 3), (2, 11, 14), None),
    "conv-groups-2": (conv(4, 6, 3, 1, 1, groups=2), (4, 5, 6), None),
    "conv-depthwise": (conv(4, 4, 3, 1, 1, groups=4, bias=False), (4, 5, 8), None),
    "conv-depthwise-stride-2-multiplier-2": (conv(3, 6, 3, 2, 1, groups=3), (3, 5, 8), None),
    "pad-computed-then-conv-5x5": (lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(2, 4, 5)), IMAGE, None),
    "pad-negative": (lambda: nn.Sequential(nn.ZeroPad2d((-1, 2, 1, -1)), nn.Conv2d(2, 3, 3)), IMAGE, None),
    "batch-norm-after-conv": (after(nn.BatchNorm2d(3), nn.ReLU()), IMAGE, None),
    "batch-norm-before-conv": (lambda: nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 4, 3, 1, 1)), IMAGE, signed),
    "batch-norm-shared-conv": (lambda: SharedConv(), IMAGE, None),
    "relu": (lambda: nn.ReLU(), IMAGE, signed),
    "relu-ties": (lambda: nn.ReLU(), IMAGE, exact_zeros),
    "relu6": (after(nn.ReLU6()), IMAGE, off_bounds),
    "relu6-alone": (lambda: nn.ReLU6(), IMAGE, off_bounds),
    "clip": (lambda: Lambda(lambda x: torch.clamp(x, 0., 6.)), IMAGE, off_bounds),
    "clip-ties": (lambda: Lambda(lambda x: torch.clamp(x, -2., 3.)), IMAGE, on_kinks(-2., 3.)),
    "clip-lower-only": (lambda: Lambda(lambda x: torch.clamp(x, min=.5)), IMAGE, off_bounds),
    "leaky-relu": (after(nn.LeakyReLU(.1)), IMAGE, signed),
    "leaky-relu-ties": (lambda: nn.LeakyReLU(.2), IMAGE, exact_zeros),
    "sigmoid": (after(nn.Sigmoid()), IMAGE, signed),
    "max-pool-2x2": (after(nn.MaxPool2d(2)), IMAGE, None),
    "max-pool-2x2-odd": (lambda: nn.MaxPool2d(2), (2, 5, 7), None),
    "max-pool-3x3-stride-2": (after(nn.MaxPool2d(3, 2)), (2, 7, 8), None),
    "max-pool-3x3-stride-2-pad-1": (after(nn.MaxPool2d(3, 2, 1)), (2, 7, 8), signed),
    "max-pool-3x3-stride-2-ceil": (after(nn.MaxPool2d(3, 2, ceil_mode=True)), (2, 6, 8), signed),
    "max-pool-3x3-stride-2-pad-1-ceil": (after(nn.MaxPool2d(3, 2, 1, ceil_mode=True)), (2, 6, 8), signed),
    "max-pool-3x3-stride-1-pad-1": (after(nn.MaxPool2d(3, 1, 1)), IMAGE, signed),
    "max-pool-3x2-stride-2x3": (after(nn.MaxPool2d((3, 2), (2, 3))), (2, 7, 9), None),
    "max-pool-2x2-ties": (lambda: nn.MaxPool2d(2), (2, 6, 8), constant_regions),
    "max-pool-3x3-stride-2-pad-1-ties": (lambda: nn.MaxPool2d(3, 2, 1), (2, 7, 8), constant_regions),
    "max-pool-after-relu-ties": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2)), (2, 7, 8), signed),
    "average-pool-2x2": (after(nn.AvgPool2d(2)), IMAGE, None),
    "average-pool-3x3-stride-2": (after(nn.AvgPool2d(3, 2)), (2, 7, 8), None),
    "average-pool-3x3-pad-1-include": (after(nn.AvgPool2d(3, 2, 1)), (2, 7, 8), None),
    "average-pool-3x3-pad-1-exclude": (after(nn.AvgPool2d(3, 2, 1, count_include_pad=False)), (2, 7, 8), None),
    "average-pool-3x3-pad-1-exclude-ceil": (after(nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)), (2, 6, 8), None),
    "global-average-pool": (after(nn.AdaptiveAvgPool2d(1)), IMAGE, None),
    "mean-over-space": (after(Lambda(lambda x: x.mean((2, 3)))), IMAGE, None),
    "flatten-gemm": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 7)), (2, 3, 5), None),
    "flatten-gemm-no-bias": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 7, bias=False)), (2, 3, 5), None),
    "reshape-minus-one": (lambda: nn.Sequential(Lambda(lambda x: x.view(-1, 30)), nn.Linear(30, 7)), (2, 3, 5), None),
    "concat": (lambda: Concat(), IMAGE, None),
    "residual-add": (lambda: Residual(nn.Conv2d(2, 2, 3, 1, 1), nn.ReLU(), nn.Conv2d(2, 2, 3, 1, 1)), IMAGE, signed),
    "residual-add-own-input": (lambda: Lambda(lambda x: x + x), IMAGE, None),
    "normalise-sub-div": (lambda: nn.Sequential(Norm([.3, .6], [.2, .5]), nn.Conv2d(2, 4, 3, 1, 1)), IMAGE, None),
    "multiply-gate": (lambda: Gate(), IMAGE, None),
    "softmax": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 7), nn.Softmax(1)), (2, 3, 5), signed),
    "log-softmax": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 7), nn.LogSoftmax(1)), (2, 3, 5), signed),
    "abs": (lambda: Lambda(torch.abs), IMAGE, signed),
    "abs-ties": (lambda: Lambda(torch.abs), IMAGE, exact_zeros),
    "attention": (lambda: nn.Sequential(nn.Conv2d(2, 12, 2, 2), Tokens(), Block(12, 3), Lambda(lambda x: x.mean(1)), nn.Linear(12, 5)), (2, 6, 8), signed),
    "attention-class-token": (lambda: nn.Sequential(nn.Conv2d(2, 12, 2, 2), Tokens(), ClassToken(12), Block(12, 2), Lambda(lambda x: x[:, 0]), nn.Linear(12, 5)), (2, 6, 8), signed),
    "celu": (after(nn.CELU(.7)), IMAGE, signed),
    "channel-shuffle": (after(nn.Conv2d(3, 6, 1), Lambda(lambda x: x.reshape(-1, 2, 3, 5, 8).transpose(1, 2).reshape(-1, 6, 5, 8)), nn.Conv2d(6, 4, 1, groups=2)), IMAGE, None),
    "elu": (after(nn.ELU(.8)), IMAGE, signed),
    "elu-ties": (lambda: nn.ELU(.8), IMAGE, exact_zeros),
    "erf-exp-log-sqrt-reciprocal": (lambda: Lambda(lambda x: torch.erf(x - 1) + torch.exp(-x) + torch.log(x) * torch.sqrt(x) + 1 / x), IMAGE, positive),
    "gelu": (after(nn.GELU()), IMAGE, signed),
    "gelu-node": (after(nn.GELU()), IMAGE, signed),
    "gelu-tanh": (after(nn.GELU("tanh")), IMAGE, signed),
    "gelu-tanh-node": (after(nn.GELU("tanh")), IMAGE, signed),
    "group-norm": (after(nn.Conv2d(3, 6, 1), nn.GroupNorm(3, 6)), IMAGE, signed),
    "hard-sigmoid": (after(Lambda(lambda x: x * 4), nn.Hardsigmoid()), IMAGE, signed),
    "hard-sigmoid-ties": (lambda: nn.Hardsigmoid(), IMAGE, on_kinks(-3., 3.)),
    "hard-swish": (after(Lambda(lambda x: x * 4), nn.Hardswish()), IMAGE, signed),
    "hard-swish-ties": (lambda: nn.Hardswish(), IMAGE, on_kinks(-3., 3.)),
    "instance-norm": (after(nn.InstanceNorm2d(3, affine=True)), IMAGE, signed),
    "layer-norm": (after(Lambda(lambda x: x.permute(0, 2, 3, 1)), nn.LayerNorm(3, eps=1e-3), Lambda(lambda x: x.permute(0, 3, 1, 2))), IMAGE, signed),
    "layer-norm-row": (after(nn.LayerNorm([3, 5, 8])), IMAGE, signed),
    "layer-norm-composed": (lambda: nn.Sequential(Tokens(), Lambda(layer_norm), nn.Linear(6, 4)), (6, 3, 4), signed),
    "log-sum-exp": (after(Lambda(lambda x: x.logsumexp((2, 3)))), IMAGE, signed),
    "maximum-minimum": (lambda: Lambda(lambda x: torch.maximum(x, x.flip(1)) * torch.minimum(x, .32 - x)), IMAGE, distinct),
    "maximum-minimum-ties": (lambda: Lambda(lambda x: torch.maximum(x, torch.zeros(())) + 2 * torch.minimum(x, -x)), IMAGE, exact_zeros),
    "mish": (after(nn.Mish()), IMAGE, signed),
    "mish-node": (after(nn.Mish()), IMAGE, signed),
    "normalise-l2": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 7), Lambda(lambda x: F.normalize(x))), (2, 3, 5), signed),
    "pad-reflect": (after(nn.ReflectionPad2d((2, 1, 1, 3))), IMAGE, signed),
    "pad-replicate": (after(nn.ReplicationPad2d((2, 1, 1, 3))), IMAGE, signed),
    "pixel-shuffle": (lambda: nn.Sequential(nn.Conv2d(2, 8, 1), nn.PixelShuffle(2)), IMAGE, signed),
    "pow-2-3": (lambda: Lambda(lambda x: x.pow(2) + x.pow(3)), IMAGE, signed),
    "pow-fraction": (lambda: Lambda(lambda x: x.pow(1.7) - x.pow(-.5)), IMAGE, positive),
    "prelu": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, 1, 1), PReLU(3)), IMAGE, signed),
    "prelu-ties": (lambda: PReLU(2), IMAGE, exact_zeros),
    "reduce-max": (lambda: Lambda(lambda x: torch.cat([x.amax((2, 3)), x.amin((2, 3))], 1)), IMAGE, distinct),
    "reduce-max-ties": (lambda: Lambda(lambda x: x.amax((2, 3))), IMAGE, constant_regions),
    "reduce-sum-channels": (lambda: Lambda(lambda x: x.sum(1) + x.square().sum(1)), IMAGE, signed),
    "resize-bilinear": (after(nn.Upsample(scale_factor=2, mode="bilinear")), IMAGE, signed),
    "resize-bilinear-align-corners": (after(nn.Upsample(size=(7, 12), mode="bilinear", align_corners=True)), IMAGE, signed),
    "resize-bilinear-shrink": (lambda: nn.Upsample(size=(3, 5), mode="bilinear"), IMAGE, signed),
    "resize-bicubic": (lambda: nn.Upsample(scale_factor=2, mode="bicubic"), IMAGE, signed),
    "resize-nearest": (after(nn.Upsample(scale_factor=(2, 3))), IMAGE, signed),
    "selu": (after(nn.SELU()), IMAGE, signed),
    "selu-ties": (lambda: nn.SELU(), IMAGE, exact_zeros),
    "shared-slice-concat": (lambda: Lambda(lambda x: torch.cat([x[:, :, ::2, 1:], x[:, :, 1::2, :-1]], 2)), (2, 6, 8), None),
    "silu": (after(nn.SiLU()), IMAGE, signed),
    "softmax-channels": (after(nn.Softmax(1), nn.Conv2d(3, 2, 1)), IMAGE, signed),
    "softplus": (after(nn.Softplus()), IMAGE, signed),
    "softsign": (after(nn.Softsign()), IMAGE, signed),
    "split": (after(nn.Conv2d(3, 6, 1), Lambda(lambda x: (lambda a, b, c: a * torch.sigmoid(c) + b)(*x.split(2, 1)))), IMAGE, signed),
    "tanh": (after(nn.Tanh()), IMAGE, signed),
    "windows": (lambda: nn.Sequential(nn.Conv2d(2, 8, 1), Windows(2), Block(8, 2), Lambda(lambda x: x.reshape(-1, 24, 8).mean(1))), (2, 4, 6), signed),
    "net-resnet": (mini_resnet, (3, 13, 18), None),
    "net-densenet": (mini_densenet, (1, 14, 18), None),
    "net-cnn6": (mini_cnn6, (3, 16, 24), None),
    "net-alexnet": (mini_alexnet, (3, 17, 25), None),
    "net-alexnet-stride-4": (lambda: nn.Sequential(nn.Conv2d(3, 6, 7, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), *block(6, 8, 5), *head(8, 10)), (3, 19, 27), None),
}


class SharedConv(nn.Module):                 # the convolution's output is used twice: it must not be folded away
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, 1, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        h = self.conv(x)
        return self.norm(h) + h


class Concat(nn.Module):                     # the input itself and two branches, one used twice
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 3, 1, 1), nn.Conv2d(2, 1, 1)

    def forward(self, x):
        a = self.a(x)
        return torch.cat([x, a, self.b(x), a], 1)


class Gate(nn.Module):                       # squeeze and excitation: broadcasts [N, C, 1, 1] over space
    def __init__(self):
        super().__init__()
        self.conv, self.gate = nn.Conv2d(2, 4, 3, 1, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        h = self.conv(x)
        return h * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(h, 1)))


class Tokens(nn.Module):                     # [N, C, H, W] to [N, H * W, C]
    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


class ClassToken(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.token, self.position = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 13, width))

    def forward(self, x):
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position


class Block(nn.Module):                      # a transformer's, in the words of timm
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        n, length, width = x.shape
        q, k, v = self.qkv(self.norms[0](x)).reshape(-1, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (width // self.heads) ** -.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(-1, length, width))
        return x + self.mlp(self.norms[1](x))


class Windows(nn.Module):                    # windows become rows, as in Swin
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        _, channels, height, width = x.shape
        x = x.reshape(-1, channels, height // self.size, self.size, width // self.size, self.size)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(-1, self.size * self.size, channels)


class PReLU(nn.PReLU):                       # slopes of both signs, one above 1
    def __init__(self, channels):
        super().__init__(channels)
        self.weight.data = torch.linspace(-.3, 1.2, channels)


def layer_norm(x):                           # as opset 16 and before have it
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred ** 2).mean(-1, keepdim=True) + 1e-5)


# Operators that are newer than OPSET, or composed before.
OPSETS = {"gelu-node": 20, "gelu-tanh-node": 20, "mish-node": 18}

# Exported without folding, so that the batch norm after a convolution stays.
UNFOLDED = {"batch-norm-after-conv", "batch-norm-shared-conv", "net-alexnet", "net-resnet"}


def exported(module, shape, name):
    buffer = io.BytesIO()
    mode = torch.onnx.TrainingMode.PRESERVE if name in UNFOLDED else torch.onnx.TrainingMode.EVAL
    torch.onnx.export(module, torch.zeros(1, *shape), buffer, input_names=["input"], output_names=["logits"],
                      dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
                      opset_version=OPSETS.get(name, OPSET), dynamo=False, training=mode)
    return buffer.getvalue()


def randomise(module, generator):            # a fresh batch norm is the identity: give it statistics
    for layer in module.modules():
        if isinstance(layer, (nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm)):
            layer.weight.data.uniform_(-1.5, 1.5, generator=generator)
            layer.bias.data.uniform_(-.5, .5, generator=generator)
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in ((layer.weight, .5, 1.5), (layer.bias, -.5, .5), (layer.running_mean, -.5, .5), (layer.running_var, .3, 2.)):
                tensor.data.uniform_(low, high, generator=generator)
            layer.weight.data[0] *= -1


# ---------------------------------------------------------------- cases built node by node, for forms the exporter does not write


def graph(nodes, constants, output_rank, shape, opset=OPSET):
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])
    target = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch"] + [None] * (output_rank - 1))
    model = helper.make_model(helper.make_graph(nodes, "golden", [source], [target], tensors),
                              opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def weights(rng, *shape):
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def conv_pads_asymmetric(rng):
    w, b = weights(rng, 4, 2, 5, 5), weights(rng, 4, 1)[:, 0]
    node = helper.make_node("Conv", ["input", "w", "b"], ["logits"], kernel_shape=[5, 5], pads=[0, 1, 3, 2])
    return graph([node], {"w": w, "b": b}, 4, IMAGE), IMAGE, lambda x: F.conv2d(F.pad(x, (1, 2, 0, 3)), torch.tensor(w), torch.tensor(b))


def conv_pads_asymmetric_stride_2(rng):
    w = weights(rng, 4, 2, 3, 3)
    node = helper.make_node("Conv", ["input", "w"], ["logits"], strides=[2, 2], pads=[0, 0, 1, 1])
    return graph([node], {"w": w}, 4, (2, 6, 8)), (2, 6, 8), lambda x: F.conv2d(F.pad(x, (0, 1, 0, 1)), torch.tensor(w), stride=2)


def conv_same_upper_stride_2(rng):           # input 5 x 8: one pad row above and below, none and one beside
    w = weights(rng, 4, 2, 3, 3)
    node = helper.make_node("Conv", ["input", "w"], ["logits"], strides=[2, 2], auto_pad="SAME_UPPER")
    return graph([node], {"w": w}, 4, IMAGE), IMAGE, lambda x: F.conv2d(F.pad(x, (0, 1, 1, 1)), torch.tensor(w), stride=2)


def max_pool_pads_asymmetric(rng):
    node = helper.make_node("MaxPool", ["input"], ["logits"], kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
    return graph([node], {}, 4, (2, 6, 8)), (2, 6, 8), lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-np.inf), 3, 2)


def average_pool_pads_asymmetric_exclude(rng):
    node = helper.make_node("AveragePool", ["input"], ["logits"], kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
    def reference(x):
        total, count = (F.avg_pool2d(F.pad(t, (0, 1, 0, 1)), 3, 2) for t in (x, torch.ones_like(x)))
        return total / count
    return graph([node], {}, 4, (2, 6, 8)), (2, 6, 8), reference


def average_pool_pad_1_include_ceil(rng):    # the last window hangs over the padding: its divisor counts padding, not what lies beyond
    node = helper.make_node("AveragePool", ["input"], ["logits"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1],
                            ceil_mode=1, count_include_pad=1)
    return graph([node], {}, 4, (2, 6, 8)), (2, 6, 8), lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=True)


def global_max_pool(rng):
    nodes = [helper.make_node("GlobalMaxPool", ["input"], ["h"]), helper.make_node("Flatten", ["h"], ["logits"], axis=1)]
    return graph(nodes, {}, 2, IMAGE), IMAGE, lambda x: x.flatten(2).max(2).values


def gemm(rng, trans_b, **attributes):
    w, b = weights(rng, 7, 30), weights(rng, 7, 1)[:, 0]
    nodes = [helper.make_node("Flatten", ["input"], ["h"]),
             helper.make_node("Gemm", ["h", "w", "b"], ["logits"], transB=trans_b, **attributes)]
    alpha, beta = attributes.get("alpha", 1.), attributes.get("beta", 1.)
    return (graph(nodes, {"w": w if trans_b else np.ascontiguousarray(w.T), "b": b}, 2, (2, 3, 5)), (2, 3, 5),
            lambda x: alpha * (x.flatten(1) @ torch.tensor(w).T) + beta * torch.tensor(b))


def matmul_add(rng):
    w, b = weights(rng, 30, 7), weights(rng, 7, 1)[:, 0]
    nodes = [helper.make_node("Reshape", ["input", "shape"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["p"]),
             helper.make_node("Add", ["b", "p"], ["logits"])]
    constants = {"w": w, "b": b, "shape": np.array([0, -1], np.int64)}
    return graph(nodes, constants, 2, (2, 3, 5)), (2, 3, 5), lambda x: x.flatten(1) @ torch.tensor(w) + torch.tensor(b)


def batch_norm_first(rng):                   # straight on the input, with an epsilon of its own
    c = {"s": rng.uniform(.5, 1.5, 2), "o": rng.uniform(-1, 1, 2), "m": rng.uniform(-1, 1, 2), "v": rng.uniform(.1, 2, 2)}
    c = {name: value.astype(np.float32) for name, value in c.items()}
    node = helper.make_node("BatchNormalization", ["input", "s", "o", "m", "v"], ["logits"], epsilon=.01)
    s, o, m, v = map(torch.tensor, c.values())
    return graph([node], c, 4, IMAGE), IMAGE, lambda x: F.batch_norm(x, m, v, s, o, eps=.01)


def constant_nodes(rng):                     # operands as Constant nodes, one of them behind an Identity
    half = numpy_helper.from_array(np.array(.5, np.float32))
    mean = numpy_helper.from_array(rng.uniform(0, 1, (1, 2, 1, 1)).astype(np.float32))
    nodes = [helper.make_node("Constant", [], ["a"], value=half), helper.make_node("Constant", [], ["m"], value=mean),
             helper.make_node("Identity", ["m"], ["n"]), helper.make_node("Sub", ["n", "input"], ["h"]),
             helper.make_node("Mul", ["a", "h"], ["logits"])]
    return graph(nodes, {}, 4, IMAGE), IMAGE, lambda x: .5 * (torch.tensor(numpy_helper.to_array(mean)) - x)


def dropout(rng):                            # at inference: with the ratio as an input, and without
    ratio, training = np.array(.3, np.float32), np.array(False)
    nodes = [helper.make_node("Dropout", ["input", "ratio", "training"], ["h"]), helper.make_node("Dropout", ["h"], ["i", "mask"]),
             helper.make_node("Relu", ["i"], ["logits"])]
    return graph(nodes, {"ratio": ratio, "training": training}, 4, IMAGE), IMAGE, F.relu


def identity(rng):                           # in front, between and behind
    w = weights(rng, 3, 2, 3, 3)
    nodes = [helper.make_node("Identity", ["input"], ["a"]), helper.make_node("Conv", ["a", "w"], ["b"]),
             helper.make_node("Identity", ["b"], ["c"]), helper.make_node("Relu", ["c"], ["d"]), helper.make_node("Identity", ["d"], ["logits"])]
    return graph(nodes, {"w": w}, 4, IMAGE), IMAGE, lambda x: F.relu(F.conv2d(x, torch.tensor(w)))


def pad_constant(rng):                       # what the newer exporter writes: pads as an initializer; before and after a convolution
    w = weights(rng, 3, 2, 3, 3)
    pads = np.array([0, 0, 0, 1, 0, 0, 3, 2], np.int64)
    nodes = [helper.make_node("Pad", ["input", "pads"], ["h"]), helper.make_node("Conv", ["h", "w"], ["c"]),
             helper.make_node("Pad", ["c", "pads", "value"], ["logits"], mode="constant")]
    constants = {"w": w, "pads": pads, "value": np.array(.25, np.float32)}
    return graph(nodes, constants, 4, IMAGE), IMAGE, lambda x: F.pad(F.conv2d(F.pad(x, (1, 2, 0, 3)), torch.tensor(w)), (1, 2, 0, 3), value=.25)


def group_norm_node(rng):
    c = {"s": rng.uniform(-1.5, 1.5, 6).astype(np.float32), "b": rng.uniform(-.5, .5, 6).astype(np.float32)}
    node = helper.make_node("GroupNormalization", ["input", "s", "b"], ["logits"], num_groups=3, epsilon=.01)
    return graph([node], c, 4, (6, 4, 5), 21), (6, 4, 5), lambda x: F.group_norm(x, 3, *map(torch.tensor, c.values()), eps=.01)


def resize(**attributes):                    # sizes or scales as TensorFlow's exports have them
    scales = np.array([1, 1, 2, 2], np.float32)
    node = helper.make_node("Resize", ["input", "", "scales"], ["logits"], **attributes)
    return graph([node], {"scales": scales}, 4, IMAGE), IMAGE, {
        "nearest": lambda x: F.interpolate(x, scale_factor=2),
        "linear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    }[attributes["mode"]]


BUILT = {
    "group-norm-node": group_norm_node,
    "resize-nearest-half-pixel": lambda rng: resize(mode="nearest", coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_floor"),
    "resize-linear-half-pixel": lambda rng: resize(mode="linear", coordinate_transformation_mode="half_pixel"),
    "pad-constant": pad_constant,
    "dropout": dropout,
    "identity": identity,
    "conv-5x5-pads-asymmetric": conv_pads_asymmetric,
    "conv-3x3-stride-2-pads-asymmetric": conv_pads_asymmetric_stride_2,
    "conv-3x3-stride-2-same-upper": conv_same_upper_stride_2,
    "max-pool-3x3-stride-2-pads-asymmetric": max_pool_pads_asymmetric,
    "average-pool-3x3-pads-asymmetric-exclude": average_pool_pads_asymmetric_exclude,
    "average-pool-3x3-pad-1-include-ceil": average_pool_pad_1_include_ceil,
    "global-max-pool": global_max_pool,
    "gemm": lambda rng: gemm(rng, 0),
    "gemm-transposed": lambda rng: gemm(rng, 1),
    "gemm-alpha-beta": lambda rng: gemm(rng, 1, alpha=.5, beta=2.),
    "matmul-add": matmul_add,
    "batch-norm-first": batch_norm_first,
    "constant-nodes": constant_nodes,
}

# ---------------------------------------------------------------- the trained models, node by node


def interpret(model, x):
    """Runs an ONNX graph of the zoo in PyTorch."""
    values = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in model.graph.initializer}
    values[model.graph.input[0].name] = x
    for node in model.graph.node:
        a = {t.name: helper.get_attribute_value(t) for t in node.attribute}
        i = [values[name] for name in node.input if name]
        def pads():
            top, left, bottom, right = a.get("pads", [0] * 4)
            assert (top, left) == (bottom, right), f"{node.name} has asymmetric pads"
            return top, left
        match node.op_type:
            case "Add": y = i[0] + i[1]
            case "AveragePool": y = F.avg_pool2d(i[0], a["kernel_shape"], a["strides"], pads(), bool(a.get("ceil_mode")), bool(a.get("count_include_pad")))
            case "BatchNormalization": y = F.batch_norm(i[0], i[3], i[4], i[1], i[2], eps=a["epsilon"])
            case "Concat": y = torch.cat(i, a["axis"])
            case "Constant": y = torch.tensor(numpy_helper.to_array(a["value"]))
            case "Conv": y = F.conv2d(i[0], i[1], i[2] if len(i) > 2 else None, a["strides"], pads(), a["dilations"], a["group"])
            case "Div": y = i[0] / i[1]
            case "Flatten": y = i[0].flatten(a["axis"])
            case "Gemm": y = F.linear(i[0], i[1] if a.get("transB") else i[1].T, i[2] if len(i) > 2 else None)
            case "GlobalAveragePool": y = i[0].mean((2, 3), keepdim=True)
            case "Identity": y = i[0]
            case "MaxPool": y = F.max_pool2d(i[0], a["kernel_shape"], a["strides"], pads(), ceil_mode=bool(a.get("ceil_mode")))
            case "Relu": y = F.relu(i[0])
            case "Sub": y = i[0] - i[1]
            case other: sys.exit(f"{node.name}: operator {other} is not known here")
        values[node.output[0]] = y
    return values[model.graph.output[0].name]


def zoo(out):
    sys.path.insert(0, str(DATA / "zoo"))
    import train
    out.mkdir(parents=True, exist_ok=True)
    for meta in sorted((DATA / "zoo").glob("*/meta.json")):
        name, dataset = meta.parent.name, json.loads(meta.read_text())["dataset"]
        folder = DATA / "data" / dataset
        images = train.idx(f"{folder}/t10k-images-idx3-ubyte.gz")[:, None] if dataset == "fashion-mnist" else train.records(f"{folder}/test.bin.gz", (3, 32, 32))[0]
        x = torch.from_numpy(images[:32].astype(np.float32) / 255)
        data = (meta.parent / "model.onnx").read_bytes()
        model = onnx.load_from_string(data)
        write(out, name, data, x, lambda x: interpret(model, x), seed(name), with_model=False)


# ---------------------------------------------------------------- files


def write_safetensors(path, tensors):
    """An 8-byte little-endian length, the header as JSON padded to 8 bytes, the data."""
    header, blobs, offset = {}, [], 0
    for name, array in tensors.items():
        blob = np.ascontiguousarray(array, "<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob); offset += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def write(out, name, data, x, function, seed, with_model=True):
    x = x.clone().requires_grad_()
    y = function(x)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    peer = session.run(None, {"input": x.detach().numpy()})[0]
    np.testing.assert_allclose(peer, y.detach().numpy(), RTOL, ATOL, err_msg=name)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed + 1))
    gradient, = torch.autograd.grad((y * cotangent).sum(), x)
    if with_model and not name.endswith("-ties"):
        # No kink or tie within rounding: another order of summation must not change which way a gradient goes.
        near = (x.detach() + 1e-5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 2))).requires_grad_()
        other, = torch.autograd.grad((function(near) * cotangent).sum(), near)
        np.testing.assert_allclose(other.numpy(), gradient.numpy(), 1e-2, 1e-3, err_msg=name)
    tensors = dict(input=x, logits=y, cotangent=cotangent, gradient=gradient)
    write_safetensors(out / f"{name}.safetensors", {k: v.detach().numpy() for k, v in tensors.items()})
    if with_model:
        (out / f"{name}.onnx").write_bytes(data)
    operators = sorted({node.op_type for node in onnx.load_from_string(data).graph.node})
    print(f"{name:45} {str(list(x.shape)):18} -> {str(list(y.shape)):18} {' '.join(operators)}", flush=True)


def seed(name):
    return zlib.crc32(name.encode()) % 2**31


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="NAME")
    parser.add_argument("--zoo", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.zoo:
        return zoo(arguments.zoo)
    for name in sorted(CASES.keys() | BUILT.keys()):
        if arguments.only and name not in arguments.only:
            continue
        generator = torch.Generator().manual_seed(seed(name))
        torch.manual_seed(seed(name))
        if name in CASES:
            make, shape, transform = CASES[name]
            function = make().eval()
            randomise(function, generator)
            data = exported(function, shape, name)
        else:
            data, shape, function = BUILT[name](np.random.default_rng(seed(name)))
            transform = None
        x = torch.rand(3, *shape, generator=generator)
        write(HERE, name, data, transform(x) if transform else x, function, seed(name))


if __name__ == "__main__":
    main()
