#!/usr/bin/env python3
"""Measure published detectors of triggered inputs, re-implemented here, on the victims and images of attacks.py.

    python benches/attacks.py DIR VICTIM ...
    python benches/peers.py DIR [--peers STRIP TED ...] [--victims cifar10-cnn-badnets ...] [--program 0] [--seed 1]

Needs numpy, onnx and onnxruntime, and DIR as attacks.py left it. Every peer sees one victim's model and its calibration images, and scores
the same images as the row of Doorward, whose scores are those of attacks.py's scan: 500 clean images at most and 300 triggered ones at most
that get the attacker's label, drawn at random. What was measured stays in DIR, a file `peers.json` a folder, and is not measured again.

Prints Markdown: AUROC and TPR, the share of triggered images above a threshold that at most 1 % of these clean images exceed. That is how
the papers count it; no one who runs a detector could set such a threshold, as it takes the clean images that are yet to come. Ties count
half in AUROC and are let through in TPR, which is why SCALE-UP, with a handful of possible scores, can have a high AUROC and no TPR. With
500 clean images the threshold is the sixth highest score, at 0.5 % the third: TPR is rough.
"Forwards" counts the images put through the model for one input, the answer itself included. "ms" is time of one core, in batches, on
CPU. Small re-implementations to the papers' settings, where they say; what departs from them stands at each. None was tuned.
"""
import argparse, json, os, sys, time, tomllib
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy as np, onnx, onnxruntime
from onnx import helper

MOST_CLEAN, MOST_TRIGGERED, RATES = 500, 300, (.01, .005)
BATCH = 64


class Model:
    """A victim: logits; activations of up to `most` layers, evenly spread over the nonlinear ones, the logits last; what the last few take."""

    def __init__(self, path, most=12):
        model = onnx.load(path)
        last = model.graph.output[0].name
        outputs = [node.output[0] for node in model.graph.node if node.op_type in ("Relu", "Elu", "Clip", "Concat", "Add") and node.output[0] != last]
        outputs = [outputs[at] for at in dict.fromkeys(np.linspace(0, len(outputs) - 1, min(most - 1, len(outputs))).astype(int))]
        before = dict.fromkeys([node.input[0] for node in model.graph.node if node.op_type in ("Relu", "Elu", "Clip")][-3:])
        self.plain = self.session(model)
        self.tapped, self.before = (self.session(model, names) for names in (outputs, before))
        self.name, self.forwards = self.plain.get_inputs()[0].name, 0
        self.shape = self.plain.get_inputs()[0].shape[1:]

    @staticmethod
    def session(model, more=()):
        model, more = onnx.ModelProto.FromString(model.SerializeToString()), [helper.make_empty_tensor_value_info(name) for name in more]
        model.graph.output.extend(more)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(self, session, images):
        self.forwards += len(images)
        return session.run(None, {self.name: images.astype(np.float32, copy=False)})

    def logits(self, images):
        return np.concatenate([self.run(self.plain, images[at:at + BATCH])[0] for at in range(0, len(images), BATCH)])

    def labels(self, images):
        return self.logits(images).argmax(1)

    def activations(self, images, prepare, session=None):
        """Predicted labels, and what `prepare` makes of a batch's layers, by layer."""
        labels, layers = [], []
        for at in range(0, len(images), BATCH):
            logits, *tapped = self.run(session or self.tapped, images[at:at + BATCH])
            labels.append(logits.argmax(1))
            layers.append(prepare([*(layer for layer in tapped if layer.ndim in (2, 4) and len(layer) == len(logits)), logits]))
        return np.concatenate(labels), [np.concatenate(layer) for layer in zip(*layers)]


