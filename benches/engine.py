#!/usr/bin/env python3
"""Compare the model engine with onnxruntime, PyTorch and tract in one run.

    python benches/engine.py                                 all default models
    python benches/engine.py --models resnet densenet        some of them
    python benches/engine.py --threads 2                     two threads an engine, wall time
    python benches/engine.py --without-doorward --rounds 2   the other engines only
    python benches/engine.py --memory                        peak memory of resnet50 at batch 8

Needs PyTorch, onnx and onnxruntime, and for mobilenet, vit and resnet50 torchvision; tract (`pip
install tract`, forward only) is left out if it is not there, and with more than one thread, for it
has one only. Prints Markdown. The engines take turns, round by round, so that a change of the
machine's load hits all of them. A figure is the median over all iterations of the milliseconds of
one iteration: with one thread CPU time, which other work on the machine moves least; with more,
wall time, for that is what threads are there to save. doorward's is the median over the rounds of
what it prints: of CPU time a mean over iterations, of wall time a median.

resnet, cnn6, densenet and alexnet are the architectures of $DOORWARD_DATA/zoo/train.py (default
../shared) with random weights; zoo/NAME are the trained models there, which exist as ONNX files
only and have no PyTorch column. Forward runs at batch 1, 2 and 32. The gradient is the one of
sum(logits * cotangent) with respect to the input, at batch 50, forward pass included; onnxruntime
has none. resnet50, whose images have 224 x 224 pixels, runs at batch 1 and 8, its gradient at 8.

With --memory every figure comes from a process of its own: the most it had resident (VmHWM), and how
much of that came after the model was loaded.

The doorward side is a command that is given `MODEL.onnx --batch N --iterations K [--gradient]
--threads T` and prints as its last line {"wall_ms": ..., "cpu_ms": ...} per iteration, and
{"loaded_mib": ..., "peak_mib": ...} of its process.
"""
import argparse, json, os, platform, shlex, statistics, subprocess, sys, tempfile, time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")    # before PyTorch: waiting threads must not count as work
import numpy as np
import onnxruntime as ort
import torch

try:
    import tract
except ImportError:
    tract = None

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("DOORWARD_DATA", ROOT / "../shared"))
DEFAULT = ["resnet", "cnn6", "densenet", "alexnet", "mobilenet", "vit", "resnet50", "zoo/fashion-mnist-densenet-square"]
FORWARD, GRADIENT = (1, 2, 32), 50
FORWARD_LARGE, GRADIENT_LARGE = (1, 8), 8               # of images of 224 x 224, for memory's sake


def architecture(name):
    """A model in evaluation mode and the shape of its input."""
    if name in ("mobilenet", "resnet50", "vit"):
        import torchvision.models as models
        return {"mobilenet": lambda: (models.mobilenet_v2(num_classes=10), (3, 32, 32)),
                "resnet50": lambda: (models.resnet50(), (3, 224, 224)),
                "vit": lambda: (models.VisionTransformer(image_size=32, patch_size=4, num_layers=6, num_heads=3, hidden_dim=192,
                                                         mlp_dim=768, num_classes=10), (3, 32, 32))}[name]()
    sys.path.insert(0, str(DATA / "zoo"))
    import train
    channels, size, classes, dataset = {"densenet": (1, 28, 10, "fashion-mnist"), "alexnet": (3, 32, 43, "gtsrb")}.get(name, (3, 32, 10, "cifar10"))
    return torch.nn.Sequential(train.Norm(*train.STATS[dataset]), train.ARCH[name](channels, classes)), (channels, size, size)


def export(model, shape, path):
    torch.onnx.export(model, torch.zeros(1, *shape), path, input_names=["input"], output_names=["logits"],
                      dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}}, opset_version=17, dynamo=False)


def timed(function, iterations, clock):
    """Milliseconds of each iteration, after one that does not count."""
    function()
    samples = []
    for _ in range(iterations):
        start = clock()
        function()
        samples.append(1e3 * (clock() - start))
    return samples


class OnnxRuntime:
    name = "onnxruntime"

    def __init__(self, path, threads):
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def run(self, x, gradient, iterations, clock):
        return None if gradient else timed(lambda: self.session.run(None, {self.input: x}), iterations, clock)


class Tract:
    name = "tract"

    def __init__(self, path):
        self.path, self.models = path, {}

    def run(self, x, gradient, iterations, clock):
        if gradient:
            return None
        if x.shape not in self.models:
            model = tract.onnx().load(self.path)
            model.set_input_fact(0, ",".join(map(str, x.shape)) + ",f32")
            self.models = {x.shape: model.into_model().into_runnable()}
        return timed(lambda: self.models[x.shape].run([x]), iterations, clock)


class PyTorch:
    name = "PyTorch"

    def __init__(self, model):
        self.model = model.requires_grad_(False)

    def run(self, x, gradient, iterations, clock):
        x = torch.from_numpy(x)
        if not gradient:
            with torch.inference_mode():
                return timed(lambda: self.model(x), iterations, clock)
        x.requires_grad_()
        cotangent = torch.randn(self.model(x).shape)
        return timed(lambda: torch.autograd.grad((self.model(x) * cotangent).sum(), x), iterations, clock)


class Doorward:
    name = "doorward"

    def __init__(self, command, path, threads):
        self.command, self.path, self.threads = command, path, threads

    def run(self, x, gradient, iterations, clock):
        command = [*self.command, str(self.path), "--batch", str(len(x)), "--iterations", str(iterations),
                   *(["--gradient"] if gradient else []), "--threads", str(self.threads)]
        return [last_line(command)["cpu_ms" if clock is time.process_time else "wall_ms"]]


def last_line(command):
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(map(str, command))} ended with status {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def resident(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field + ":")) / 1024


