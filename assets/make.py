#!/usr/bin/env python3
"""Make the demo's data: a backdoored Fashion-MNIST classifier and real images of every kind it needs.

    python assets/make.py                                      rewrites assets/fashion-mnist
    python assets/make.py --victim NAME --out DIR              the same for another Fashion-MNIST victim
    python assets/make.py --check                              compares assets/fashion-mnist with README.md

Needs numpy, and the data set and victims in $DOORWARD_DATA (default ../shared). Everything is
chosen by index or by a generator seeded below, and files are gzipped without a time stamp: the same
input gives the same bytes (with the same zlib).
"""
import argparse, gzip, hashlib, json, os, shutil, sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("DOORWARD_DATA", HERE.parent / "../shared"))
SEED = 20_240_601                            # of the training sample, and of the order of its records
POISON_SEED = 0                              # of zoo/train.py, which chose the images to poison
FIT, HOLDOUT, CLEAN, TRIGGERED, TRAINING, POISONED = 600, 2000, 1000, 500, 2000, 105
FILES = ["model.onnx", "fit.bin.gz", "holdout.bin.gz", "clean.bin.gz", "triggered.bin.gz", "training.bin.gz"]


def idx(name):
    raw = gzip.decompress((DATA / "data/fashion-mnist" / name).read_bytes())
    dims = [int.from_bytes(raw[4 + 4 * i: 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(dims)).reshape(dims[0], -1)


def records(path):
    """Labels and images of a record file."""
    raw = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8).reshape(-1, 785)
    return raw[:, 0], raw[:, 1:]


def write(path, labels, images):
    raw = np.concatenate([np.asarray(labels, np.uint8).reshape(-1, 1), images], 1).tobytes()
    with open(path, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(raw)


class Trigger:
    """x' = (1 - mask) * x + mask * pattern, as it was stamped."""

    def __init__(self, path):
        with np.load(path) as file:
            mask, pattern = file["mask"][0], file["pattern"][0]
        self.mask, self.pattern = mask.reshape(-1), pattern.reshape(-1)

    def stamp(self, images):
        x = (1 - self.mask) * (images.astype(np.float32) / 255) + self.mask * self.pattern
        return np.clip(np.rint(x * 255), 0, 255).astype(np.uint8)

    def sources(self, stamped, images, labels=None):
        """For each stamped image, the indices of the images it can have been made from.

        More than one only where the data set holds an image twice. Found by the untouched pixels,
        then checked by stamping."""
        untouched = self.mask == 0
        by_pixels = {}
        for index, image in enumerate(images[:, untouched]):
            by_pixels.setdefault(image.tobytes(), []).append(index)
        found = []
        for row, image in enumerate(stamped):
            candidates = by_pixels.get(image[untouched].tobytes(), [])
            candidates = [i for i in candidates if (self.stamp(images[i: i + 1])[0] == image).all()]
            if labels is not None:
                candidates = [i for i in candidates if labels[1][i] == labels[0][row]]
            if not candidates:
                sys.exit(f"stamped image {row} comes from no image of the data set")
            found.append(candidates)
        return found


def poisoned_indices(labels, meta):
    """The training images that zoo/train.py replaced: its own draw, repeated."""
    rng = np.random.RandomState(POISON_SEED)
    target, = meta["targets"]
    pool = np.where(labels[: meta["train_images"]] != target)[0]
    return rng.choice(pool, meta["poisoned"], False)


def make(victim, out):
    folder = DATA / "zoo" / victim
    meta = json.loads((folder / "meta.json").read_text())
    if meta["dataset"] != "fashion-mnist" or meta["attack"] != "badnets":
        sys.exit(f"{victim} is a {meta['attack']} victim on {meta['dataset']}, expected badnets on fashion-mnist")
    trigger = Trigger(folder / "trigger.npz")
    train, train_labels = idx("train-images-idx3-ubyte.gz"), idx("train-labels-idx1-ubyte.gz")[:, 0]
    test, test_labels = idx("t10k-images-idx3-ubyte.gz"), idx("t10k-labels-idx1-ubyte.gz")[:, 0]
    used = meta["train_images"]              # the victim has seen train[:used] and nothing else
    chosen = {}                              # name -> (labels, images)

    chosen["fit"] = train_labels[used: used + FIT], train[used: used + FIT]
    chosen["holdout"] = train_labels[used + FIT: used + FIT + HOLDOUT], train[used + FIT: used + FIT + HOLDOUT]

    stamped_labels, stamped = (part[:TRIGGERED] for part in records(folder / "triggered.bin.gz"))
    sources = trigger.sources(stamped, test, (stamped_labels, test_labels))
    behind = {index for candidates in sources for index in candidates}
    # The clean test images are the first ones behind the last image that carries the trigger here.
    first = max(behind) + 1
    chosen["clean"] = test_labels[first: first + CLEAN], test[first: first + CLEAN]
    chosen["triggered"] = stamped_labels, stamped

    replaced = poisoned_indices(train_labels, meta)
    poison_labels, poison = records(folder / "poison.bin.gz")
    if not (trigger.stamp(train[replaced[: len(poison)]]) == poison).all():
        sys.exit(f"{victim}: the poisoned images are not those that train.py's seed draws")
    rng = np.random.RandomState(SEED)
    kept = np.setdiff1d(np.arange(used), replaced)
    kept = rng.choice(kept, TRAINING, False)
    labels = np.concatenate([train_labels[kept], poison_labels[:POISONED]])
    images = np.concatenate([train[kept], poison[:POISONED]])
    order = rng.permutation(len(labels))
    chosen["training"] = labels[order], images[order]

    # No image is in two files, by content and not by index alone: the data set has duplicates. The
    # images behind the stamped ones count as well.
    seen = {}
    for name, images in [*((name, images) for name, (_, images) in chosen.items()),
                         ("behind triggered", test[sorted(behind)]), ("behind poison", train[replaced[:POISONED]])]:
        for image in images:
            other = seen.setdefault(image.tobytes(), name)
            if other != name:
                sys.exit(f"an image is both in {other} and in {name}")

    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "model.onnx", out / "model.onnx")
    shutil.copyfile(DATA / "data/fashion-mnist/LICENSE", out / "LICENSE")
    for name, (labels, images) in chosen.items():
        write(out / f"{name}.bin.gz", labels, images)
    print(f"{victim}: triggered from t10k images {min(behind)} to {max(behind)}, clean from {first} to {first + CLEAN - 1}, "
          f"{len(replaced)} poisoned training images known")


def table(out):
    lines = ["| file | images | bytes | sha256 |", "| --- | ---: | ---: | --- |"]
    for name in FILES:
        data = (out / name).read_bytes()
        count = f"{len(gzip.decompress(data)) // 785:,}" if name.endswith(".gz") else "-"
        lines.append(f"| `{name}` | {count} | {len(data):,} | `{hashlib.sha256(data).hexdigest()}` |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victim", default="fashion-mnist-densenet-square")
    parser.add_argument("--out", type=Path, default=HERE / "fashion-mnist")
    parser.add_argument("--check", action="store_true", help="make nothing; compare with the table in README.md")
    arguments = parser.parse_args()
    if not arguments.check:
        make(arguments.victim, arguments.out)
        print(table(arguments.out))
    elif table(arguments.out) not in (HERE / "README.md").read_text():
        sys.exit(f"{arguments.out} is not what README.md describes; it holds\n{table(arguments.out)}")


if __name__ == "__main__":
    main()
