#!/usr/bin/env python3
"""Compare what calibration learns with the adversarial robustness toolbox (ART) and PyTorch, in one run.

    python benches/learn.py                                  both comparisons on both victims
    python benches/learn.py universal --epsilon 0.102        ART at this radius instead of doorward's
    python benches/learn.py patches --victims fashion-mnist-densenet-square

Needs PyTorch, onnx2torch, and for `universal` adversarial-robustness-toolbox. Victims and images come from $DOORWARD_DATA
(default ../shared). Both sides have the same model, images, targets and number of threads, and take turns in one run; a
figure is CPU seconds, all threads of the process together, without loading. Prints Markdown; a ratio above 1 means that
doorward is faster.

universal: one perturbation of --count images that changes the label of --fooling-rate of them. doorward searches for the
smallest radius at which it gets there, by sign steps (its default) and by DeepFool; ART (UniversalPerturbation with the
DeepFool attacker, 10 steps at most, as published) is given the radius that the sign steps found, and stops after --passes
at the latest: where it does not get there the ratio is a lower bound.

patches: one patch for each label, --steps Adam steps on batches of 16 of 50 images, all 50 looked at every 10 steps; doorward
learns all labels in one batch, the other side is the same optimisation in PyTorch, label by label.
"""
import argparse, gzip, json, os, shlex, subprocess, sys, time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")    # before PyTorch: waiting threads must not count as work
import numpy as np
import torch
from onnx2torch import convert

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("DOORWARD_DATA", ROOT / "../shared")).resolve()
IMAGES = {"cifar10": (DATA / "data/cifar10/test.bin.gz", (3, 32, 32)),
          "fashion": (ROOT / "assets/fashion-mnist/fit.bin.gz", (1, 28, 28))}
VICTIMS = ["cifar10-cnn6-badnets", "fashion-mnist-densenet-square"]


def load(victim, count):
    """The model in PyTorch, its file, the images' file, and the first images in [0, 1]."""
    path = DATA / "zoo" / victim / "model.onnx"
    source, shape = IMAGES[victim.split("-")[0]]
    records = np.frombuffer(gzip.open(source).read(), np.uint8).reshape(-1, 1 + int(np.prod(shape)))[:count]
    images = (records[:, 1:].reshape(-1, *shape) / 255).astype(np.float32)
    return convert(path).eval().requires_grad_(False), path, source, images


