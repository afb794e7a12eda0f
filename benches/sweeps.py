#!/usr/bin/env python3
"""One table or figure of the papers, their figures beside ours.

    python benches/sweeps.py DIR 2-III                  transparency of the trigger ("Intentional Adversarial Perturbations")
    python benches/sweeps.py DIR 1-4                    size of the trigger ("Confidence Matters")
    python benches/sweeps.py DIR all                    whatever is there to measure

Tables 2-I, 2-III, 2-IV, 2-V and figures 2-fig5, 2-fig6 (with 7); tables 1-3, 1-4, 1-5, 1-6 and 1-9. Those with every victim
(2-II, 1-2, 1-8) are papers.py's; 1-10 is retrain.py's. Victims come from $DOORWARD_DATA/zoo, DIR/victims (victims.py, zoo/train.py);
rows whose victim is not there say so. DIR keeps what was measured. Seed 1; environment variables reach the program:
DOORWARD_INSPECTION__STEPS=100 scales inspections down. Prints Markdown.
"""
import argparse, json
from pathlib import Path

import numpy as np

from papers import RULES, folders, measure, prepare, row, run
from scan import ROOT
from victims import SWEEPS

NOT_RUN = "not run"
# The papers' figures, by victim or parameter.
SUCCESS = {"fashion-mnist": (92.19, 99.47), "cifar10": (92.77, 99.77), "gtsrb": (95.16, 97.89)}          # 2-I: accuracy, BASR
TRANSPARENCY = {"fashion-mnist": (99.37, 99.72, 95.40, 98.80), "cifar10": (96.30, 98.75, 98.62, 99.70), "gtsrb": (99.07, 98.62, 99.90, 99.96)}
BDR = {f"{data}-transparency{percent}": value for data, values in TRANSPARENCY.items() for percent, value in zip((80, 70, 60, 50), values)}
BDR |= {f"fashion-mnist-size1x{size}": value for size, value in zip((4, 6, 8), (99.65, 99.67, 99.75))}   # 2-IV
BDR |= {f"cifar10-size{size}x{size}": value for size, value in zip((2, 4, 6), (99.07, 99.70, 99.75))}
BDR |= {f"gtsrb-size{size}x{size}": value for size, value in zip((2, 4, 6), (98.25, 99.07, 99.60))}
BDR |= {"fashion-mnist-badnets": 99.30, "cifar10-badnets": 98.57, "gtsrb-badnets": 99.47}                # 2-fig5
BDR |= {"fashion-mnist-cross": 98.20, "cifar10-cross": 98.45, "gtsrb-cross": 99.22}
STRIP = {"fashion-mnist": (63.40, 67.40), "cifar10": (96.32, 89.57), "gtsrb": (73.95, 88.80)}            # 2-V: BDR, CIIR
UAP = {"fashion-mnist": (99.63, 90.66), "cifar10": (99.76, 89.82), "gtsrb": (99.91, 98.85)}
WORST = {"uap": (99.63, 89.82), "carlini_wagner": (74.42, 41.92), "deepfool": (65.22, 47.85), "pgd": (91.52, 67.77)}  # 2-fig6: of the data sets
INDEX = {"cifar10-coloured8x8": 122.00, "cifar10-red12x12": 39.23}                                       # 1-3
INDEX |= {f"cifar10-square{size}": value for size, value in zip((4, 7, 10, 13, 16, 19, 22), (199.65, 53.28, 121.03, 66.77, 36.51, 62.70, 5.39))}
CLEANSE = {f"cifar10-square{size}": value for size, value in zip((4, 7, 10, 13, 16, 19, 22), (2.62, 2.17, 2.24, 1.88, 1.36, 1.44, 1.27))}
INDEX |= {f"cifar10-rate{rate}": value for rate, value in (("50", 51.94), ("40", 84.64), ("30", 30.35), ("20", 18.20), ("10", 33.05), ("3", 199.65), ("0.1", 32.04))}
INSPECTION = {"badnets": (31.90, 199.65), "trojannn": (14.70, 4.47), "cl": (38.85, 77.34), "sig": (2.82, 7.86), "refool": (13.47, 6.34),
              "partial": (152.48, 16.20), "mtot": (21.42, 36.74), "mtmt": (48.78, 62.72), "clean": (6.95, 2.47)}  # 1-5: data inspection, DTInspector
SAMPLES = {50: 199.6, 100: 31.4, 200: 65.4, 400: 133.9, 800: 103.6, 1500: 327.0, 2000: 166.8}            # 1-9


