#!/usr/bin/env python3
"""Measure the calibrated rule, without training images, on attacks later than the two papers, and on faint triggers.

    python benches/attacks.py DIR VICTIM ... [--seeds 1 2 3] [--opacities 1 .6 .45 .35] [--doorward PROGRAM ...]

VICTIM is a folder with model.onnx, meta.json and triggered.bin.gz (true label, image), as the zoo and its `modern.py` leave them:

    python $DOORWARD_DATA/zoo/modern.py victims cifar10-cnn-a2a gtsrb-cnn-a2a ...

Needs numpy, and the data sets in $DOORWARD_DATA (default ../shared). DIR gets a folder a program, victim and seed; a run that is there
already is not run again. Several programs, of other commits, stand side by side. Prints Markdown: BDR, CIIR and AUROC, mean over the
seeds, and BDR at lower opacities, of the images that still get the attacker's label: x' = (1 - a) x + a trigger(x).

At most 600 triggered images are scored. Their originals serve nothing else; the other test images are dealt anew for every seed: 2,300
to calibrate (half of them where the set is smaller), 2,000 clean ones that are scored.
"""
import argparse, gzip, json, subprocess, sys
from pathlib import Path

import numpy as np

from scan import DATA, ROOT

MOST, CALIBRATION, CLEAN, FIT = 600, 2300, 2000, 300


def test_images(name):
    """Labels and images `[n, values]` of a data set's test file."""
    read = lambda path: gzip.decompress((DATA / "data" / path).read_bytes())
    if name == "fashion-mnist":
        images = np.frombuffer(read("fashion-mnist/t10k-images-idx3-ubyte.gz"), np.uint8, offset=16).reshape(-1, 784)
        return np.frombuffer(read("fashion-mnist/t10k-labels-idx1-ubyte.gz"), np.uint8, offset=8), images
    rows = np.frombuffer(read(f"{name}/test.bin.gz"), np.uint8).reshape(-1, 3073)
    return rows[:, 0], rows[:, 1:]


def originals(labels, images, triggered, meta):
    """The test images that the triggered ones were made from: in the file's order, without those of the attacker's label."""
    everywhere = len(meta["targets"]) > 1
    of = np.where(np.ones(len(labels), bool) if everywhere else ~np.isin(labels, meta["targets"]))[0]
    if len(set(triggered[:, 0])) == 1:
        of = np.where(labels == triggered[0, 0])[0]
    of = of[:len(triggered)]
    assert (labels[of] == triggered[:, 0]).all(), "the triggered images are not in the order of the test file"
    return of


def write(path, labels, images):
    np.concatenate([labels[:, None].astype(np.uint8), images], 1).tofile(path)


def scan(program, folder, name):
    lines = folder / f"{name}.jsonl"
    command = [str(program), "scan", "-c", str(folder / "doorward.toml"), "--images", str(folder / f"{name}.bin"), "-o", str(lines)]
    if (status := subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode) not in (0, 3):
        sys.exit(f"{' '.join(command)}: exit status {status}")
    rows = [json.loads(line) for line in lines.read_text().splitlines()[1:]]
    number = lambda key: np.array([np.nan if row[key] is None else row[key] for row in rows])
    return dict(label=number("label").astype(int), predicted=number("predicted").astype(int), excess=number("excess"), rejected=np.array([row["rules"]["calibrated"] for row in rows]))


def auroc(clean, triggered):
    ranks = np.argsort(np.argsort(np.concatenate([clean, triggered]))) + 1.0
    return (ranks[len(clean):].sum() - len(triggered) * (len(triggered) + 1) / 2) / (len(clean) * len(triggered))


