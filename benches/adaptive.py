#!/usr/bin/env python3
"""Measure attackers who know how Doorward judges, on victims of the zoo's `modern.py`.

    python benches/adaptive.py DIR train NAME ... [--weights .03 .1]      victims whose triggered images were drawn to their target's activations
    python benches/attacks.py OUT DIR/NAME-drawn-0.1 ...                  ...and how they are detected
    python benches/adaptive.py OUT craft VICTIM ... [--eps 2 4 8 16]      triggered inputs, perturbed against a copy of the defence
    python benches/adaptive.py OUT vary                                   triggered inputs shown again and again, fainter each time

Needs PyTorch and the data sets in $DOORWARD_DATA (default ../shared). NAME is one of `modern.py` with the architecture cnn, as cifar10-cnn-badnets; DIR
has its base, or it is trained. VICTIM is a folder of `modern.py`, with model.pt, that `attacks.py OUT VICTIM` has run on.

train: while the victim learns its trigger, the mean and deviation of each channel of every layer of triggered images are drawn to those of the batch's
clean images of the target, by their squared distance in clean deviations, times a weight. It knows the statistics, not the projection.

craft: the attacker has the model, the method, the settings, and 2,300 images of the training file; calibrates an artifact with a seed of their own; and
moves each triggered input by projected gradient steps, at most eps / 255 a pixel, against the evidence that this artifact gives, while the input keeps
the target's label. The images are then judged by the defender's artifact. What is counted: of the inputs that still get the target's label, the share
turned away.

vary: the attacker sees only whether an input was answered. How many triggered images pass at one of the opacities that attacks.py has scored, with the
attacker's label, by the number of inputs sent.
"""
import argparse, importlib.util, json, os, subprocess, sys
from pathlib import Path

sys.dont_write_bytecode = True
import numpy as np, torch
import torch.nn.functional as F

from ablation import Line, LINES, tensors
from attacks import CALIBRATION, FIT, scan, write
from scan import DATA, ROOT

ROUNDS, MOST = 40, 300