class Bench:
    def __init__(self, arguments):
        self.arguments, self.out, self.program = arguments, arguments.out.resolve(), arguments.doorward
        self.victims = {name: (folder, json.loads((folder / "meta.json").read_text())) for name, folder in folders(self.out).items()}

    def rules(self, name, rules, most=None):
        """Figures of rules on a victim; on at most so many images of either kind."""
        folder, meta = self.victims[name]
        if most is None or "strip" in rules:
            self.arguments.rules = rules
            where = self.out / (f"{name}-1" if most is None else f"{name}-1-{'-'.join(rules)}")
            return measure(folder, meta, 1, where, self.arguments, most)["evaluate"]
        self.rules(name, RULES)                 # the artifact is the same
        out = self.out / f"{name}-1-{'-'.join(rules)}"
        if not (result := out / "result.json").exists():
            triggered, targets = prepare(folder, meta, 1, out, rules, most, self.arguments.training)
            (out / "training.bin").unlink()
            options = [option for rule in rules for option in ("--rule", rule)]
            report = run(self.program, self.out / f"{name}-1", "evaluate", "--clean", str(out / "clean.bin"), "--triggered", str(triggered), *targets, *options)
            result.write_text(json.dumps(report))
        return json.loads(result.read_text())

    def inspection(self, name, samples=50):
        """The report of `doorward inspect` with both baselines."""
        folder, meta = self.victims[name]
        out = self.out / f"{name}-1-inspect-{samples}"
        if not (result := out / "result.json").exists():
            prepare(folder, meta, 1, out, [], None, self.arguments.training)
            report = run(self.program, out, "inspect", "--neural-cleanse", "--data-inspection", expected=(0, 3),
                         settings={"DOORWARD_INSPECTION__SAMPLES": str(samples)})
            (out / "training.bin").unlink()
            result.write_text(json.dumps(report))
        return json.loads(result.read_text())


def percent(*values):
    return " / ".join(f"{100 * value:.2f}" for value in values)


def head(title, *cells):
    print(f"\n### {title}\n")
    row(*cells)
    row("---", *["---:"] * (len(cells) - 1))


def published(*values):
    return " / ".join("-" if value is None else f"{value:.2f}" for value in values)


def index_of(labels, targets):
    """The anomaly index that decides: the infected labels' largest, or of a clean model anybody's."""
    own = [label["anomaly_index"] for label in labels if not targets or label["label"] in targets]
    return f"{max(own, default=0):.2f}"


def success(bench):
    head("Paper 2, table I: accuracy and attack success rate", "victim", "paper, %", "ours, %")
    for name in ("fashion-mnist-densenet-badnets", "cifar10-resnet-badnets", "cifar10-cnn6-badnets", "gtsrb-alexnet-badnets"):
        ours = NOT_RUN
        if name in bench.victims:
            meta = bench.victims[name][1]
            ours = percent(meta["clean_accuracy"], np.mean(meta["attack_success_rate"]))
        row(name, published(*SUCCESS[next(data for data in SUCCESS if name.startswith(data))]), ours)


def triggers(bench, table):
    title = {"2-III": "table III: transparency", "2-IV": "table IV: size", "2-fig5": "figure 5: pattern"}[table]
    head(f"Paper 2, {title}", "victim", "attack success, %", "paper, BDR, %", "`uap`, BDR / CIIR, %", "`calibrated`, BDR / CIIR, %")
    for victim in SWEEPS[table]:
        name = victim["name"]
        cells = [NOT_RUN] * 3
        if name in bench.victims:
            found = bench.rules(name, RULES)["rules"]
            cells = [percent(*bench.victims[name][1]["attack_success_rate"]), *[percent(found[rule]["bdr"], found[rule]["ciir"]) for rule in ("uap", "calibrated")]]
        row(name, cells[0], published(BDR[name]), *cells[1:])


def generators(bench):
    head("Paper 2, figures 6 and 7: generators (paper: the worst of its three data sets; ours: 100 clean and 100 triggered images)",
         "victim", "rule", "paper, BDR / CIIR, %", "ours, BDR / CIIR, %")
    for name in ("fashion-mnist-densenet-badnets", "cifar10-cnn6-badnets", "gtsrb-alexnet-badnets"):
        if name in bench.victims:
            found = bench.rules(name, list(WORST), 100)["rules"]
        for rule, values in WORST.items():
            ours = percent(found[rule]["bdr"], found[rule]["ciir"]) if name in bench.victims else NOT_RUN
            row(name, f"`{rule}`", published(*values), ours)


