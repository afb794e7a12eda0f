#!/usr/bin/env python3
"""Measure how many clean inputs are turned away when they look a little different from the calibration's, on runs of attacks.py.

    python benches/attacks.py DIR VICTIM ...
    python benches/shifts.py DIR [--victims cifar10-cnn-badnets ...] [--program 0] [--seed 1]

Needs numpy, Pillow, and DIR as attacks.py left it. The 2,000 clean images that attacks.py scored are changed and scored again, with the artifact
of the unchanged ones. Prints Markdown: the share turned away by the rule `calibrated`, %, by change; and by each line alone, with a
threshold from the held-out images at the same budget of 1 %, mean over the victims.
"""
import argparse, io, subprocess, sys
from pathlib import Path

import numpy as np
from PIL import Image

from ablation import LINES, RATE, Line, held_out, rows, tensors
from scan import ROOT


def jpeg(quality):
    def of(image):
        grey = image.shape[0] == 1
        file = io.BytesIO()
        Image.fromarray(image[0] if grey else image.transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
        read = np.asarray(Image.open(file))
        return read[None] if grey else read.transpose(2, 0, 1)
    return lambda images: np.stack([of(image) for image in images])


def cropped(images):
    """The middle 7/8, resized as Pillow does."""
    size = images.shape[-1]
    edge = size // 16
    box = (edge, edge, size - edge, size - edge)
    one = lambda plane: np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR, box))
    return np.stack([np.stack([one(plane) for plane in image]) for image in images])


def scaled(factor):
    return lambda images: np.clip(np.round(images * factor), 0, 255)


def contrast(factor):
    mean = lambda images: images.mean((1, 2, 3), keepdims=True)
    return lambda images: np.clip(np.round(mean(images) + factor * (images - mean(images))), 0, 255)


def noise(deviation):
    return lambda images: np.clip(np.round(images + 255 * deviation * np.random.RandomState(1).standard_normal(images.shape)), 0, 255)


CHANGES = {"none": lambda images: images, "brightness 1.1": scaled(1.1), "brightness 0.8": scaled(.8), "contrast 0.8": contrast(.8), "noise 0.02": noise(.02),
           "JPEG 75": jpeg(75), "one pixel right": lambda images: np.concatenate([images[..., :1], images[..., :-1]], 3), "mirrored": lambda images: images[..., ::-1], "crop 7/8": cropped}


def run(folder, program):
    """By change: the share turned away by the rule, and by each line."""
    artifact, manifest = tensors(folder / "doorward.safetensors")
    lines = {key: Line(artifact, name) for key, (name, _) in LINES.items()}
    surprise = lambda found, key: lines[key].surprise(found["predicted"].astype(int), found[key])
    usual = held_out(folder, program, manifest)
    allowed = int(RATE * (len(usual["label"]) + 1) + 1e-9)
    thresholds = {key: np.sort(surprise(usual, key))[-allowed] for key in lines}
    raw = np.fromfile(folder / "clean.bin", np.uint8).reshape(-1, 1 + int(np.prod(manifest["input_shape"])))
    images, shares = raw[:, 1:].reshape(-1, *manifest["input_shape"]), {}
    for number, (change, apply) in enumerate(CHANGES.items()):
        out = folder / f"shifted-{number}.jsonl"
        if not out.exists():
            changed = apply(images).astype(np.uint8).reshape(len(raw), -1)
            out.with_suffix(".bin").write_bytes(np.concatenate([raw[:, :1], changed], 1).tobytes())
            command = [str(program), "scan", "-c", str(folder / "doorward.toml"), "--images", str(out.with_suffix(".bin")), "-o", str(out)]
            if (status := subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode) not in (0, 3):
                sys.exit(f"{' '.join(command)}: exit status {status}")
        found = rows(out)
        shares[change] = [found["rejected"].mean(), *((surprise(found, key) > thresholds[key]).mean() for key in lines)]
    return shares


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("--victims", nargs="+")
    parser.add_argument("--program", default="0", help="which of attacks.py's programs")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--doorward", type=Path, default=ROOT / "target/release/doorward")
    arguments = parser.parse_args()
    found = {}
    for folder in sorted(arguments.out.glob(f"*-{arguments.program}-{arguments.seed}")):
        victim = folder.name.rsplit("-", 2)[0]
        if victim in (arguments.victims or [victim]):
            found[victim] = run(folder, arguments.doorward)
    print("| change | " + " | ".join(found) + " | mean | " + " | ".join(f"`{key}`" for key in LINES) + " |")
    print("| --- " + "| ---: " * (len(found) + 1 + len(LINES)) + "|")
    for change in CHANGES:
        mean = np.mean([shares[change] for shares in found.values()], 0)
        cells = [shares[change][0] for shares in found.values()]
        print(f"| {change} | " + " | ".join(f"{100 * share:.2f}" for share in [*cells, *mean]) + " |")


if __name__ == "__main__":
    main()