def run(program, victim, seed, opacities, out):
    """Figures of one victim and seed."""
    figures = out / "figures.json"
    if figures.exists():
        return json.loads(figures.read_text())
    out.mkdir(parents=True, exist_ok=True)
    meta = json.loads((victim / "meta.json").read_text())
    labels, images = test_images(meta["dataset"].split()[0])
    free, triggered = np.ones(len(labels), bool), None
    if (victim / "triggered.bin.gz").exists():
        triggered = np.frombuffer(gzip.decompress((victim / "triggered.bin.gz").read_bytes()), np.uint8).reshape(-1, 1 + images.shape[1])[:MOST]
        of = originals(labels, images, triggered, meta)
        free[of] = False
    order = np.random.RandomState(seed).permutation(np.where(free)[0])
    count = min(CALIBRATION, len(order) // 2)
    write(out / "calibration.bin", labels[order[:count]], images[order[:count]])
    write(out / "clean.bin", labels[order[count:count + CLEAN]], images[order[count:count + CLEAN]])
    (out / "doorward.toml").write_text(f"""upstream.url = "http://127.0.0.1:1"
model.path = "{(victim / 'model.onnx').resolve()}"
[calibration]
clean_images = "{(out / 'calibration.bin').resolve()}"
fit_images = {FIT}
holdout_images = {CALIBRATION - FIT}
artifact = "{(out / 'doorward.safetensors').resolve()}"
seed = {seed}
""")
    command = [str(program), "calibrate", "-c", str(out / "doorward.toml"), "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    (out / "targets.json").write_text(json.dumps(meta["targets"]))
    clean = scan(program, out, "clean")
    found = dict(ciir=1 - clean["rejected"].mean(), bound=report["false_rejection_rate_bound"])
    for opacity in opacities if triggered is not None else []:
        faint = images[of] + opacity * (triggered[:, 1:].astype(float) - images[of])
        write(out / f"triggered-{opacity}.bin", triggered[:, 0], np.round(faint).astype(np.uint8))
        rows = scan(program, out, f"triggered-{opacity}")
        # All-to-all moves every label to the next.
        wanted = [(rows["label"] + 1) % len(meta["targets"])] if len(meta["targets"]) > 1 else [np.full(len(triggered), target) for target in meta["targets"]]
        success = np.any([rows["predicted"] == target for target in wanted], 0)
        found[str(opacity)] = dict(successful=int(success.sum()), triggered=len(triggered),
                                   bdr=float(rows["rejected"][success].mean()) if success.any() else None,
                                   auroc=float(auroc(clean["excess"], rows["excess"][success])) if success.any() else None)
    figures.write_text(json.dumps(found))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("victims", type=Path, nargs="+", metavar="VICTIM")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--opacities", type=float, nargs="+", default=[1.0, .6, .45, .35])
    parser.add_argument("--doorward", type=Path, nargs="+", default=[ROOT / "target/release/doorward"])
    arguments = parser.parse_args()
    print("| victim | program | succeed | BDR | AUROC | CIIR | bound | " + " | ".join(f"BDR at {opacity:.0%} (succeed)" for opacity in arguments.opacities[1:]) + " |")
    print("| --- | --- " + "| ---: " * (5 + len(arguments.opacities) - 1) + "|")
    mean = lambda values: np.mean(values) if (values := [value for value in values if value is not None]) else float("nan")
    for victim in arguments.victims:
        for number, program in enumerate(arguments.doorward):
            runs = [run(program, victim, seed, arguments.opacities, arguments.out / f"{victim.name}-{number}-{seed}") for seed in arguments.seeds]
            first = runs[0].get(str(arguments.opacities[0]))
            cells = [f"{first['successful']} of {first['triggered']}" if first else "-"]
            at = lambda opacity, key: mean([found[str(opacity)][key] for found in runs]) if first else float("nan")
            cells += [f"{100 * at(arguments.opacities[0], 'bdr'):.1f}", f"{at(arguments.opacities[0], 'auroc'):.4f}"]
            cells += [f"{100 * mean([found[key] for found in runs]):.2f}" for key in ("ciir", "bound")]
            for opacity in arguments.opacities[1:]:
                cells.append(f"{100 * at(opacity, 'bdr'):.1f} ({runs[0][str(opacity)]['successful']})" if first else "-")
            print(f"| {victim.name} | {program.name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
