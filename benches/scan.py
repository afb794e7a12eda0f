#!/usr/bin/env python3
"""Measure how well `doorward scan` finds the poisoned images of a victim's training set.

    python benches/scan.py DIR                                    all BadNets victims of the zoo
    python benches/scan.py DIR --victims gtsrb-alexnet-badnets    some of them
    python benches/scan.py DIR --seed 8 --doorward PROGRAM        another seed, another build

Needs numpy, and the data sets and victims in $DOORWARD_DATA (default ../shared). DIR gets, per victim,
images, settings, the artifact and the scan's lines; an artifact that is there already is used again.
Prints Markdown.

The training set is taken as the victim saw it: the images that zoo/train.py replaced (its draw is
repeated, and checked against the poisoned images that it left) are not there in their clean form.
It is then dealt into two halves. One is inspected (`calibration.training_images`); only the other
one is scanned and counted, so that no image is scored that a patch was learned on. Perturbations and
thresholds come from test images. At most 600 poisoned images of a victim were kept, so that of a set
with more the clean images are sampled to leave the share of poisoned ones as it was.
"""
import argparse, gzip, json, os, subprocess, sys, time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("DOORWARD_DATA", ROOT / "../shared")).resolve()
VICTIMS = ["cifar10-cnn6-badnets", "fashion-mnist-densenet-square", "fashion-mnist-densenet-badnets", "gtsrb-alexnet-badnets"]
IMAGES = {"gtsrb": (430, 860)}                # clean images to fit and to hold out; otherwise:
DEFAULT_IMAGES = 600, 2000
RULES = ["calibrated", "uap", "patch"]
POISON_SEED = 0                               # of zoo/train.py


