#!/usr/bin/env python3
"""Export torchvision's classifiers as people do, with PyTorch's logits and input gradients.

    python crates/doorward-engine/tests/exports/make.py /tmp/exports                   what is not there yet
    python crates/doorward-engine/tests/exports/make.py /tmp/exports --only vit swin   names that hold one of these
    python crates/doorward-engine/tests/exports/make.py /tmp/timm --timm               classifiers of timm instead
    python crates/doorward-engine/tests/exports/make.py /tmp/full --full               some at their full size
    python crates/doorward-engine/tests/exports/make.py /tmp/exports --operators       the operators of what is there, as Markdown
    cargo bench --bench main -- agree /tmp/exports              the engine against the references

Needs PyTorch, torchvision, onnx, onnxruntime, onnxscript and safetensors, and timm for `--timm`. Files are large: keep them
out of the repository. DIR/ARCHITECTURE-EXPORTER-OPSET.onnx has a DIR/SAME.safetensors with float32
tensors

    input       [2, C, H, W]
    logits      the model's output for it
    cotangent   random, of the output's shape
    gradient    d sum(logits * cotangent) / d input

`script` is the TorchScript exporter, `dynamo` the one on torch.export; `fixed` in the name stands for
a batch of one instead of a dynamic one. Weights, norms and inputs are random and seeded by the
architecture's name; running statistics come from random images and are then perturbed. Logits and
gradient are computed in double precision. Of several inputs the one is kept whose gradient depends
least on rounding: in deep networks some ReLU is nearly always close enough to its kink.
"""
import argparse, contextlib, copy, io, warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch, torch.nn as nn
from torch.export import Dim
from torchvision import models
from torchvision.models import convnext, efficientnet, resnet, vgg

import operators
from common import end, missing, seed, write

LABELS = 10
ATOL, RTOL = 1e-4, 1e-3                      # PyTorch in double against onnxruntime in single precision
FORMS = [("script", 13), ("script", 17), ("script", 20), ("dynamo", 18), ("dynamo", 21)]
FIXED = ("resnet18", "mobilenet_v3_small", "vit", "swin_t", "shufflenet_v2_x1_0")

# ---------------------------------------------------------------- architectures: smaller where that changes no operator


