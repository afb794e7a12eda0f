#!/usr/bin/env python3
"""Table 10 of "Confidence Matters": clean a poisoned training set, train again, attack again.

    nice -n 19 python benches/retrain.py DIR [--victim cifar10-cnn6-badnets] [--rule patch calibrated] [--epochs 5]

Needs PyTorch, and $DOORWARD_DATA (default ../shared) with the data sets, the victim, and zoo/train.py, which trains. The
training set is what the victim saw: benches/scan.py checks that zoo/train.py's draw is repeated. It is inspected and
scanned whole, as in the paper; `doorward scan` removes what each rule calls suspicious, and a new model is trained on the
rest with the victim's architecture and settings but --epochs. Victims of which all poisoned images were kept only. Prints
Markdown; DIR keeps what was done.
"""
import argparse, json, subprocess, sys
from pathlib import Path

import numpy as np

from scan import DATA, DEFAULT_IMAGES, IMAGES, ROOT, dataset, records, seen, write
from victims import zoo

PAPER = {"badnets": (85.05, 96.34, 84.65, 7.66)}        # accuracy and ASR before, after


def clean(out, victim, meta, arguments):
    """Per rule which images of the training set stay; the set."""
    (labels, images), clean_source = dataset(meta["dataset"])
    labels, images, replaced, poison_labels, poison = seen(victim, meta, labels, images)
    if len(poison) < meta["poisoned"]:
        sys.exit(f"{victim.name}: only {len(poison)} of its {meta['poisoned']} poisoned images were kept")
    labels, images = labels.copy(), images.copy()
    labels[replaced], images[replaced] = poison_labels, poison
    write(out / "training.bin", labels, images)
    fit, holdout = IMAGES.get(meta["dataset"], DEFAULT_IMAGES)
    (out / "doorward.toml").write_text(f"""upstream.url = "http://127.0.0.1:18080"
model.path = "{victim / "model.onnx"}"
[calibration]
clean_images = "{clean_source}"
training_images = "{out / "training.bin"}"
fit_images = {fit}
holdout_images = {holdout}
artifact = "{out / "doorward.safetensors"}"
seed = 1
""")
    lines = out / "scan.jsonl"
    scan = [str(arguments.doorward), "scan", "-c", str(out / "doorward.toml"), "--images", str(out / "training.bin"), "-o", str(lines)]
    if (status := subprocess.run(scan, stdout=subprocess.DEVNULL).returncode) not in (0, 3):
        sys.exit(f"{' '.join(scan)}: exit status {status}")
    found = [json.loads(line) for line in lines.read_text().splitlines()[1:]]
    poisoned = np.isin(np.arange(len(labels)), replaced)
    return {rule: ~np.array([line["rules"][rule] for line in found]) for rule in arguments.rule}, labels, images, poisoned


def train(meta, labels, images, epochs):
    zoo.torch.manual_seed(0)
    shape = {"fashion-mnist": (1, 28, 28)}.get(meta["dataset"], (3, 32, 32))
    norm = zoo.Norm(*zoo.STATS[meta["dataset"]])
    model = zoo.nn.Sequential(norm, zoo.ARCH[meta["architecture"]](shape[0], zoo.CLASSES[meta["dataset"]]))
    model(zoo.torch.zeros(2, *shape))
    model = model.to(memory_format=zoo.torch.channels_last)
    zoo.train(model, images.reshape(-1, *shape), labels.astype(np.int64), epochs, meta["settings"]["lr"], meta["dataset"] == "cifar10", 1)
    return lambda pixels: zoo.predict(model, pixels.reshape(-1, *shape))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("--victim", default="cifar10-cnn6-badnets")
    parser.add_argument("--rule", nargs="+", default=["patch"])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--doorward", default=ROOT / "target/release/doorward")
    arguments = parser.parse_args()
    zoo.torch.set_num_threads(arguments.threads)
    victim, out = DATA / "zoo" / arguments.victim, (arguments.out / f"{arguments.victim}-retrain").resolve()
    out.mkdir(parents=True, exist_ok=True)
    meta = json.loads((victim / "meta.json").read_text())
    kept, labels, images, poisoned = clean(out, victim, meta, arguments)
    (test_images, test_labels) = zoo.load(meta["dataset"], str(DATA / "data"))[1]
    triggered = records(victim / "triggered.bin.gz", images.shape[1])[1]
    print("| training set | clean / poisoned images | accuracy | attack success | paper: accuracy, attack success |\n| --- | ---: | ---: | ---: | ---: |")
    paper = PAPER.get(meta["attack"], ["-"] * 4)
    print(f"| as it was ({meta['settings']['epochs']} epochs) | {(~poisoned).sum():,} / {poisoned.sum():,} | {meta['clean_accuracy']:.2%} | "
          f"{np.mean(meta['attack_success_rate']):.2%} | {paper[0]}, {paper[1]} % |", flush=True)
    for rule, keep in kept.items():
        predict = train(meta, labels[keep], images[keep], arguments.epochs)
        accuracy, success = (predict(test_images) == test_labels).mean(), np.isin(predict(triggered), meta["targets"]).mean()
        print(f"| without what `{rule}` calls suspicious ({arguments.epochs} epochs) | {(keep & ~poisoned).sum():,} / {(keep & poisoned).sum():,} | "
              f"{accuracy:.2%} | {success:.2%} | {paper[2]}, {paper[3]} % |", flush=True)


if __name__ == "__main__":
    main()