def idx(path):
    raw = gzip.decompress(path.read_bytes())
    dims = [int.from_bytes(raw[4 + 4 * i: 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(dims)).reshape(dims[0], -1)


def records(path, row):
    raw = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8).reshape(-1, row + 1)
    return raw[:, 0], raw[:, 1:]


def dataset(name):
    """Training and test images with their labels, and the clean source's file."""
    folder = DATA / "data" / name
    if name == "fashion-mnist":
        train = idx(folder / "train-labels-idx1-ubyte.gz")[:, 0], idx(folder / "train-images-idx3-ubyte.gz")
        return train, folder / "t10k-images-idx3-ubyte.gz"
    return records(folder / "train.bin.gz", 3072), folder / "test.bin.gz"


def write(path, labels, images):
    path.write_bytes(np.concatenate([np.asarray(labels, np.uint8).reshape(-1, 1), images], 1).tobytes())


def drawn(meta, labels):
    """Which training images zoo/train.py poisoned, trigger by trigger: its draw, repeated."""
    rng, attack, targets, free = np.random.RandomState(POISON_SEED), meta["attack"], meta["targets"], np.ones(len(labels), bool)
    if attack == "refool":
        rng.choice(len(labels), meta["settings"].get("reflections", 64), False)
    if attack == "all-to-all":
        pools = [labels == label for label in targets]
    elif attack == "mtot":
        pools = [labels != targets[0]] * 3
    elif attack == "partial":
        pools = [labels == meta["settings"].get("source", 1)]
    elif attack in ("cl", "sig", "refool"):
        pools = [labels == targets[0]]
    else:
        pools = [labels != target for target in targets]
    count, found = int(meta["settings"].get("rate", .05) * len(labels) / len(pools)), []
    for pool in pools:
        left = np.flatnonzero(pool & free)
        found.append(rng.choice(left, min(count, len(left)), False))
        free[found[-1]] = False
    return found


def matches(folder, meta, images, kept, poison):
    """Whether the poisoned images are made of those: to the pixel where the trigger is a mask and nothing else was done to them, else by distance."""
    if (folder / "trigger.npz").exists() and meta["attack"] != "cl":
        with np.load(folder / "trigger.npz") as file:
            masks, patterns = file["mask"], file["pattern"]
        stamp = lambda originals, mask, pattern: np.clip(np.rint(((1 - mask) * originals + mask * pattern) * 255), 0, 255).astype(np.uint8)
        originals = [images[some].reshape(-1, *patterns.shape[1:]).astype(np.float32) / 255 for some in kept]
        stamped = np.concatenate([stamp(*parts) for parts in zip(originals, masks, patterns)])
        return (stamped.reshape(poison.shape) == poison).all()
    kept = np.concatenate(kept)
    distance = lambda originals: np.abs(images[originals].astype(int) - poison).sum(1)
    return (distance(kept) < distance(np.roll(kept, 1))).mean() >= .95


def seen(folder, meta, labels, images):
    """The training set that a victim was made from, which of its images were poisoned, and those that were kept."""
    labels, images = labels[: meta["train_images"]], images[: meta["train_images"]]
    poison_labels, poison = records(folder / "poison.bin.gz", images.shape[1])
    replaced = drawn(meta, labels)
    kept = [some[: 600 // len(replaced)] for some in replaced]
    if sum(map(len, replaced)) != meta["poisoned"] or sum(map(len, kept)) != len(poison) or not matches(folder, meta, images, kept, poison):
        sys.exit(f"{folder.name}: the poisoned images are not those that train.py's seed draws")
    return labels, images, np.concatenate(replaced), poison_labels, poison


def material(victim, seed, out):
    """Writes the halves of the training set and the settings."""
    folder = DATA / "zoo" / victim
    meta = json.loads((folder / "meta.json").read_text())
    (labels, images), clean_source = dataset(meta["dataset"])
    labels, images, replaced, poison_labels, poison = seen(folder, meta, labels, images)
    rng = np.random.RandomState(seed)
    kept = np.setdiff1d(np.arange(len(images)), replaced)
    kept = rng.permutation(kept)[: len(kept) * len(poison) // meta["poisoned"]]
    order = rng.permutation(len(poison))
    for name, half in (("inspected", 0), ("scanned", 1)):
        write(out / f"{name}-clean.bin", labels[kept[half::2]], images[kept[half::2]])
        write(out / f"{name}-poisoned.bin", poison_labels[order[half::2]], poison[order[half::2]])
    fit, holdout = IMAGES.get(meta["dataset"], DEFAULT_IMAGES)
    (out / "doorward.toml").write_text(f"""upstream.url = "http://127.0.0.1:18080"
model.path = "{folder / "model.onnx"}"
[calibration]
clean_images = "{clean_source}"
training_images = ["{out / "inspected-clean.bin"}", "{out / "inspected-poisoned.bin"}"]
fit_images = {fit}
holdout_images = {holdout}
artifact = "{out / "doorward.safetensors"}"
seed = {seed}
""")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("--victims", nargs="+", default=VICTIMS, choices=VICTIMS)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--doorward", default=ROOT / "target/release/doorward")
    arguments = parser.parse_args()
    print("| victim | clean / poisoned scanned | infected labels named | rule | precision | recall | clean kept | seconds |")
    print("| --- | ---: | --- | --- | ---: | ---: | ---: | ---: |")
    for victim in arguments.victims:
        out = (arguments.out / f"{victim}-{arguments.seed}").resolve()
        out.mkdir(parents=True, exist_ok=True)
        material(victim, arguments.seed, out)
        program, settings = str(arguments.doorward), ["-c", str(out / "doorward.toml")]
        calibrated = subprocess.run([program, "calibrate", "--json", *settings], check=True, stdout=subprocess.PIPE)
        infected = json.loads(calibrated.stdout)["infected_labels"]
        lines = out / "scan.jsonl"
        lines.unlink(missing_ok=True)
        start = time.time()
        sources = [str(out / f"scanned-{kind}.bin") for kind in ("clean", "poisoned")]
        scan = [program, "scan", *settings, "--images", sources[0], "--images", sources[1], "-o", str(lines)]
        if (status := subprocess.run(scan, stdout=subprocess.DEVNULL).returncode) not in (0, 3):
            sys.exit(f"{' '.join(scan)}: exit status {status}")
        seconds = time.time() - start
        rows = [json.loads(line) for line in lines.read_text().splitlines()[1:]]
        poisoned = np.array([row["source"] == sources[1] for row in rows])
        for number, rule in enumerate(RULES):
            found = np.array([row["rules"][rule] for row in rows])
            hits = int((found & poisoned).sum())
            precision = f"{100 * hits / found.sum():.2f} %" if found.any() else "-"
            first = [victim, f"{(~poisoned).sum():,} / {poisoned.sum():,}", str(infected or "none")] if number == 0 else ["", "", ""]
            print("|", " | ".join([*first, f"`{rule}`", precision, f"{100 * hits / poisoned.sum():.2f} %",
                                   f"{100 * (~found & ~poisoned).sum() / (~poisoned).sum():.2f} %",
                                   f"{seconds:.0f}" if number == 0 else ""]), "|", flush=True)


if __name__ == "__main__":
    main()
