#!/usr/bin/env python3
"""Make pictures.safetensors: images as files, and what Pillow makes of them.

    python crates/doorward-images/tests/golden/pictures.py
    python crates/doorward-images/tests/golden/pictures.py --folder DIR --count 2000    whole and damaged JPEGs instead, for DOORWARD_PICTURES=DIR

Needs Pillow, numpy and safetensors. Tensors of bytes:

    file/NAME                                         the file
    picture/NAME/RESIZE/INTERPOLATION/CHANNELS        [C, H, W], after `convert`, resizing and cropping

RESIZE is none, exact-HxW or crop-SIDE-HxW, which is torchvision's Resize(SIDE) and CenterCrop((H, W)) on a Pillow image.
`turned-N` are pictures with EXIF orientation N, and their tensors are turned. `damaged-N` have one to three flipped bits behind the first
header, and a tensor where Pillow reads them.

Of a folder, whole-N.jpg and damaged-N.jpg have NAME.rgb beside them: Pillow's pixels, [H, W, 3], where it reads the file.
"""
import argparse, io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
FILTERS = dict(nearest=Image.Resampling.NEAREST, bilinear=Image.Resampling.BILINEAR,
               bicubic=Image.Resampling.BICUBIC, lanczos=Image.Resampling.LANCZOS)


def scene(rng, height, width):
    """Smooth colours, hard edges and noise."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    waves = [127 + 120 * np.sin(x / rng.uniform(2, 15) + y / rng.uniform(3, 20) + phase) for phase in rng.uniform(0, 6, 3)]
    picture = np.stack(waves, -1) + rng.normal(0, 12, (height, width, 3))
    picture[height // 4: height // 2, width // 3: width // 2] = rng.integers(0, 256, 3)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def encode(picture, **options):
    file = io.BytesIO()
    picture.save(file, **options)
    return file.getvalue()


def damage(rng, file):
    file = bytearray(file)
    for _ in range(rng.integers(1, 4)):
        file[rng.integers(20, len(file))] ^= 1 << int(rng.integers(0, 8))
    return bytes(file)


def sources(rng):
    large, wide, small = scene(rng, 90, 67), scene(rng, 23, 61), scene(rng, 5, 4)
    yield "large.png", encode(large, format="PNG")
    yield "wide.png", encode(wide, format="PNG")
    yield "small.png", encode(small, format="PNG")
    yield "grey.png", encode(wide.convert("L"), format="PNG")
    for name, options in dict(
        s444=dict(subsampling=0, quality=92), s422=dict(subsampling=1, quality=90), s420=dict(subsampling=2, quality=75),
        progressive=dict(progressive=True, subsampling=2, quality=85), optimised=dict(optimize=True, quality=50),
        restarts=dict(restart_marker_blocks=3, subsampling=2, quality=80),
    ).items():
        yield f"{name}.jpg", encode(large, format="JPEG", **options)
    yield "narrow.jpg", encode(scene(rng, 30, 3), format="JPEG", subsampling=2, quality=90)
    yield "grey.jpg", encode(large.convert("L"), format="JPEG", quality=88)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"turned-{orientation}.jpg", encode(wide, format="JPEG", quality=90, exif=exif)
    for number in range(60):
        picture = scene(rng, *rng.integers(9, 33, 2))
        whole = encode(picture, format="JPEG", quality=80, subsampling=number % 3, restart_marker_blocks=number % 4)
        yield f"damaged-{number}.jpg", damage(rng, whole)
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "turned-6.png", encode(wide, format="PNG", exif=exif)


def shortest_side(picture, side):
    """torchvision.transforms.functional.resize with one number."""
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    other = int(side * long / short)
    return (side, other) if width <= height else (other, side)


def crop(picture, height, width):
    """torchvision.transforms.functional.center_crop."""
    top, left = int(round((picture.height - height) / 2)), int(round((picture.width - width) / 2))
    return picture.crop((left, top, left + width, top + height))


def folder(where, count):
    rng = np.random.default_rng(11)
    where.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture = scene(rng, *rng.integers(8, 160, 2))
        file = encode(picture, format="JPEG", quality=int(rng.integers(30, 99)), subsampling=int(rng.integers(0, 3)),
                      restart_marker_blocks=int(rng.integers(0, 3)) * 4)
        for name, content in (("whole", file), ("damaged", damage(rng, file))):
            (where / f"{name}-{number}.jpg").write_bytes(content)
            try:
                pixels = Image.open(io.BytesIO(content)).convert("RGB").tobytes()
            except Exception:
                continue
            (where / f"{name}-{number}.rgb").write_bytes(pixels)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, metavar="DIR")
    parser.add_argument("--count", type=int, default=2000)
    arguments = parser.parse_args()
    if arguments.folder:
        return folder(arguments.folder, arguments.count)
    tensors = {}

    def add(name, resize, interpolation, picture):
        pixels = np.asarray(picture)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        tensors[f"picture/{name}/{resize}/{interpolation}/{len(pixels)}"] = np.ascontiguousarray(pixels)

    for name, file in sources(np.random.default_rng(7)):
        tensors[f"file/{name}"] = np.frombuffer(file, np.uint8)
        if name.startswith("damaged"):
            try:
                add(name, "none", "bilinear", Image.open(io.BytesIO(file)).convert("RGB"))
            except Exception as error:
                print(f"{name}: {error}")
            continue
        opened = Image.open(io.BytesIO(file))
        if name.startswith("turned"):
            add(name, "none", "bilinear", ImageOps.exif_transpose(opened).convert("RGB"))
            continue
        for mode in ("RGB", "L"):
            picture = opened.convert(mode)
            add(name, "none", "bilinear", picture)
            if not name.endswith(".png"):
                continue
            for interpolation, method in FILTERS.items():
                for height, width in ((16, 16), (33, 20)):
                    add(name, f"exact-{height}x{width}", interpolation, picture.resize((width, height), method))
                for side, height, width in ((24, 17, 20), (7, 7, 7), (32, 32, 31)):
                    scaled = picture.resize(shortest_side(picture, side), method)
                    add(name, f"crop-{side}-{height}x{width}", interpolation, crop(scaled, height, width))
    save_file(tensors, HERE / "pictures.safetensors")
    print(len(tensors), "tensors,", (HERE / "pictures.safetensors").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