def small_vgg(norm):                         # the published layout with an eighth of the channels
    layout = [channels if channels == "M" else channels // 8 for channels in vgg.cfgs["A"]]
    model = models.VGG(vgg.make_layers(layout, batch_norm=norm), num_classes=LABELS)
    model.classifier = nn.Sequential(nn.Linear(64 * 49, 48), nn.ReLU(True), nn.Dropout(), nn.Linear(48, 48),
                                     nn.ReLU(True), nn.Dropout(), nn.Linear(48, LABELS))
    return model


def small_alexnet():
    model = models.alexnet(num_classes=LABELS)
    model.classifier = nn.Sequential(nn.Dropout(), nn.Linear(256 * 36, 48), nn.ReLU(True), nn.Dropout(), nn.Linear(48, 48),
                                     nn.ReLU(True), nn.Linear(48, LABELS))
    return model


def small_efficientnet(arch, **options):
    setting, last = efficientnet._efficientnet_conf(arch, **options)
    if arch == "efficientnet_v2_s":          # an eighth of the channels, two blocks a stage
        for stage in setting:
            stage.input_channels, stage.out_channels, stage.num_layers = stage.input_channels // 8 * 2, stage.out_channels // 8 * 2, 2
        last = 96
    return efficientnet.EfficientNet(setting, .2, last_channel=last, num_classes=LABELS)


def small_convnext():
    widths = [24, 32, 48, 64]
    setting = [convnext.CNBlockConfig(i, o, n) for i, o, n in zip(widths, widths[1:] + [None], [2, 2, 3, 2])]
    return models.ConvNeXt(setting, num_classes=LABELS)


def small_swin(block, merge, window):
    from torchvision.models.swin_transformer import SwinTransformer
    return SwinTransformer([4, 4], 24, [2, 2, 2], [2, 4, 8], [window, window], num_classes=LABELS, block=block, downsample_layer=merge)


def swin():
    from torchvision.models.swin_transformer import PatchMerging, SwinTransformerBlock
    return small_swin(SwinTransformerBlock, PatchMerging, 7)


def swin_v2():
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
    return small_swin(SwinTransformerBlockV2, PatchMergingV2, 8)


def small_maxvit():
    from torchvision.models.maxvit import MaxVit
    return MaxVit((64, 64), 16, 4, [16, 24, 32], [1, 2, 1], 8, .1, num_classes=LABELS)


FULL = {                                     # as published, to see that nothing is too large
    "full_convnext_tiny": (lambda: models.convnext_tiny(num_classes=LABELS), 224),
    "full_swin_t": (lambda: models.swin_t(num_classes=LABELS), 224),
    "full_vit_b_32": (lambda: models.vit_b_32(num_classes=LABELS), 224),
    "full_swin_v2_t": (lambda: models.swin_v2_t(num_classes=LABELS), 256),
    "full_maxvit_t": (lambda: models.maxvit_t(num_classes=LABELS), 224),
    "full_resnet50": (lambda: models.resnet50(num_classes=LABELS), 224),
}
ARCHITECTURES = {                            # name: (make, image size)
    "resnet18": (lambda: models.resnet18(num_classes=LABELS), 48),
    "mobilenet_v2": (lambda: models.mobilenet_v2(num_classes=LABELS), 32),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(num_classes=LABELS), 32),
    "mobilenet_v3_large": (lambda: models.mobilenet_v3_large(num_classes=LABELS), 32),
    "efficientnet_b0": (lambda: small_efficientnet("efficientnet_b0", width_mult=.5, depth_mult=.5), 64),
    "vit": (lambda: models.VisionTransformer(32, 8, 3, 4, 64, 128, num_classes=LABELS), 32),
    "swin_t": (swin, 56),
    "convnext_tiny": (small_convnext, 64),
    "densenet121": (lambda: models.DenseNet(8, (6, 12, 24, 16), 16, num_classes=LABELS), 48),
    "shufflenet_v2_x1_0": (lambda: models.shufflenet_v2_x1_0(num_classes=LABELS), 48),
    "squeezenet1_1": (lambda: models.squeezenet1_1(num_classes=LABELS), 48),
    "vgg11": (lambda: small_vgg(False), 224),
    "vgg11_bn": (lambda: small_vgg(True), 224),
    "alexnet": (small_alexnet, 224),
    "swin_v2_t": (swin_v2, 64),
    "regnet_y_400mf": (lambda: models.regnet_y_400mf(num_classes=LABELS), 32),
    "mnasnet": (lambda: models.mnasnet0_5(num_classes=LABELS), 64),
    "googlenet": (lambda: models.GoogLeNet(LABELS, aux_logits=False, transform_input=True, init_weights=False), 64),
    "efficientnet_v2_s": (lambda: small_efficientnet("efficientnet_v2_s"), 64),
    "maxvit_t": (small_maxvit, 64),
    "resnet50": (lambda: models.ResNet(resnet.Bottleneck, [3, 4, 6, 3], LABELS, width_per_group=16), 32),
    "resnext": (lambda: models.ResNet(resnet.Bottleneck, [1, 1, 1, 1], LABELS, groups=8, width_per_group=4), 48),
    "inception_v3": (lambda: models.Inception3(LABELS, aux_logits=False, transform_input=True, init_weights=False), 79),
}