def doorward(arguments, *command):
    command = [*shlex.split(arguments.doorward), *map(str, command), "--threads", str(arguments.threads), "--seed", str(arguments.seed)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} ended with status {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def universal(arguments):
    import random
    from art.attacks.evasion import UniversalPerturbation
    from art.estimators.classification import PyTorchClassifier

    print("\n| victim | search | radius | fooling rate | CPU s | ART / this |\n|---|---|---:|---:|---:|---:|")
    for victim in arguments.victims:
        model, path, source, images = load(victim, arguments.count)
        shared = (path, source, "--count", arguments.count, "--fooling-rate", arguments.fooling_rate)
        steps = doorward(arguments, "universal", *shared)
        deepfool = doorward(arguments, "universal", *shared, "--deepfool") if not arguments.without_deepfool else None
        epsilon = arguments.epsilon or steps["epsilon"]
        labels = len(model(torch.from_numpy(images[:1]))[0])
        classifier = PyTorchClassifier(model, torch.nn.CrossEntropyLoss(), images.shape[1:], labels, clip_values=(0, 1), device_type="cpu")
        random.seed(arguments.seed)
        np.random.seed(arguments.seed)
        attack = UniversalPerturbation(classifier, "deepfool", dict(max_iter=10, nb_grads=10, epsilon=.02, batch_size=1, verbose=False),
                                       delta=1 - arguments.fooling_rate, max_iter=arguments.passes, eps=epsilon, norm=np.inf, verbose=False)
        start = time.process_time()
        attack.generate(images)
        theirs = dict(cpu_s=time.process_time() - start, epsilon=epsilon, fooling_rate=attack.fooling_rate)
        bound = ">= " if theirs["fooling_rate"] < arguments.fooling_rate else ""
        for name, found in (("doorward, sign steps", steps), ("doorward, DeepFool", deepfool), (f"ART, DeepFool, {arguments.passes} passes at most", theirs)):
            if found:
                ratio = f"{bound}{theirs['cpu_s'] / found['cpu_s']:.1f}" if found is not theirs else "-"
                print(f"| {victim} | {name} | {255 * found['epsilon']:.1f}/255 | {found['fooling_rate']:.1%} | {found['cpu_s']:.1f} | {ratio} |", flush=True)


def margins(logits, label):
    others = logits.clone()
    others[:, label] = -torch.inf
    return logits[:, label] - others.max(1).values


def learn_patch(model, top, label, steps, generator):
    """crates/doorward-detection/src/inspect/patch.rs on one label: the smallest mask that changed 95 % of `top`, or the last."""
    mask = (torch.rand(1, 1, *top.shape[2:], generator=generator) - 1.5).requires_grad_()
    pattern = (torch.rand(1, *top.shape[1:], generator=generator) - .5).requires_grad_()
    adam = torch.optim.Adam([mask, pattern], .1, (.5, .9))
    weight, successes, failures, best = 1e-4, 0, 0, None

    def apply(rows):
        unit = mask.tanh() / 2 + .5
        return (1 - unit) * rows + unit * (pattern.tanh() / 2 + .5), unit

    for step in range(steps):
        picked = top[torch.randperm(len(top), generator=generator)[:16]]
        patched, unit = apply(picked)
        left = margins(model(patched), label)
        adam.zero_grad()
        (left.clamp(min=-2).mean() + weight * unit.sum()).backward()
        adam.step()
        success = (left < 0).float().mean() >= .95
        successes, failures = (successes + 1, 0) if success else (0, failures + 1)
        if successes == 5:
            successes, weight = 0, weight * 1.5
        if failures == 5:
            failures, weight = 0, weight / 1.5 ** 1.5
        if (step + 1) % 10 == 0 or step + 1 == steps:
            with torch.no_grad():
                size = (mask.tanh() / 2 + .5).sum().item()
                if best is None or size < best[1]:
                    changed = (margins(model(apply(top)[0]), label) < 0).float().mean().item()
                    if changed >= .95:
                        best = (changed, size)
    return best or (changed, size)


def patches(arguments):
    print("\n| victim | labels | all changed at least | mean mask, pixels (doorward / PyTorch) | doorward, CPU s | PyTorch, CPU s | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for victim in arguments.victims:
        model, path, source, images = load(victim, arguments.samples)
        ours = doorward(arguments, "patches", path, source, "--count", arguments.samples, "--steps", arguments.steps)
        images = torch.from_numpy(images)
        with torch.no_grad():
            predicted = torch.cat([model(part) for part in images.split(100)]).argmax(1)
        generator = torch.Generator().manual_seed(arguments.seed)
        labels = predicted.unique().tolist()
        start = time.process_time()
        theirs = [learn_patch(model, images[predicted == label][:50], label, arguments.steps, generator) for label in labels]
        cpu = time.process_time() - start
        least = min(patch["changed"] for patch in ours["patches"]), min(changed for changed, _ in theirs)
        size = np.mean([patch["mask_l1"] for patch in ours["patches"]]), np.mean([size for _, size in theirs])
        print(f"| {victim} | {len(labels)} | {least[0]:.0%} / {least[1]:.0%} | {size[0]:.1f} / {size[1]:.1f} | "
              f"{ours['cpu_s']:.1f} | {cpu:.1f} | {cpu / ours['cpu_s']:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["universal", "patches"], help="default: both")
    parser.add_argument("--victims", nargs="+", default=VICTIMS, metavar="NAME")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=300, help="images of the universal perturbation")
    parser.add_argument("--fooling-rate", type=float, default=.8)
    parser.add_argument("--epsilon", type=float, help="ART's radius, share of the pixel range (default: what doorward found)")
    parser.add_argument("--passes", type=int, default=10, help="of ART over the images at most")
    parser.add_argument("--without-deepfool", action="store_true", help="leave out doorward's DeepFool search")
    parser.add_argument("--samples", type=int, default=600, help="images that the labels' 50 are taken from")
    parser.add_argument("--steps", type=int, default=60, help="of the patches")
    parser.add_argument("--doorward", default="cargo bench --quiet --bench main --", metavar="CMD", help="default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    print(f"{arguments.threads} thread(s); seed {arguments.seed}; commit {commit}; load {os.getloadavg()[0]:.1f}; PyTorch {torch.__version__}")
    for what in arguments.what or ["universal", "patches"]:
        dict(universal=universal, patches=patches)[what](arguments)


if __name__ == "__main__":
    main()