class Strip:
    """STRIP. Gao, Xu, Wang, Chen, Ranasinghe, Nepal 2019, "STRIP: A Defence Against Trojan Attacks on Deep Neural Networks".

    Each input is blended with clean images drawn for it, from all calibration images; a label that survives, with little entropy of the
    softmax on the mean, is the trigger's. 64 images, half and half, as it's often done.
    """
    OVERLAYS, SHARE = 64, .5

    def __init__(self, model, images, labels, random):
        self.model, self.images, self.random = model, images, random

    def score(self, images):
        self.model.labels(images)
        return -np.array([self.entropy(image) for image in images])

    def entropy(self, image):
        overlays = self.images[self.random.choice(len(self.images), self.OVERLAYS, replace=False)]
        logits = self.model.logits(self.SHARE * (image + overlays)).astype(float)
        shifted = logits - logits.max(1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        return -(np.exp(logs) * logs).sum(1).mean()


class StripSums(Strip):
    """The same as its authors' program has it: 100 images, added without clipping, so that the trigger keeps its contrast."""
    OVERLAYS, SHARE = 100, 1


class ScaleUp:
    """SCALE-UP, data-free. Guo, Li, Chen, Guo, Sun, Liu 2023, "SCALE-UP: An Efficient Black-box Input-level Backdoor Detection via
    Analyzing Scaled Prediction Consistency".

    Share of amplified inputs, pixels times a factor and clipped, that keep their label. Uses no clean image. The factor 1 adds the same to
    every input.
    """
    FACTORS = 1, 2, 3, 4, 5

    def __init__(self, model, images, labels, random):
        self.model = model

    def score(self, images):
        first = self.model.labels(images)
        return np.mean([first if factor == 1 else self.model.labels(np.clip(factor * images, 0, 1)) for factor in self.FACTORS] == first, 0)


class ScaleUpOdd(ScaleUp):
    """The same with the factors of BackdoorBox, its authors' toolbox."""
    FACTORS = 3, 5, 7, 9, 11


class Ted:
    """TED. Mo, Zhang, Zhang, Luo, Sun, Hu, Gao, Xiang 2024, "Robust Backdoor Detection for Deep Learning via Topological Evolution Dynamics".

    At each layer, how many clean images are nearer than the nearest one of the predicted label; then the outlier score of a PCA of these
    ranks over the layers, fitted on the clean images themselves, each left out in turn. 20 rightly labelled calibration images a label, as
    its authors' 200 of 10 labels. The paper has every convolution and linear layer; here up to 12 layers, the logits the last,
    large ones averaged 2 x 2 down to 16,384 values or fewer. A label that has no reference ranks last.
    """
    EACH, VALUES = 20, 1 << 14

    def __init__(self, model, images, labels, random):
        self.model = model
        right = np.where(model.labels(images) == labels)[0]
        chosen = np.concatenate([right[labels[right] == label][:self.EACH] for label in np.unique(labels)])
        self.labels, self.layers = model.activations(images[chosen], self.flat)
        ranks = self.ranks(self.labels, self.layers, np.arange(len(chosen)))
        self.mean, deviation = ranks.mean(0), ranks.std(0)
        self.deviation = np.where(deviation > 0, deviation, 1)
        variances, vectors = np.linalg.eigh(np.cov(((ranks - self.mean) / self.deviation).T))
        shares = variances / variances.sum()
        self.vectors, self.shares = vectors.T[shares > 1e-6], shares[shares > 1e-6]

    def flat(self, layers):
        for layer in layers:
            while layer.ndim == 4 and layer[0].size > self.VALUES and min(layer.shape[2:]) > 1:
                count, channels, height, width = layer.shape
                layer = layer[:, :, :height // 2 * 2, :width // 2 * 2].reshape(count, channels, height // 2, 2, width // 2, 2).mean((3, 5))
            yield layer.reshape(len(layer), -1)

    def ranks(self, labels, layers, own=None):
        """`[images, layers]`; `own`: which reference an image is, not to be compared with itself."""
        found = []
        for layer, reference in zip(layers, self.layers):
            distances = (reference ** 2).sum(1) - 2 * layer @ reference.T       # without a term that is the same for all references
            if own is not None:
                distances[np.arange(len(own)), own] = np.inf
            nearest = np.where(labels[:, None] == self.labels, distances, np.inf).min(1, keepdims=True)
            found.append((distances < nearest).sum(1))
        return np.stack(found, 1).astype(float)

    def score(self, images):
        """As PyOD's PCA has it: distances to the components, the lesser ones weighing more."""
        ranks = (self.ranks(*self.model.activations(images, self.flat)) - self.mean) / self.deviation
        return (np.linalg.norm(ranks[:, None] - self.vectors, axis=2) / self.shares).sum(1)


class TedAll(Ted):
    """The same with all rightly labelled calibration images."""
    EACH = None


class Beatrix:
    """Beatrix. Ma, Wang, Sun, Xue, Wen, Xiang 2023, "The 'Beatrix' Resurrections: Robust Backdoor Detection via Gram Matrices".

    Gram matrices of the powers 1 to 8 of the last feature maps: how far the entries lie beyond median +- 10 MAD of the predicted label,
    relative to that bound. 30 rightly labelled calibration images a label; a label with fewer than 5 takes 30 of all. Its authors tap the
    input of a residual network's last stage, which isn't rectified, and a plain network has no such place; here the last rectified maps.
    The paper's threshold a label isn't there: scores are compared across labels.
    """
    EACH, FEWEST, POWERS, WIDTH = 30, 5, range(1, 9), 10

    def __init__(self, model, images, labels, random):
        self.model = model
        right = np.where(model.labels(images) == labels)[0]
        self.bounds = []
        for label in range(model.logits(images[:1]).shape[1]):
            own = right[labels[right] == label][:self.EACH]
            own = own if len(own) >= self.FEWEST else random.permutation(right)[:self.EACH]
            gram = self.gram(model.activations(images[own], self.last, self.session())[1][0])
            median = np.median(gram, 0)
            reach = self.WIDTH * np.median(np.abs(gram - median), 0)
            self.bounds.append(np.stack([median - reach, median + reach]).astype(np.float32))

    def session(self):
        return self.model.tapped

    @staticmethod
    def last(layers):
        yield [layer for layer in layers if layer.ndim == 4 and layer[0, 0].size > 1][-1]

    def gram(self, maps):
        """`[images, powers, pairs of channels]`"""
        maps = maps.reshape(*maps.shape[:2], -1).astype(float)
        above = np.triu_indices(maps.shape[1])
        root = lambda values, power: np.sign(values) * np.abs(values) ** (1 / power)
        return np.stack([root((maps ** power @ (maps ** power).transpose(0, 2, 1))[:, *above], power) for power in self.POWERS], 1)

    def score(self, images):
        predicted, (maps,) = self.model.activations(images, self.last, self.session())
        return np.array([self.deviation(self.gram(maps[at:at + 1])[0], *self.bounds[label]) for at, label in enumerate(predicted)])

    @staticmethod
    def deviation(gram, low, high):
        return (np.maximum(low - gram, 0) / np.abs(low + 1e-6) + np.maximum(gram - high, 0) / np.abs(high + 1e-6)).sum()


class BeatrixBefore(Beatrix):
    """The same on what the last rectifier of feature maps takes."""

    def session(self):
        return self.model.before


class Teco:
    """After TeCo. Liu, Li, Wang, Hu, Ye, Jin, Wu, Xiao 2023, "Detecting Backdoors During the Inference Stage Based on Corruption Robustness
    Consistency".

    Each corruption is strengthened in five steps; the standard deviation, over corruptions, of the first step that changes the label (6:
    none does). Uses no clean image. The paper has the 15 corruptions of ImageNet-C; here 7 that take no image library, at their strengths.
    """

    def __init__(self, model, images, labels, random):
        self.model, self.random = model, random
        normal, uniform = random.standard_normal, random.random_sample
        self.corruptions = [
            ((.08, .12, .18, .26, .38), lambda x, by: x + by * normal(x.shape)),                                                # Gaussian noise
            ((60, 25, 12, 5, 3), lambda x, by: random.poisson(x * by) / by),                                                    # shot noise
            ((.03, .06, .09, .17, .27), lambda x, by: np.where((drawn := uniform(x.shape)) < by, drawn < by / 2, x)),           # impulse noise
            ((1, 2, 3, 4, 6), lambda x, by: self.rows_and_columns(x, self.blur(x.shape[2], by))),                              # Gaussian blur
            ((.6, .5, .4, .3, .25), lambda x, by: self.rows_and_columns(x, self.pixelate(x.shape[2], by))),                    # pixelate
            ((.1, .2, .3, .4, .5), lambda x, by: x + by),                                                                       # brightness
            ((.4, .3, .2, .1, .05), lambda x, by: (mean := x.mean((2, 3), keepdims=True)) + by * (x - mean))]                   # contrast

    @staticmethod
    def blur(size, sigma):
        weights = np.exp(-.5 * (np.subtract.outer(np.arange(size), np.arange(size)) / sigma) ** 2)
        return weights / weights.sum(1, keepdims=True)

    @staticmethod
    def pixelate(size, share):
        block = np.arange(size) * int(size * share) // size
        weights = (block[:, None] == block).astype(float)
        return weights / weights.sum(1, keepdims=True)

    @staticmethod
    def rows_and_columns(images, weights):
        return weights @ images @ weights.T

    def score(self, images):
        label, firsts = self.model.labels(images), []
        for strengths, corrupt in self.corruptions:
            changed = [self.model.labels(np.clip(corrupt(images, by), 0, 1)) != label for by in strengths]
            firsts.append(np.argmax([*changed, np.ones(len(images), bool)], 0) + 1)
        return np.std(firsts, 0)


PEERS = {"STRIP": Strip, "STRIP, sums": StripSums, "SCALE-UP": ScaleUp, "SCALE-UP, 3 to 11": ScaleUpOdd, "TED": Ted, "TED, all images": TedAll, "Beatrix": Beatrix,
         "Beatrix, not rectified": BeatrixBefore, "TeCo, 7 of 15": Teco}
OURS, OUR_FORWARDS = "Doorward", 3


def figures(clean, triggered):
    """AUROC, ties counting half, and TPR at RATES."""
    ordered = np.sort(clean)
    below = (np.searchsorted(ordered, triggered, "left") + np.searchsorted(ordered, triggered, "right")) / 2
    thresholds = [ordered[-1 - int(rate * len(clean) + 1e-9)] for rate in RATES]
    return dict(auroc=float(below.mean() / len(clean)), tpr=[float((triggered > threshold).mean()) for threshold in thresholds])


def rows(folder, name):
    found = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()[1:]]
    return {key: np.array([row[key] for row in found]) for key in ("label", "predicted", "excess")}


def images(folder, name, shape):
    """True labels and images in 0 to 1."""
    raw = np.fromfile(folder / f"{name}.bin", np.uint8).reshape(-1, 1 + int(np.prod(shape)))
    return raw[:, 0].astype(int), raw[:, 1:].reshape(-1, *shape).astype(np.float32) / 255


def run(folder, peers, seed):
    """Figures by peer."""
    cache = folder / "peers.json"
    found = json.loads(cache.read_text()) if cache.exists() else {}
    if not (missing := [peer for peer in [OURS, *peers] if peer not in found]):
        return found
    path = Path(tomllib.loads((folder / "doorward.toml").read_text())["model"]["path"])
    model, targets = Model(path), json.loads((path.parent / "meta.json").read_text())["targets"]
    scanned = {name: rows(folder, name) for name in ("clean", "triggered-1.0")}
    label, predicted = (scanned["triggered-1.0"][key] for key in ("label", "predicted"))
    # The attacker's labels, as attacks.py has them.
    success = predicted == (label + 1) % len(targets) if len(targets) > 1 else np.isin(predicted, targets)
    draw = np.random.RandomState(seed).permutation
    chosen = {"clean": draw(len(scanned["clean"]["label"]))[:MOST_CLEAN], "triggered-1.0": draw(np.where(success)[0])[:MOST_TRIGGERED]}
    inputs = {name: images(folder, name, model.shape)[1][at] for name, at in chosen.items()}
    for name, at in chosen.items():
        if (model.labels(inputs[name]) == scanned[name]["predicted"][at]).mean() < .99:
            sys.exit(f"{folder}: the model labels {name} otherwise than the scan did")
    labels, calibration = images(folder, "calibration", model.shape)
    count = sum(len(of) for of in inputs.values())
    for peer in missing:
        if peer == OURS:
            found[peer] = figures(*(scanned[name]["excess"][at] for name, at in chosen.items())) | dict(forwards=OUR_FORWARDS, ms=None)
        else:
            detector = PEERS[peer](model, calibration, labels, np.random.RandomState(seed))
            model.forwards, start = 0, time.process_time()
            scores = [detector.score(of) for of in inputs.values()]
            ms = 1000 * (time.process_time() - start) / count
            found[peer] = figures(*scores) | dict(forwards=model.forwards / count, ms=ms)
        print(f"{folder.name} {peer}: {found[peer]}", file=sys.stderr, flush=True)
        cache.write_text(json.dumps(found))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--victims", nargs="+", help="all that were triggered, without this")
    parser.add_argument("--program", default="0", help="which of attacks.py's programs")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    victims = {}
    for folder in sorted(arguments.out.iterdir()):
        victim, program, seed = folder.name.rsplit("-", 2)
        if (program, seed) == (arguments.program, str(arguments.seed)) and victim in (arguments.victims or [victim]):
            if (folder / "figures.json").exists() and (folder / "triggered-1.0.jsonl").exists():
                victims[victim] = run(folder, arguments.peers, arguments.seed)
    if not victims:
        sys.exit(f"{arguments.out}: no victim of program {arguments.program} and seed {arguments.seed}")
    mean = lambda peer, of: np.mean([of(found[peer]) for found in victims.values()])
    cell = lambda auroc, tpr: f"{auroc:.3f} / {100 * tpr:.1f}"
    print("| AUROC / TPR at 1 % | " + " | ".join(victims) + " | mean | forwards | ms |")
    print("| --- " + "| ---: " * (len(victims) + 3) + "|")
    for peer in [OURS, *arguments.peers]:
        cells = [cell(found[peer]["auroc"], found[peer]["tpr"][0]) for found in victims.values()]
        cells += [cell(mean(peer, lambda of: of["auroc"]), mean(peer, lambda of: of["tpr"][0])), f"{mean(peer, lambda of: of['forwards']):.0f}"]
        cells.append("-" if peer == OURS else f"{mean(peer, lambda of: of['ms']):.1f}")
        print(f"| {peer} | " + " | ".join(cells) + " |")
    print("\n| TPR at 0.5 % | mean | lowest |\n| --- | ---: | ---: |")
    for peer in [OURS, *arguments.peers]:
        print(f"| {peer} | {100 * mean(peer, lambda of: of['tpr'][1]):.1f} | {100 * min(found[peer]['tpr'][1] for found in victims.values()):.1f} |")


if __name__ == "__main__":
    main()
