#!/usr/bin/env python3
"""Measure what each part of the calibrated rule adds, on runs of papers.py.

    python benches/papers.py DIR --seeds 1 2 3
    python benches/ablation.py DIR --seeds 1 2 3 [--victims NAME ...]

Needs numpy, and DIR as papers.py left it. Fit, held-out, clean and triggered images are scored once, by `doorward scan`;
thresholds come from fit and held-out images only. "The rule itself" is what the program judges; the row below it says how far the
draw of the images moves the share of clean ones that it rejects. Rows without the
training set have the labels' own perturbations from a second artifact, of the same seed, made without training images.
With several seeds the last rows of every victim join their perturbations: what several perturbations an input would do
(two predictions more for each). Prints Markdown: BDR and CIIR, mean over the seeds.
"""
import argparse, json, subprocess, sys
from pathlib import Path

import numpy as np

from papers import folders, row
from scan import ROOT

RATE, INFECTED_BUDGET = .01, 10
SPLITS = 400
DEALT = f"clean images rejected, held-out and scored ones dealt anew {SPLITS} times: mean / standard deviation"
PRIOR_IMAGES, MIN_SPREAD, MAD = 5, 1e-3, 1.4826


def manifest(path):
    raw = path.read_bytes()
    header = json.loads(raw[8:8 + int.from_bytes(raw[:8], "little")])
    return json.loads(header["__metadata__"]["doorward.manifest"])


