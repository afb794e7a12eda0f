#!/usr/bin/env python3
"""Measure detection and inspection on every victim, beside the papers' figures.

    python benches/papers.py DIR                                  all victims that are there, seed 1
    python benches/papers.py DIR --seeds 1 2 3                    mean and worst over seeds
    python benches/papers.py DIR --victims cifar10-cnn6-sig       some of them
    python benches/papers.py DIR --rules calibrated uap strip     other rules

Needs numpy, the data sets in $DOORWARD_DATA (default ../shared), and victims in $DOORWARD_DATA/zoo or in
DIR/victims; those that are not there are trained with

    python $DOORWARD_DATA/zoo/train.py --data $DOORWARD_DATA/data --out DIR/victims --epochs 6 --only NAME ...

DIR gets, per victim and seed, images, settings, the artifact and the figures; a run that is there
already is not run again. Environment variables reach the program: DOORWARD_INSPECTION__STEPS=100 scales an inspection down.
Prints Markdown.

No image serves two parts: the triggered images were made from the first tenth of the test file, the
perturbations and thresholds come from the images after those, the clean images that are scored are
the file's last. The training set that is inspected is the victim's: its poisoned images, and its clean ones without the
originals of those, in the share that it was trained with.
"""
import argparse, json, os, subprocess, sys
from pathlib import Path

import numpy as np

from scan import DATA, DEFAULT_IMAGES, IMAGES, ROOT, dataset, idx, records, seen, write

RULES = ["calibrated", "uap", "patch"]
SCORED = {"gtsrb": (690, 600)}                # test images left to the triggered ones, clean ones scored; otherwise:
DEFAULT_SCORED = 1000, 2000
# "Confidence Matters", tables 2 and 8, CIFAR-10: the anomaly index.
INDEX = {"badnets": 199.7, "cl": 61.2, "sig": 13.5, "refool": 68.0, "trojannn": 32.0, "partial": 16.19, "mtot": 36.74, "mtmt": 62.72}
# "Detecting Backdoor via Intentional Adversarial Perturbations", table II: BDR and CIIR.
TABLE_II = {"fashion-mnist": (99.63, 90.66), "cifar10": (99.76, 89.82), "gtsrb": (99.91, 98.85)}


def folders(out):
    """Every victim's folder, by name."""
    found = {}
    for zoo in (DATA / "zoo", out / "victims"):
        found |= {path.parent.name: path.parent for path in sorted(zoo.glob("*/meta.json"))}
    return found