# As timm makes them, at a size that each can take.
TIMM = {
    "vit_tiny_patch16_224": (48, dict(img_size=48, patch_size=12, depth=3)), "beitv2_base_patch16_224": (48, dict(img_size=48, embed_dim=96, depth=2, num_heads=6)),
    "deit3_small_patch16_224": (48, dict(img_size=48, embed_dim=96, depth=2)), "eva02_tiny_patch14_224": (56, dict(img_size=56, depth=2)),
    "mixer_s32_224": (64, dict(img_size=64)), "resmlp_12_224": (48, dict(img_size=48)),
    "gmlp_ti16_224": (48, dict(img_size=48)), "convmixer_768_32": (48, {}), "cait_xxs24_224": (48, dict(img_size=48, depth=2)),
    "xcit_nano_12_p16_224": (64, dict(img_size=64, depth=2)), "convnextv2_atto": (64, {}), "poolformer_s12": (64, {}), "pvt_v2_b0": (64, {}),
    "mobilevit_xxs": (64, {}), "mobilevitv2_050": (64, {}), "edgenext_xx_small": (64, {}), "fastvit_t8": (64, {}), "levit_128s": (224, {}),
    "efficientformerv2_s0": (64, dict(img_size=64)), "efficientvit_b0": (64, {}), "ghostnet_050": (48, {}), "mobilenetv4_conv_small": (48, {}),
    "mobileone_s0": (32, {}), "repvgg_a0": (32, {}), "tf_efficientnet_lite0": (48, {}), "lcnet_050": (48, {}), "tinynet_e": (48, {}), "rexnet_100": (48, {}),
    "hardcorenas_a": (48, {}), "seresnet18": (48, {}), "skresnet18": (32, {}), "ecaresnet26t": (32, {}), "resnest14d": (32, {}), "res2net50_14w_8s": (32, {}),
    "dla46_c": (48, {}), "hrnet_w18_small": (32, {}), "ese_vovnet19b_slim": (32, {}), "cspresnet50": (32, {}), "dpn48b": (32, {}), "selecsls42": (32, {}),
    "nf_regnet_b0": (32, {}), "gernet_s": (32, {}), "repvit_m0_9": (48, {}), "starnet_s1": (48, {}), "inception_next_atto": (64, {}), "tiny_vit_5m_224": (64, dict(img_size=64)),
    "swiftformer_xs": (64, {}), "mambaout_femto": (48, {}), "hiera_tiny_224": (64, dict(img_size=(64, 64))), "focalnet_tiny_srf": (64, dict(depths=(1, 1, 1, 1), embed_dim=32)),
    "davit_tiny": (64, dict(depths=(1, 1, 1, 1), embed_dims=(32, 64, 96, 128), num_heads=(2, 2, 2, 2))), "gcvit_xxtiny": (64, dict(img_size=64, depths=(1, 1, 1, 1))),
    "coatnet_nano_rw_224": (64, dict(img_size=64)), "mvitv2_tiny": (64, dict(img_size=64, depths=(1, 1, 1, 1))), "coat_lite_tiny": (64, dict(img_size=64)),
    "twins_svt_small": (64, dict(img_size=64)), "visformer_tiny": (64, dict(img_size=64)), "crossvit_tiny_240": (240, {}), "volo_d1_224": (64, dict(img_size=64)),
    "botnet26t_256": (64, dict(img_size=64)), "swin_tiny_patch4_window7_224": (56, dict(img_size=56, embed_dim=24, depths=(2, 2, 2, 1), num_heads=(2, 2, 2, 2))),
    "swinv2_tiny_window8_256": (64, dict(img_size=64, embed_dim=24, depths=(2, 2, 2, 1), num_heads=(2, 2, 2, 2))), "nextvit_small": (64, {}), "pit_ti_224": (64, dict(img_size=64)),
}


def timm_model(name):
    import timm
    return timm.create_model(name, num_classes=LABELS, **TIMM[name][1])


# ---------------------------------------------------------------- weights and references


def randomise(model, size, generator):
    """Nothing stays at zero, one or a constant that training would move; norms see real statistics."""
    def uniform(tensor, low, high):
        tensor.data.uniform_(low, high, generator=generator)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.numel() > 1 and parameter.detach().std() > 1e-3:
                continue
            if name == "bias" or parameter.detach().abs().max() == 0 and parameter.dim() == 1:
                uniform(parameter, -.2, .2)
            elif parameter.dim() > 1 and name == "weight":
                parameter.data.normal_(0, parameter[0].numel() ** -.5, generator=generator)
            else:
                uniform(parameter, .5, 1.5)
    norms = [module for module in model.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for norm in norms:
        norm.momentum = None                 # the mean over what follows
        norm.reset_running_stats()
    model.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.rand(8, 3, size, size, generator=generator))
    model.eval()
    for norm in norms:
        norm.running_mean += .2 * norm.running_var.sqrt() * torch.randn(norm.running_mean.shape, generator=generator)
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(.7, 1.4, generator=generator)


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