class Scores:
    """The signals of one set of images under one artifact."""

    def __init__(self, program, settings, images, lines):
        if not lines.exists():
            scan = [str(program), "scan", "-c", str(settings), "--images", str(images), "-o", str(lines)]
            if (status := subprocess.run(scan, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode) not in (0, 3):
                sys.exit(f"{' '.join(scan)}: exit status {status}")
        found = [json.loads(line) for line in lines.read_text().splitlines()[1:]]
        column = lambda key: np.array([np.nan if line[key] is None else line[key] for line in found])
        self.label = column("predicted").astype(int)
        self.s_u, self.s_c, self.s_p, self.s_r, self.excess = map(column, ("s_u", "s_c", "s_p", "s_r", "excess"))


def score_sets(program, folder, artifact, out, source):
    """Fit, held-out, clean and triggered images under the artifact of `out`."""
    fit, count = artifact["images"]["fit"], artifact["images"]["holdout"]
    raw = np.frombuffer((folder / "calibration.bin").read_bytes(), np.uint8).reshape(-1, 1 + int(np.prod(artifact["input_shape"])))
    (out / "fit.bin").write_bytes(raw[:fit].tobytes())
    (out / "holdout.bin").write_bytes(raw[fit:fit + count].tobytes())
    images = dict(fit=out / "fit.bin", holdout=out / "holdout.bin", clean=folder / "clean.bin", triggered=source)
    return {name: Scores(program, out / "doorward.toml", path, out / f"{name}.jsonl") for name, path in images.items()}


# The split-conformal thresholds of crates/doorward-detection/src/conformal.rs.

def allowed(rate, count):
    return int(np.floor(rate * (count + 1) + 1e-9))


def highest(scores, rate):
    k = allowed(rate, len(scores))
    return np.inf if k == 0 else np.sort(scores)[-k]


def spread(values):
    return MAD * np.median(np.abs(values - np.median(values)))


def scales(labels, scores, count):
    own = [scores[labels == label] for label in range(count)]
    shrunk = lambda of: np.array([(of(some) * len(some) if len(some) else 0) + of(scores) * PRIOR_IMAGES for some in own]) / (
        np.array([len(some) for some in own]) + PRIOR_IMAGES)
    return shrunk(np.median), np.maximum(shrunk(spread), MIN_SPREAD)


def by_label(sets, score, count, infected, budget):
    """A function of rows: which ones lie above their label's threshold."""
    centre, width = scales(sets["fit"].label, score(sets["fit"]), count)
    standard = lambda rows: (score(rows) - centre[rows.label]) / width[rows.label]
    labels, held = sets["holdout"].label, standard(sets["holdout"])
    sizes = np.bincount(labels, minlength=count)
    weights = np.where(np.isin(np.arange(count), infected), budget, 1)
    base = RATE / ((sizes + 1) / (len(labels) + count) @ weights)
    rates = np.minimum(base * weights, 1)
    own = np.array([allowed(rate, size) >= 1 for rate, size in zip(rates, sizes)])
    shares = (sizes + 1) / (len(labels) + count)
    pool_rate = lambda: shares[~own] @ rates[~own] / shares[~own].sum()
    # Labels with too few images take in the smallest of the others that are not infected, until they have a threshold together.
    for label in sorted(np.flatnonzero(own & (weights == 1)), key=lambda label: sizes[label]):
        if own.all() or allowed(pool_rate(), sizes[~own].sum()) >= 1:
            break
        own[label] = False
    # An infected label without a threshold of its own is judged more strictly than the labels it shares one with.
    shift = np.where(np.isin(np.arange(count), infected), np.log10(budget), 0)
    pooled = highest((held + shift[labels])[~own[labels]], pool_rate()) if not own.all() else np.inf
    limits = np.array([highest(held[labels == label], rates[label]) if own[label] else pooled - shift[label] for label in range(count)])
    return lambda rows: standard(rows) > limits[rows.label]


def joined(rows, weights):
    """`joined` in crates/doorward-detection/src/join.rs."""
    total = np.fmin(rows.s_u, rows.s_c)
    for label, own_weights in weights.items():
        own = rows.label == int(label)
        signals = rows.s_u, rows.s_c, rows.s_p, rows.s_r
        total[own] = sum(weight * np.nan_to_num(signal[own]) for weight, signal in zip(own_weights, signals))
    return total


def measure(program, folder, source, targets):
    """One victim and seed: the parts' figures, and the scores for joining seeds."""
    artifact = manifest(folder / "doorward.safetensors")
    count, weights = artifact["labels"], artifact["thresholds"]["weights"]
    infected = (artifact["inspection"] or {}).get("infected", [])
    plain = folder / "plain"
    plain.mkdir(exist_ok=True)
    text = (folder / "doorward.toml").read_text().replace(str(folder / "doorward.safetensors"), str(plain / "doorward.safetensors"))
    (plain / "doorward.toml").write_text("\n".join(line for line in text.splitlines() if not line.startswith("training_images")))
    whole, alone = score_sets(program, folder, artifact, folder, source), score_sets(program, folder, artifact, plain, source)
    success = np.isin(alone["triggered"].label, targets)
    figures = {}

    def add(name, sets, rejects):
        figures[name] = rejects(sets["triggered"])[success].mean() if targets else np.nan, 1 - rejects(sets["clean"]).mean()

    def one(name, sets, score):
        limit = highest(score(sets["holdout"]), RATE)
        add(name, sets, lambda rows: score(rows) > limit)

    def each(name, sets, score, budget=1):
        add(name, sets, by_label(sets, score, count, infected if budget > 1 else [], budget))

    least = lambda rows: np.fmin(rows.s_u, rows.s_c)
    add("`s_u` above 0, as published", alone, lambda rows: rows.s_u > 0)
    one("`s_u`, one threshold", alone, lambda rows: rows.s_u)
    each("`s_u`, a threshold a label", alone, lambda rows: rows.s_u)
    each("`s_c`, a threshold a label", alone, lambda rows: rows.s_c)
    each("`s_u + s_c`, a threshold a label", alone, lambda rows: rows.s_u + rows.s_c)
    one("`min(s_u, s_c)`, one threshold", alone, least)
    each("`min(s_u, s_c)`, a threshold a label", alone, least)
    each("and perturbations that spare suspects", whole, least)
    each("and the patch", whole, lambda rows: np.fmin(least(rows), rows.s_p))
    each("and weights, with the representation", whole, lambda rows: joined(rows, weights))
    each("and the infected labels' budget", whole, lambda rows: joined(rows, weights), INFECTED_BUDGET)
    add("the rule itself", whole, lambda rows: rows.excess > 0)
    figures[DEALT] = splits(whole, lambda rows: joined(rows, weights), count, infected)
    return figures, alone, success, count


def splits(sets, score, count, infected):
    """Mean and deviation of the share of clean images rejected, when held-out and scored ones are dealt anew."""
    class Rows:
        def __init__(self, label, score):
            self.label, self.score = label, score

    dealt = [Rows(sets[name].label, score(sets[name])) for name in ("fit", "holdout", "clean")]
    label, scores = (np.concatenate([getattr(rows, key) for rows in dealt[1:]]) for key in ("label", "score"))
    held, rng, shares = len(dealt[1].label), np.random.default_rng(1), []
    for _ in range(SPLITS):
        order = rng.permutation(len(label))
        rows = dict(fit=dealt[0], holdout=Rows(label[order[:held]], scores[order[:held]]))
        rejects = by_label(rows, lambda rows: rows.score, count, infected, INFECTED_BUDGET)
        shares.append(rejects(Rows(label[order[held:]], scores[order[held:]])).mean())
    return np.mean(shares), np.std(shares)


def joins(runs, targets):
    """The least margin of all seeds' perturbations."""
    if len({tuple(run[1]["triggered"].label) for run in runs}) > 1:
        sys.exit("the seeds have different triggered images")
    count = runs[0][3]

    class Joined:
        def __init__(self, rows):
            self.label = rows[0].label
            self.least = np.min([row_set.s_u for row_set in rows] + [row_set.s_c for row_set in rows], 0)

    sets = {name: Joined([run[1][name] for run in runs]) for name in ("fit", "holdout", "clean", "triggered")}
    rejects = by_label(sets, lambda rows: rows.least, count, [], 1)
    bdr = rejects(sets["triggered"])[runs[0][2]].mean() if targets else np.nan
    return bdr, 1 - rejects(sets["clean"]).mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("--victims", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--doorward", default=ROOT / "target/release/doorward")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    names = [name for name in folders(out) if all((out / f"{name}-{seed}/result.json").exists() for seed in arguments.seeds)]
    tables = {}
    for name in arguments.victims or names:
        victim = folders(out)[name]
        targets = json.loads((victim / "meta.json").read_text())["targets"]
        runs = []
        for seed in arguments.seeds:
            folder = out / f"{name}-{seed}"
            runs.append(measure(arguments.doorward, folder, victim / "triggered.bin.gz" if targets else folder / "clean.bin", targets))
        tables[name] = {part: np.mean([run[0][part] for run in runs], 0) for part in runs[0][0]}
        for count in range(2, len(runs) + 1):
            # The images that fit one seed's perturbations fit the others' as well.
            tables[name][f"`min(s_u, s_c)` of {count} seeds, a threshold a label, {1 + 2 * count} predictions"] = joins(runs[:count], targets)
    print(f"Seeds {', '.join(map(str, arguments.seeds))}. BDR / CIIR, %.\n")
    row("", *tables)
    row("---", *["---:"] * len(tables))
    for part in next(iter(tables.values())):
        row(part, *["- / " * bool(np.isnan(table[part][0])) + " / ".join(f"{100 * value:.2f}" for value in table[part] if not np.isnan(value))
                    for table in tables.values()])


if __name__ == "__main__":
    main()