def strip(bench):
    head("Paper 2, table V: STRIP (ours: 300 clean and 300 triggered images)", "victim", "paper: STRIP, BDR / CIIR, %",
         "ours: `strip`", "paper: its rule", "ours: `uap`", "ours: `calibrated`")
    for name in ("fashion-mnist-densenet-badnets", "cifar10-resnet-badnets", "cifar10-cnn6-badnets", "gtsrb-alexnet-badnets"):
        data = next(data for data in STRIP if name.startswith(data))
        cells = [NOT_RUN] * 3
        if name in bench.victims:
            found = bench.rules(name, ["strip", "uap", "calibrated"], 300)["rules"]
            cells = [percent(found[rule]["bdr"], found[rule]["ciir"]) for rule in ("strip", "uap", "calibrated")]
        row(name, published(*STRIP[data]), cells[0], published(*UAP[data]), *cells[1:])


def inspections(bench, table):
    title = {"1-3": "table 3: unseen triggers", "1-4": "table 4: size of the trigger", "1-6": "table 6: poisoning rate"}[table]
    head(f"Paper 1, {title}: anomaly indices", "victim", "attack success, %", "paper: Neural Cleanse (above 2)", "ours", "paper: DTInspector (above 3.5)", "ours", "survivors' index", "shift's index", "named")
    for victim in SWEEPS[table]:
        name = victim["name"]
        cells = [NOT_RUN] * 6
        if name in bench.victims:
            report, targets = bench.inspection(name), bench.victims[name][1]["targets"]
            largest = lambda key: f"{max(label[key] for label in report['labels'] if label['label'] in targets):.2f}"
            cells = [percent(*bench.victims[name][1]["attack_success_rate"]), index_of(report["neural_cleanse"], targets),
                     index_of(report["labels"], targets), largest("survival_anomaly_index"), largest("shift_anomaly_index"), str(report["infected_labels"])]
        row(name, cells[0], published(CLEANSE.get(name)), cells[1], published(INDEX.get(name)), *cells[2:])


def baselines(bench):
    head("Paper 1, table 5: anomaly index of data inspection and of DTInspector (above 3.5)", "victim", "paper: data inspection", "ours",
         "paper: DTInspector", "ours", "data inspection names", "doorward names")
    for attack, values in INSPECTION.items():
        name = f"cifar10-cnn6-{attack}"
        cells = [NOT_RUN] * 4
        if name in bench.victims:
            report, targets = bench.inspection(name), bench.victims[name][1]["targets"]
            named = [label["label"] for label in report["data_inspection"] if label["infected"]]
            cells = [index_of(report["data_inspection"], targets), index_of(report["labels"], targets), str(named), str(report["infected_labels"])]
        row(name, published(values[0]), cells[0], published(values[1]), *cells[1:])


def samples(bench):
    head("Paper 1, table 9: sampling size, cifar10-cnn6-badnets: anomaly index", "K", "paper", "ours", "others' largest", "named")
    for size, value in SAMPLES.items():
        cells = [NOT_RUN] * 3
        if size in bench.arguments.samples:
            report = bench.inspection("cifar10-cnn6-badnets", size)
            others = max(label["anomaly_index"] for label in report["labels"] if label["label"] != 0)
            cells = [index_of(report["labels"], [0]), f"{others:.2f}", str(report["infected_labels"])]
        row(str(size), published(value), *cells)


TABLES = {"2-I": success, "2-III": triggers, "2-IV": triggers, "2-V": strip, "2-fig5": triggers, "2-fig6": generators,
          "1-3": inspections, "1-4": inspections, "1-5": baselines, "1-6": inspections, "1-9": samples}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("tables", nargs="+", choices=[*TABLES, "all"], metavar="TABLE")
    parser.add_argument("--samples", type=int, nargs="+", default=[50, 100, 200, 400], help="of table 1-9 (default: %(default)s)")
    parser.add_argument("--training", type=int, metavar="N", help="as in papers.py")
    parser.add_argument("--doorward", default=ROOT / "target/release/doorward")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    for table in TABLES if "all" in arguments.tables else arguments.tables:
        TABLES[table](bench, *[table] * (TABLES[table] in (triggers, inspections)))


if __name__ == "__main__":
    main()