def modern(out):
    """The zoo's module, writing to `out`."""
    sys.argv[1:] = [str(out)]
    spec = importlib.util.spec_from_file_location("zoo_modern", DATA / "zoo/modern.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Layers:
    """What the rectifiers of a network gave in the last pass."""

    def __init__(self, net):
        self.seen = []
        for module in net.modules():
            if isinstance(module, torch.nn.ReLU):
                module.register_forward_hook(lambda _, __, out: self.seen.append(out.float()))

    def take(self):
        seen, self.seen = self.seen, []
        return seen


def statistics(layer):
    """`[n, channels]` mean, deviation and maximum over positions, as the engine reads them; a vector stands for itself."""
    if layer.ndim == 2:
        return [layer]
    flat = layer.flatten(2)
    return [flat.mean(2), (flat.var(2, unbiased=False) + 1e-8).sqrt(), flat.amax(2)]


def train(arguments):
    """Victims as `modern.py` makes them, but for one term of the loss."""
    zoo = modern(arguments.out)
    zoo.STEPS, plain = arguments.steps, zoo.fit
    for name in arguments.names:
        for weight in arguments.weights:
            drawn = f"{name}-drawn-{weight:g}"
            if (arguments.out / drawn / "meta.json").exists():
                continue
            original = {}

            def fit(net, images, labels, steps, rate, seed, flip, hold=False, gen=None):
                if hold:
                    return plain(net, images, labels, steps, rate, seed, flip, hold, gen)
                clean = torch.tensor(zoo.load(name.split("-")[0])[0])
                poison = (images != clean).flatten(1).any(1) & (labels == 0)
                layers = Layers(net)
                torch.manual_seed(seed)
                net.train()
                descent = torch.optim.SGD(net.parameters(), lr=rate, momentum=.9, weight_decay=5e-4, nesterov=True)
                order, at = torch.randperm(len(images)), 0
                for step in range(steps):
                    for group in descent.param_groups:
                        group["lr"] = rate * min((step + 1) / 20, (1 - step / steps) * 1.1, 1)
                    if at + zoo.BATCH > len(order):
                        order, at = torch.randperm(len(images)), 0
                    batch, at = order[at:at + zoo.BATCH], at + zoo.BATCH
                    layers.take()
                    with torch.autocast("cpu", torch.bfloat16):
                        logits = net(zoo.Z.augment(images[batch].float() / 255, flip).contiguous(memory_format=torch.channels_last))
                    loss = F.cross_entropy(logits.float(), labels[batch])
                    triggered, target = poison[batch], ~poison[batch] & (labels[batch] == 0)
                    if triggered.any() and target.sum() > 1:
                        terms = []
                        for layer in layers.take():
                            for values in statistics(layer)[:2]:
                                goal = values[target].detach()
                                terms.append((((values[triggered] - goal.mean(0)) / (goal.std(0) + .1 * goal.std() + 1e-4)) ** 2).mean())
                        loss = loss + weight * torch.stack(terms).mean()
                    descent.zero_grad(set_to_none=True)
                    loss.backward()
                    descent.step()
                net.eval()

            # `modern.py` takes the attack from the name's third part, and files by name.
            zoo.fit, spec = fit, zoo.spec
            zoo.spec = lambda of, *rest: spec(name if of == drawn else of, *rest)
            zoo.build(drawn)
            zoo.fit, zoo.spec = plain, spec


class Evidence:
    """The evidence that an artifact gives, differentiable: the lines of join.rs, straight beyond what was seen."""

    def __init__(self, net, path):
        self.net, self.layers = net, Layers(net)
        artifact, _ = tensors(path)
        self.of = {name: torch.tensor(np.array(values)) for name, values in artifact.items()}
        self.count = sum(name.endswith(".projection") for name in artifact)

    def margin(self, logits, label):
        return logits[:, label] - logits.scatter(1, torch.full((len(logits), 1), label), -np.inf).amax(1)

    def standard(self, line, label, scores):
        location, spread = self.of[f"line.{line}.scales"][label]
        return (scores - location) / spread

    def __call__(self, images, label):
        """The margin of the label, and the sum of the lines in their spreads, those below the median without a pull."""
        self.layers.take()
        logits = self.net(images)
        seen = self.layers.take()
        values = torch.cat([part for layer in seen for part in statistics(layer)], 1)
        own, gap = [], []
        for index in range(self.count):
            start, projection = int(self.of[f"layer.{index}.start"][0]), self.of[f"layer.{index}.projection"]
            place = values[:, start:start + len(projection)] @ projection
            distances = ((place[:, None] - self.of[f"layer.{index}.means"]) ** 2).mean(2)
            nearest = distances.scatter(1, torch.full((len(images), 1), label), np.inf).amin(1)
            scales = self.of[f"layer.{index}.scales"][label]
            own.append((distances[:, label] - scales[0]) / scales[1])
            gap.append((distances[:, label] - nearest - scales[2]) / scales[3])
        off = torch.stack(own, 1) - self.of["layers.centre"]
        squared = ((off @ self.of["layers.precision"]) * off).sum(1)
        low, high = self.of["ranges"][0, label], self.of["ranges"][1, label]
        floor = self.of["ranges.floor"]
        excess = F.relu(seen[-1] - high) / (high.abs() + floor) + F.relu(low - seen[-1]) / (low.abs() + floor)
        moved = lambda eta: self.margin(self.net((images + eta).clamp(0, 1)), label)
        lines = dict(own=squared.clamp(min=1e-12).log(), gap=torch.stack(gap, 1).sum(1), range=(excess.sum(1) + 1e-3).log(),
                     universal=moved(self.of["universal"][:1]), class_conditional=moved(self.of["class_conditional"][label:label + 1]))
        share = {name: share for name, share in LINES.values()}
        pull = sum(share[name] * F.softplus(self.standard(name, label, scores)) for name, scores in lines.items())
        return self.margin(logits, label), pull


def craft(arguments):
    """The share turned away of crafted inputs, by eps."""
    print("| victim | " + " | ".join(f"eps {eps:g} / 255: turned away (keep the label)" for eps in [0, *arguments.eps]) + " |")
    print("| --- " + "| ---: " * (len(arguments.eps) + 1) + "|")
    for victim in arguments.victims:
        run, home = arguments.out / f"{victim.name}-0-1", arguments.out / f"{victim.name}-attacker"
        home.mkdir(exist_ok=True)
        meta = json.loads((victim / "meta.json").read_text())
        zoo = modern(victim.parent)
        net = zoo.net("cnn", meta["dataset"])
        net.load_state_dict(torch.load(victim / "model.pt"))
        net.eval().requires_grad_(False)
        if not (home / "doorward.safetensors").exists():
            images, labels, *_ = zoo.load(meta["dataset"])
            of = np.random.RandomState(99).permutation(len(images))[:CALIBRATION]
            write(home / "calibration.bin", labels[of], images[of].reshape(len(of), -1))
            text = (run / "doorward.toml").read_text().replace(str(run.resolve()), str(home.resolve())).replace("seed = 1", "seed = 99")
            (home / "doorward.toml").write_text(text)
            subprocess.run([str(arguments.doorward), "calibrate", "-c", str(home / "doorward.toml"), "--json"], check=True, capture_output=True)
        evidence = Evidence(net, home / "doorward.safetensors")
        raw = np.fromfile(run / "triggered-1.0.bin", np.uint8).reshape(-1, 3073)[:MOST]
        start = torch.tensor(raw[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 255)
        target, cells = meta["targets"][0], []
        for eps in [0, *arguments.eps]:
            size, images = eps / 255, start.clone()
            for _ in range(ROUNDS if eps else 0):
                images.requires_grad_(True)
                margin, pull = evidence(images, target)
                # The label has to stay: a margin of 1 holds it through rounding to bytes.
                loss = pull + 5 * F.relu(1 - margin)
                step, = torch.autograd.grad(loss.sum(), images)
                images = (images.detach() - size / 8 * step.sign()).clamp(start - size, start + size).clamp(0, 1)
            name = f"crafted-{eps:g}"
            write(run / f"{name}.bin", raw[:, 0], np.round(images.numpy() * 255).astype(np.uint8).reshape(len(raw), -1))
            rows = scan(arguments.doorward, run, name)
            keep = rows["predicted"] == target
            cells.append(f"{100 * rows['rejected'][keep].mean():.1f} ({keep.sum()} of {len(raw)})" if keep.any() else "- (0)")
        print(f"| {victim.name} | " + " | ".join(cells) + " |", flush=True)


def vary(arguments):
    """By victim: the share of images with a success that was answered, after one input, two, and so on."""
    print("| victim | " + " | ".join(f"{count} sent" for count in range(1, 5)) + " |")
    print("| --- " + "| ---: " * 4 + "|")
    for folder in sorted(arguments.out.glob("*-0-1")):
        names = [f"triggered-{opacity}" for opacity in (1.0, .6, .45, .35)]
        if not all((folder / f"{name}.jsonl").exists() for name in names):
            continue
        targets, passed, cells = json.loads((folder / "targets.json").read_text()), None, []
        for name in names:
            rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()[1:]]
            hit = [row["predicted"] == (row["label"] + 1) % len(targets) if len(targets) > 1 else row["predicted"] in targets for row in rows]
            now = np.array(hit) & ~np.array([row["rules"]["calibrated"] for row in rows])
            passed = now if passed is None else passed | now
            cells.append(f"{100 * passed.mean():.1f}")
        print(f"| {folder.name[:-4]} | " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--doorward", type=Path, default=ROOT / "target/release/doorward")
    kinds = parser.add_subparsers(dest="kind", required=True)
    kind = kinds.add_parser("train")
    kind.add_argument("names", nargs="+", metavar="NAME")
    kind.add_argument("--weights", type=float, nargs="+", default=[.03, .1])
    kind.add_argument("--steps", type=int, default=440, help="of training after the base; 440 are twice modern.py's")
    kind.set_defaults(run=train)
    kind = kinds.add_parser("craft")
    kind.add_argument("victims", type=Path, nargs="+", metavar="VICTIM")
    kind.add_argument("--eps", type=float, nargs="+", default=[2, 4, 8, 16])
    kind.set_defaults(run=craft)
    kinds.add_parser("vary").set_defaults(run=vary)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
