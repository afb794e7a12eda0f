#!/usr/bin/env python3
"""Measure what each line of evidence adds to the calibrated rule, on runs of attacks.py.

    python benches/attacks.py DIR VICTIM ... --seeds 1 2 3
    python benches/ablation.py DIR [--program 0]

Needs numpy, and DIR as attacks.py left it. Clean and triggered images are scored there, held-out ones here, by `doorward scan`; what is
usual of a line is in the artifact. Every row has one threshold, from the held-out images, at the budget of 1 %. "The program" is what it
judged itself, which "all" has to equal. Prints Markdown: BDR / AUROC, mean over seeds, and how many predictions an input takes.
"""
import argparse, json, subprocess, sys
from pathlib import Path

import numpy as np

from attacks import auroc
from scan import ROOT

RATE = .01
LINES = {"s_u": ("universal", .5), "s_c": ("class_conditional", .5), "own": ("own", 1.0), "gap": ("gap", 1.0), "range": ("range", 1.0)}
# crates/doorward-detection/src/join.rs
PRIOR_IMAGES, TAIL_OF, SHAPES, MIN_SCALE = 50, 10, (.05, .6), 1e-3
SETS = {"`own`": ["own"], "`gap`": ["gap"], "`range`": ["range"], "`s_u`": ["s_u"], "`s_c`": ["s_c"], "margins: `s_u`, `s_c`": ["s_u", "s_c"],
        "the pass itself: `own`, `gap`, `range`": ["own", "gap", "range"], "all but `own`": ["s_u", "s_c", "gap", "range"], "all but `gap`": ["s_u", "s_c", "own", "range"],
        "all but `range`": ["s_u", "s_c", "own", "gap"], "all but `s_u`": ["s_c", "own", "gap", "range"], "all but `s_c`": ["s_u", "own", "gap", "range"], "all": list(LINES)}
PREDICTIONS = lambda lines: 1 + ("s_u" in lines) + ("s_c" in lines)