def references(model, size, generator):
    double = copy.deepcopy(model).double()
    def run(model, x, cotangent):
        x = x.clone().requires_grad_()
        y = model(x)
        gradient, = torch.autograd.grad((y * cotangent.to(y.dtype)).sum(), x)
        return y.detach(), gradient
    best = None
    for _ in range(40 if size < 100 else 4):
        x = torch.rand(2, 3, size, size, generator=generator)
        cotangent = torch.randn(2, LABELS, generator=generator)
        y, gradient = run(double, x.double(), cotangent)
        near = x.double() + 2e-7 * torch.randn(x.shape, generator=generator)
        noise = max(relative(run(model, x, cotangent)[1].double(), gradient), relative(run(double, near, cotangent)[1], gradient))
        if best is None or noise < best[0]:
            best = noise, dict(input=x, logits=y, cotangent=cotangent, gradient=gradient)
        if noise < 1e-4:
            break
    return best[0], {name: tensor.float().numpy() for name, tensor in best[1].items()}


# ---------------------------------------------------------------- files


def export(model, size, path, exporter, opset, fixed):
    x = torch.zeros(1 if fixed else 2, 3, size, size)
    options = dict(input_names=["input"], output_names=["logits"], opset_version=opset)
    if exporter == "script":
        axes = None if fixed else {"input": {0: "batch"}, "logits": {0: "batch"}}
        torch.onnx.export(model, (x,), str(path), dynamic_axes=axes, dynamo=False, **options)
    else:
        shapes = None if fixed else ({0: Dim("batch")},)
        torch.onnx.export(model, (x,), str(path), dynamic_shapes=shapes, dynamo=True, external_data=False, verbose=False, **options)


def check(path, tensors, fixed):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name
    rows = [session.run(None, {source: x[None]})[0] for x in tensors["input"]]
    np.testing.assert_allclose(np.concatenate(rows), tensors["logits"], RTOL, ATOL)
    if not fixed:
        np.testing.assert_allclose(session.run(None, {source: tensors["input"]})[0], tensors["logits"], RTOL, ATOL)


def make(folder, architecture, only, force):
    # Scaled dot product attention starts with opset 14.
    first = 14 if architecture in ("maxvit_t", "vit") else 13
    forms = [(exporter, max(opset, first), False) for exporter, opset in FORMS]
    if architecture in TIMM or architecture in FULL:
        forms = [("script", 17, False), ("dynamo", 18, False)]
    forms +=[("script", 17, True), ("dynamo", 18, True)] * (architecture in FIXED)
    names = {f"{architecture}-{exporter}-{opset}{'-fixed' * fixed}": (exporter, opset, fixed) for exporter, opset, fixed in forms}
    wanted = missing(names, folder, only, force)
    if not wanted:
        return []
    build, size = (lambda: timm_model(architecture), TIMM[architecture][0]) if architecture in TIMM else (ARCHITECTURES | FULL)[architecture]
    torch.manual_seed(seed(architecture))
    generator = torch.Generator().manual_seed(seed(architecture))
    try:
        model = build()
        randomise(model, size, generator)
        noise, tensors = references(model, size, generator)
    except Exception as error:               # sizes that another version of timm does not take
        print(f"{architecture}: {type(error).__name__}: {str(error)[:200]}", flush=True)
        return [f"{architecture}: {type(error).__name__}: {str(error)[:200]}"]
    print(f"{architecture}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, gradient uncertain by {noise:.0e}", flush=True)

    def one(name, path):
        with contextlib.redirect_stdout(io.StringIO()):          # an exporter that fails prints its graph
            export(model, size, path, *names[name])
        check(path, tensors, names[name][2])
        return tensors

    return write(wanted, folder, one)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", metavar="NAME")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--timm", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--operators", action="store_true")
    arguments = parser.parse_args()
    if arguments.operators:
        return print(operators.report(sorted(arguments.folder.glob("*.onnx"))))
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for architecture in TIMM if arguments.timm else FULL if arguments.full else ARCHITECTURES:
        failed += make(arguments.folder, architecture, arguments.only, arguments.force)
    end(failed)


if __name__ == "__main__":
    main()
