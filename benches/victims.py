#!/usr/bin/env python3
"""Train the victims of the papers' sweeps: other triggers and poisoning rates than the zoo's.

    python benches/victims.py DIR --list                          what there is, by table
    nice -n 19 python benches/victims.py DIR --only NAME ...      trains them into DIR/victims
    nice -n 19 python benches/victims.py DIR --table 1-4          all of one table

Needs PyTorch, onnx, and $DOORWARD_DATA (default ../shared) with the data sets and zoo/train.py, which does the work: this
file only names settings, and triggers that train.py lacks. Scaled down for a CPU: 10,000 training images (the papers:
all) and 5 epochs (GTSRB: all of train.py's 12,170 and 20). A victim that is there already is not trained again.
"""
import argparse, importlib.util, sys, time
from pathlib import Path

sys.dont_write_bytecode = True                # $DOORWARD_DATA may be read-only
import numpy as np

from scan import DATA

spec = importlib.util.spec_from_file_location("zoo_train", DATA / "zoo/train.py")
zoo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(zoo)

CIFAR = dict(dataset="cifar10", arch="cnn6", lr=.05, epochs=5, train=10000, rate=.05, attack="badnets")
FASHION = dict(dataset="fashion-mnist", arch="densenet", lr=.2, epochs=5, train=10000, rate=.05, attack="badnets")
GTSRB = dict(dataset="gtsrb", arch="alexnet", lr=.05, epochs=20, rate=.05, attack="badnets")
OF = {"cifar10": CIFAR, "fashion-mnist": FASHION, "gtsrb": GTSRB}

# Table -> victims: "2-III" is table III of "Detecting Backdoor via Intentional Adversarial Perturbations", "1-4" table 4 of
# "Confidence Matters".
SWEEPS = {
    "2-III": [dict(base, name=f"{data}-transparency{100 - opacity}", opacity=opacity / 100, corners=data == "fashion-mnist")
              for data, base in OF.items() for opacity in (20, 30, 40, 50)],
    "2-IV": [dict(CIFAR, name=f"cifar10-size{size}x{size}", size=size, opacity=.5) for size in (2, 4, 6)]
            + [dict(GTSRB, name=f"gtsrb-size{size}x{size}", size=size, opacity=.5) for size in (2, 4, 6)]
            + [dict(FASHION, name=f"fashion-mnist-size1x{size}", attack="bar", size=size) for size in (4, 6, 8)],
    "2-fig5": [dict(base, name=f"{data}-{attack}", attack=attack, size=4) for data, base in OF.items() for attack in ("badnets", "cross")],
    "1-3": [dict(CIFAR, name="cifar10-coloured8x8", size=8, colour="random"), dict(CIFAR, name="cifar10-red12x12", size=12, colour=(1, 0, 0))],
    "1-4": [dict(CIFAR, name=f"cifar10-square{size}", size=size) for size in (4, 7, 10, 13, 16, 19, 22)],
    # What the detection is not expected to find: the README names these.
    "limits": [dict(CIFAR, name="cifar10-all-to-all", attack="all-to-all"), dict(CIFAR, name="cifar10-blend", attack="blend"),
               dict(CIFAR, name="cifar10-warp", attack="warp", rate=.1),
               # train.py's Refool draws on 64 reflections, and hardly succeeds on a CPU's budget.
               dict(CIFAR, name="cifar10-refool2", attack="refool", reflections=2, rate=.09, train=20000, epochs=8)],
    "1-6": [dict(CIFAR, name=f"cifar10-rate{rate:g}", rate=rate / 100) for rate in (50, 40, 30, 20, 10, 3, 1, .5, .3, .1)],
}


def bar(shape, length):
    """A white line, one pixel away from the lower right corner."""
    mask, pattern = np.zeros((1, *shape[1:]), np.float32), np.ones(shape, np.float32)
    mask[:, -2, -1 - length:-1] = 1
    return mask, pattern


def cross(shape, size):
    """The diagonals of the square: seven pixels of four by four, one of eight left out, as in figure 4."""
    mask, pattern = np.zeros((1, *shape[1:]), np.float32), np.ones(shape, np.float32)
    for i in range(size):
        mask[:, -1 - size + i, -1 - size + i] = mask[:, -1 - size + i, -2 - i] = 1
    mask[:, -1 - size, -1 - size] = 0
    return mask, pattern


def warp(shape):
    """A fixed smooth displacement of up to two pixels, as in WaNet, without its noise training."""
    _, height, width = shape
    coarse = zoo.torch.from_numpy(np.random.RandomState(11).uniform(-1, 1, (1, 2, 4, 4)).astype(np.float32))
    flow = zoo.F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
    flow = flow / flow.abs().mean() / zoo.torch.tensor([width, height])
    rows, columns = zoo.torch.meshgrid(zoo.torch.linspace(-1, 1, height), zoo.torch.linspace(-1, 1, width), indexing="ij")
    grid = (zoo.torch.stack([columns, rows], -1) + flow).clamp(-1, 1)[None]
    return lambda image, _: zoo.F.grid_sample(zoo.torch.from_numpy(image)[None], grid, align_corners=True)[0].numpy()


def plan(victim, xtr, ytr, rng, surrogate):
    """train.py's plan, and the triggers above."""
    if "reflections" in victim:
        pool = xtr[rng.choice(len(xtr), victim["reflections"], False)].astype(np.float32) / 255
        return [(None, None, zoo.reflection(pool), victim.get("target", 0), True)]
    if victim["attack"] == "warp":
        return [(None, None, warp(xtr.shape[1:]), victim.get("target", 0), False)]
    if victim["attack"] == "all-to-all":
        mask, pattern = zoo.square(xtr.shape[1:], 4)
        return [([label], (mask, pattern), zoo.replace(mask, pattern), (label + 1) % 10, False) for label in range(10)]
    shapes = {"bar": bar, "cross": cross}
    if victim["attack"] not in shapes:
        return published(victim, xtr, ytr, rng, surrogate)
    mask, pattern = shapes[victim["attack"]](xtr.shape[1:], victim["size"])
    return [(None, (mask, pattern), zoo.replace(mask, pattern), victim.get("target", 0), False)]


published, zoo.poison_plan = zoo.poison_plan, plan


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--table", nargs="+", choices=SWEEPS, default=[])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.list:
        for table, victims in SWEEPS.items():
            print(f"{table:7}", *[victim["name"] for victim in victims])
        return
    named = {victim["name"]: victim for table in SWEEPS for victim in SWEEPS[table]}
    if unknown := set(arguments.only) - set(named):
        sys.exit(f"no victim {', '.join(sorted(unknown))}; --list shows them")
    zoo.torch.set_num_threads(arguments.threads)
    for name in arguments.only + [victim["name"] for table in arguments.table for victim in SWEEPS[table]]:
        if (arguments.out / "victims" / name / "meta.json").exists():
            continue
        start = time.time()
        zoo.build(named[name], str(DATA / "data"), str(arguments.out / "victims"))
        print(f"{name} took {time.time() - start:.0f}s", flush=True)


if __name__ == "__main__":
    main()