def tensors(path):
    """The tensors of an artifact by name, and its manifest."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:8 + size])
    manifest = json.loads(header.pop("__metadata__")["doorward.manifest"])
    at = lambda begin, end: np.frombuffer(raw[8 + size + begin:8 + size + end], np.float32)
    return {name: at(*entry["data_offsets"]).reshape(entry["shape"]) for name, entry in header.items()}, manifest


class Line:
    """The line of join.rs, from the artifact."""

    def __init__(self, artifact, name):
        self.scales, reference = artifact[f"line.{name}.scales"], artifact[f"line.{name}.reference"]
        self.by_label = [np.sort(reference[reference[:, 0] == label, 1]) for label in range(len(self.scales))]
        self.all = np.sort(reference[:, 1]).astype(float)
        first = len(self.all) * (TAIL_OF - 1) // TAIL_OF
        self.start = self.all[max(first - 1, 0)]
        excess = self.all[first:] - self.start
        count, mean = len(excess), excess.mean()
        weighted = (excess * (count - np.arange(1, count + 1))).sum() / (count * (count - 1))
        shape = 2 - mean / (mean - 2 * weighted)
        self.shape = SHAPES[1] if np.isnan(shape) else np.clip(shape, *SHAPES)
        self.scale, self.share = max(mean * (1 - self.shape), MIN_SCALE), count / len(self.all)

    def surprise(self, labels, scores):
        scores = (scores - self.scales[labels, 0]) / self.scales[labels, 1]
        excess = np.maximum(scores - self.start, 0)
        tail = self.share * (1 + self.shape * excess / self.scale) ** (-1 / self.shape)
        count = len(self.all)
        above = np.where(excess > 0, tail, (count - np.searchsorted(self.all, scores) + 1) / (count + 1))
        own = np.array([len(self.by_label[label]) for label in labels])
        higher = np.array([len(self.by_label[label]) - np.searchsorted(self.by_label[label], score) for label, score in zip(labels, scores)])
        return -np.log(np.maximum((higher + PRIOR_IMAGES * above) / (own + PRIOR_IMAGES), 1e-300))


def rows(lines):
    found = [json.loads(line) for line in lines.read_text().splitlines()[1:]]
    number = lambda key: np.array([np.nan if row[key] is None else row[key] for row in found])
    return {key: number(key) for key in ["label", "predicted", "excess", *LINES]} | {"rejected": np.array([row["rules"]["calibrated"] for row in found])}


def held_out(folder, program, manifest):
    """Signals of the images that the threshold was fitted to."""
    lines = folder / "holdout.jsonl"
    if not lines.exists():
        images = manifest["images"]
        raw = np.frombuffer((folder / "calibration.bin").read_bytes(), np.uint8).reshape(-1, 1 + int(np.prod(manifest["input_shape"])))
        first = images["fit"] + images["reference"]
        (folder / "holdout.bin").write_bytes(raw[first:first + images["holdout"]].tobytes())
        command = [str(program), "scan", "-c", str(folder / "doorward.toml"), "--images", str(folder / "holdout.bin"), "-o", str(lines)]
        if (status := subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode) not in (0, 3):
            sys.exit(f"{' '.join(command)}: exit status {status}")
    return rows(lines)


def run(folder, program):
    """By set of lines: BDR, AUROC and the share of clean images rejected."""
    artifact, manifest = tensors(folder / "doorward.safetensors")
    lines = {key: Line(artifact, name) for key, (name, _) in LINES.items()}
    sets = dict(holdout=held_out(folder, program, manifest), clean=rows(folder / "clean.jsonl"), triggered=rows(folder / "triggered-1.0.jsonl"))
    surprises = {name: {key: line.surprise(of["predicted"].astype(int), of[key]) for key, line in lines.items()} for name, of in sets.items()}
    triggered = sets["triggered"]
    # The attacker's labels, as attacks.py has them.
    targets = json.loads((folder / "targets.json").read_text())
    label, predicted = triggered["label"], triggered["predicted"]
    success = predicted == (label + 1) % len(targets) if len(targets) > 1 else np.isin(predicted, targets)
    found = {}
    for name, chosen in SETS.items():
        evidence = {of: sum(LINES[key][1] * surprises[of][key] for key in chosen) for of in sets}
        allowed = int(RATE * (len(evidence["holdout"]) + 1) + 1e-9)
        threshold = np.sort(evidence["holdout"])[-allowed]
        found[name] = ((evidence["triggered"][success] > threshold).mean(), auroc(evidence["clean"], evidence["triggered"][success]), (evidence["clean"] > threshold).mean())
    found["the program"] = (triggered["rejected"][success].mean(), auroc(sets["clean"]["excess"], triggered["excess"][success]), sets["clean"]["rejected"].mean())
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("--program", default="0", help="which of attacks.py's programs")
    parser.add_argument("--doorward", type=Path, default=ROOT / "target/release/doorward")
    arguments = parser.parse_args()
    victims = {}
    for folder in sorted(arguments.out.iterdir()):
        victim, program, _ = folder.name.rsplit("-", 2)
        if program == arguments.program and (folder / "triggered-1.0.jsonl").exists() and (folder / "figures.json").exists():
            victims.setdefault(victim, []).append(run(folder, arguments.doorward))
    names = list(victims)
    print("| lines | predictions | " + " | ".join(names) + " | mean | clean rejected |")
    print("| --- " + "| ---: " * (len(names) + 3) + "|")
    for name in [*SETS, "the program"]:
        mean = {victim: np.mean([found[name] for found in runs], 0) for victim, runs in victims.items()}
        cells = [f"{100 * mean[victim][0]:.1f} / {mean[victim][1]:.3f}" for victim in names]
        overall = np.mean(list(mean.values()), 0)
        predictions = PREDICTIONS(SETS.get(name, list(LINES)))
        print(f"| {name} | {predictions} | " + " | ".join(cells) + f" | {100 * overall[0]:.1f} / {overall[1]:.3f} | {100 * overall[2]:.2f} |")


if __name__ == "__main__":
    main()