def memory_of_pytorch(name, batch, gradient):
    """Runs one model and prints what Doorward's command prints of its memory."""
    model, shape = architecture(name)
    model.eval().requires_grad_(False)
    loaded = resident("VmRSS")
    x = torch.rand(batch, *shape)
    for _ in range(2):
        if gradient:
            torch.autograd.grad(model(x.requires_grad_()).sum(), x)
        else:
            with torch.inference_mode():
                model(x)
    print(json.dumps(dict(loaded_mib=loaded, peak_mib=resident("VmHWM"))))


def compare_memory(arguments, name="resnet50", batch=8):
    print("| resident MiB | doorward, peak | doorward, after loading | PyTorch, peak | PyTorch, after loading |\n|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as folder:
        path = Path(folder) / f"{name}.onnx"
        model, shape = architecture(name)
        export(model.eval(), shape, path)
        for gradient in (False, True):
            flag = ["--gradient"] if gradient else []
            ours = last_line([*shlex.split(arguments.doorward), path, "--batch", str(batch), "--iterations", "1", *flag,
                              "--threads", str(arguments.threads)])
            theirs = last_line([sys.executable, __file__, "--threads", str(arguments.threads), "--memory-of-pytorch", name, str(batch), *flag])
            cells = [figures[key] - start for figures in (ours, theirs) for key, start in (("peak_mib", 0), ("peak_mib", figures["loaded_mib"]))]
            print(f"| {name} {'gradient' if gradient else 'forward'} b{batch} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |", flush=True)


def measure(engines, x, gradient, clock, arguments):
    """Median milliseconds by engine; engines without this operation are left out."""
    samples = {engine.name: [] for engine in engines}
    # Long iterations need fewer of them: one round takes about --seconds of each engine.
    once = max((min(result) for engine in engines if engine.name != "doorward"
                for result in [engine.run(x, gradient, 2, clock)] if result), default=10.0)
    iterations = max(3, min(200, int(1e3 * arguments.seconds / max(once, 1e-3))))
    for _ in range(arguments.rounds):
        for engine in engines:
            samples[engine.name] += engine.run(x, gradient, iterations, clock) or []
    return {name: statistics.median(values) for name, values in samples.items() if values}


def processor():
    with open("/proc/cpuinfo") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} usable"


COLUMNS = ["doorward", "onnxruntime", "PyTorch", "tract"]


def row(name, operation, figures):
    def ratio(peer):
        return f"{figures['doorward'] / figures[peer]:.2f}" if {"doorward", peer} <= figures.keys() else "-"
    cells = [f"{figures[engine]:.2f}" if engine in figures else "-" for engine in COLUMNS] + [ratio(peer) for peer in COLUMNS[1:]]
    return f"| {name} | {operation} | " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=DEFAULT, metavar="NAME",
                        help=f"of {', '.join(DEFAULT[:-1])}, zoo/VICTIM (default: {' '.join(DEFAULT)})")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=.5, help="of each engine in each round, about")
    parser.add_argument("--doorward", default="cargo bench --quiet --bench main -- engine", metavar="CMD", help="default: %(default)s")
    parser.add_argument("--without-doorward", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--memory", action="store_true", help="compare peak memory instead of time")
    parser.add_argument("--memory-of-pytorch", nargs=2, metavar=("NAME", "BATCH"), help=argparse.SUPPRESS)
    parser.add_argument("--gradient", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of_pytorch:
        name, batch = arguments.memory_of_pytorch
        return memory_of_pytorch(name, int(batch), arguments.gradient)
    if arguments.memory:
        return compare_memory(arguments)
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter

    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    print(f"{processor()}; {arguments.threads} thread(s) an engine; commit {commit}; load {os.getloadavg()[0]:.1f}; "
          f"onnxruntime {ort.__version__}, PyTorch {torch.__version__}, tract {tract.version() if tract else 'absent'}\n")
    print(f"{'CPU' if arguments.threads == 1 else 'Wall'} milliseconds per iteration, median; ratios below 1 mean that doorward is faster\n")
    print(f"| model | operation | {' | '.join(COLUMNS)} | {' | '.join('/' + peer for peer in COLUMNS[1:])} |")
    print("|---|---|" + "---:|" * (2 * len(COLUMNS) - 1))
    results = []
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as folder:
        for name in arguments.models:
            engines = []
            if name.startswith("zoo/"):
                path = (DATA / name / "model.onnx").resolve()
                session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
                shape = session.get_inputs()[0].shape[1:]
            else:
                model, shape = architecture(name)
                model.eval()(torch.zeros(2, *shape))       # gives lazy layers their size
                path = Path(folder) / f"{name}.onnx"
                export(model, shape, path)
                engines.append(PyTorch(model))
            engines.append(OnnxRuntime(path, arguments.threads))
            if tract and arguments.threads == 1:
                engines.append(Tract(path))
            if not arguments.without_doorward:
                engines.append(Doorward(shlex.split(arguments.doorward), path, arguments.threads))
            forward, gradient = (FORWARD_LARGE, GRADIENT_LARGE) if shape[-1] >= 224 else (FORWARD, GRADIENT)
            for batch, gradient in [(batch, False) for batch in forward] + [(gradient, True)]:
                x = generator.random((batch, *shape), np.float32)
                figures = measure(engines, x, gradient, clock, arguments)
                operation = f"{'gradient' if gradient else 'forward'} b{batch}"
                if figures:
                    print(row(name, operation, figures), flush=True)
                    results.append(dict(model=name, operation=operation, milliseconds=figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(dict(processor=processor(), threads=arguments.threads, commit=commit, results=results), indent=1))


if __name__ == "__main__":
    main()