def prepare(folder, meta, seed, out, rules, most=None, training_images=None):
    """Writes images and settings; at most so many scored of either kind. The triggered images, and options that name the targets."""
    out.mkdir(parents=True, exist_ok=True)
    (train_labels, train), source = dataset(meta["dataset"])
    if meta["dataset"] == "fashion-mnist":
        images, labels = idx(source), idx(source.with_name("t10k-labels-idx1-ubyte.gz"))[:, 0]
    else:
        labels, images = records(source, train.shape[1])
    fit, holdout = IMAGES.get(meta["dataset"], DEFAULT_IMAGES)
    first, scored = SCORED.get(meta["dataset"], DEFAULT_SCORED)
    assert first + fit + holdout + scored <= len(images)
    write(out / "calibration.bin", labels[first:first + fit + holdout], images[first:first + fit + holdout])
    write(out / "clean.bin", labels[-scored:][:most], images[-scored:][:most])
    training = [str(out / "training.bin")]
    if meta["targets"]:
        train_labels, train, replaced, poison_labels, poison = seen(folder, meta, train_labels, train)
        clean = np.setdiff1d(np.arange(len(train)), replaced)
        # At most 600 poisoned images were kept: of a set with more, so many clean ones are left out
        # that the share of the poisoned ones stays.
        kept = len(poison)
        clean = clean[: len(clean) * kept // meta["poisoned"]]
        # They come trigger by trigger.
        some = np.linspace(0, kept, kept if training_images is None else min(kept, training_images * kept // len(clean)), endpoint=False).astype(int)
        write(out / "poison.bin", poison_labels[some], poison[some])
        training.append(str(out / "poison.bin"))
    else:
        clean = np.arange(meta["train_images"])
    clean = clean[:training_images]
    write(out / "training.bin", train_labels[clean], train[clean])
    (out / "doorward.toml").write_text(f"""upstream.url = "http://127.0.0.1:18080"
model.path = "{folder / "model.onnx"}"
policy.rule = "{"strip" if "strip" in rules else "calibrated"}"
[calibration]
clean_images = "{out / "calibration.bin"}"
training_images = {json.dumps(training)}
fit_images = {fit}
holdout_images = {holdout}
artifact = "{out / "doorward.safetensors"}"
seed = {seed}
""")
    # A model without a backdoor has no triggers: its clean images stand for them, and only the
    # rejections of those count.
    triggered = out / "clean.bin"
    if meta["targets"]:
        labels, images = records(folder / "triggered.bin.gz", train.shape[1])
        triggered = out / "triggered.bin"
        write(triggered, labels[:most], images[:most])
    return triggered, [option for label in meta["targets"] for option in ("--target", str(label))]


def run(program, out, *command, expected=(0,), settings={}):
    """The program's JSON report; `settings` are those of the environment."""
    whole = [str(program), *command, "-c", str(out / "doorward.toml"), "--json"]
    done = subprocess.run(whole, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | settings)
    if done.returncode not in expected:
        sys.exit(f"{' '.join(whole)}: exit status {done.returncode}")
    return json.loads(done.stdout)


def measure(folder, meta, seed, out, arguments, most=None):
    """Runs the program on one victim with one seed; its reports."""
    result = out / "result.json"
    if result.exists():
        return json.loads(result.read_text())
    triggered, targets = prepare(folder, meta, seed, out, arguments.rules, most, arguments.training)
    rules = [option for rule in arguments.rules for option in ("--rule", rule)]
    report = {"calibrate": run(arguments.doorward, out, "calibrate")}
    report["evaluate"] = run(arguments.doorward, out, "evaluate", "--clean", str(out / "clean.bin"), "--triggered", str(triggered), *targets, *rules)
    (out / "training.bin").unlink()
    result.write_text(json.dumps(report))
    return report


def share(values, worst):
    """Mean, and the worst of several, in percent."""
    mean = f"{100 * np.mean(values):.2f}"
    return f"{mean} %" if len(values) == 1 else f"{mean} ({100 * worst(values):.2f}) %"


def row(*cells):
    print("|", " | ".join(cells), "|", flush=True)


def detection(runs, rules):
    print("\n### Rules\n\nMean, and in brackets the worst, over the seeds.\n")
    row("victim", "clean / triggered", "bound", "rule", "BDR", "CIIR", "AUROC", "TPR@0.5%", "TPR@1%", "predictions", "paper 2: BDR, CIIR")
    row("---", "---:", "---:", "---", *["---:"] * 7)
    for name, (meta, reports) in runs.items():
        for number, rule in enumerate(rules):
            figures = [report["evaluate"]["rules"][rule] for report in reports]
            rows = reports[0]["evaluate"]["rows"]
            column = lambda key: [figure[key] for figure in figures]
            tpr = lambda rate: [figure["tpr_at_fpr"][rate] for figure in figures]
            bound = np.mean([report["evaluate"]["false_rejection_rate_bound"] for report in reports])
            paper = TABLE_II[meta["dataset"]] if rule == "uap" and meta["attack"] == "badnets" else None
            none = not meta["targets"]
            row(*([name, f"{rows['clean']:,} / {0 if none else rows['triggered_successful']:,}", f"{100 * bound:.2f} %"] if number == 0 else ["", "", ""]),
                f"`{rule}`", "-" if none else share(column("bdr"), min), share(column("ciir"), min),
                "-" if none else f"{np.mean(column('auroc')):.4f}", *["-" if none else share(tpr(rate), min) for rate in ("0.005", "0.01")],
                f"{np.mean(column('forwards_per_input')):.2f}", f"{paper[0]} %, {paper[1]} %" if paper else "")


def inspection(runs):
    print("\n### Inspection\n\nAnomaly indices of the infected labels (the largest, of a clean model), and of the others' largest; seeds in order.\n")
    row("victim", "infected", "named", "transfer ratio's index", "others", "survivors' index", "others", "shift's index", "others", "paper 1's index")
    row("---", "---", "---", *["---:"] * 7)
    for name, (meta, reports) in runs.items():
        targets = meta["targets"]
        indices = ("anomaly_index", "survival_anomaly_index", "shift_anomaly_index")
        columns = {"named": []} | {key: ([], []) for key in indices}
        for report in reports:
            labels = report["calibrate"]["inspection"]
            columns["named"].append(str(report["calibrate"]["infected_labels"]))
            for key in indices:
                own = [label[key] for label in labels if label["label"] in targets]
                others = [label[key] for label in labels if label["label"] not in targets]
                columns[key][0].append("/".join(f"{index:.1f}" for index in own) or "-")
                columns[key][1].append(f"{max(others):.1f}" if others else "-")
        paper = INDEX.get(meta["attack"]) if meta["dataset"] == "cifar10" else None
        row(name, str(targets or "none"), ", ".join(columns["named"]), *[", ".join(cells) for key in indices
            for cells in columns[key]], str(paper or ""))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("--victims", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--rules", nargs="+", default=RULES)
    parser.add_argument("--training", type=int, metavar="N", help="inspect at most N clean training images, and as few poisoned ones in their share")
    parser.add_argument("--doorward", default=ROOT / "target/release/doorward")
    arguments = parser.parse_args()
    found = folders(arguments.out.resolve())
    if unknown := set(arguments.victims or found) - set(found):
        sys.exit(f"no victim {', '.join(sorted(unknown))} in {DATA / 'zoo'} or {arguments.out / 'victims'}")
    runs = {}
    for name in arguments.victims or found:
        meta = json.loads((found[name] / "meta.json").read_text())
        where = [arguments.out.resolve() / f"{name}-{seed}" for seed in arguments.seeds]
        runs[name] = meta, [measure(found[name], meta, seed, out, arguments) for seed, out in zip(arguments.seeds, where)]
    print(f"Seeds {', '.join(map(str, arguments.seeds))}.")
    detection(runs, arguments.rules)
    inspection(runs)


if __name__ == "__main__":
    main()
