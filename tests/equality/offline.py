"""Everything that needs no traffic: settings, artifacts, commands."""

import gzip
import json
import shutil
import struct
from pathlib import Path

import pictures
from program import digest, step

ROOT = Path(__file__).resolve().parents[2]

# The model and its images, with few of everything.
BASE = """model.path = "assets/model.onnx"
model.name = "fashion"
calibration.clean_images = ["assets/fit.bin.gz", "assets/holdout.bin.gz"]
calibration.training_images = "training.bin.gz"
calibration.artifact = "calibrated.safetensors"
calibration.fit_images = 60
calibration.holdout_images = 400
calibration.seed = 7
perturbation.steps = 12
perturbation.batch = 32
inspection.samples = 16
inspection.steps = 12
inspection.batch = 8
policy.max_false_rejection_rate = 0.02
"""
UPSTREAM = 'upstream.url = "http://127.0.0.1:1"\n'
FEW = {
    "training.bin.gz": ("training.bin.gz", 700),
    "clean.bin.gz": ("clean.bin.gz", 120),
    "triggered.bin.gz": ("triggered.bin.gz", 60),
}

KINDS = {
    "calibrated": "",
    "strip": 'policy.rule = "strip"\npolicy.max_false_rejection_rate = 0.05\n',
    "deepfool": 'perturbation.algorithm = "deepfool"\nperturbation.count = 2\n',
    "pictures": """preprocess.mean = 0.25
preprocess.std = 0.5
preprocess.resize = "crop"
preprocess.shortest_side = 32
preprocess.interpolation = "bicubic"
preprocess.exif_orientation = "apply"
images.protocols = ["litserve"]
policy.max_false_rejection_rate = 0.05
""",
}


def without(text, *keys):
    """Settings less these keys."""
    return "".join(line for line in text.splitlines(True) if not line.startswith(keys))


def prepare(program):
    """Files that the commands read."""
    for name, (source, count) in FEW.items():
        rows = b"".join(
            bytes([label]) + pixels for label, pixels in pictures.records(source, count)
        )
        (program.folder / name).write_bytes(gzip.compress(rows, mtime=0))
    for at, (label, pixels) in enumerate(pictures.records("clean.bin.gz", 12)):
        folder = program.folder / "pictures" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{at}.png").write_bytes(pictures.png(pixels))
        (folder / f"{at}.jpg").write_bytes(pictures.jpeg(pixels))
    for name, more in KINDS.items():
        text = BASE.replace("calibrated.safe", f"{name}.safe")
        if name != "calibrated":
            more += "calibration.fit_images = 24\ncalibration.holdout_images = 120\n"
            more += "calibration.training_images = []\n"
            text = without(text, *(line.split(" ")[0] for line in more.splitlines()))
        (program.folder / f"{name}.toml").write_text(UPSTREAM + text + more)


REQUIRED = UPSTREAM + 'model.path = "m.onnx"\ncalibration.clean_images = "clean"\n'
GOOD = {
    "required": REQUIRED,
    "monitor": REQUIRED
    + '[policy]\nmode = "monitor"\nrule = "uap"\n[policy.unverified]\ninternal = "pass"\n',
    "images": REQUIRED + 'images.protocols = ["torchserve"]\npreprocess.resize = "crop"\n'
    "preprocess.shortest_side = 256\npreprocess.mean = [0.485, 0.456, 0.406]\n",
    "grpc": REQUIRED
    + 'listen.grpc = "[::1]:1"\nupstream.grpc_url = "http://u"\nlisten.http = "unix:/run/d"\n',
    "tls": 'upstream.url = "https://a:1"\nupstream.tls.ca = "ca.crt"\n'
    'tls.certificate = "c"\ntls.key = "k"\n'
    'model.path = "m.onnx"\ncalibration.clean_images = ["a", "b"]\n',
    "models": UPSTREAM
    + """model.path = "m.onnx"
calibration.clean_images = "clean"
[[models]]
model.name = "a"
calibration.artifact = "a.safetensors"
policy.mode = "monitor"
[[models]]
model.name = "b"
model.path = "b.onnx"
calibration.artifact = "s3://bucket/b.safetensors"
""",
}
BAD = """polici.mode = "enforce"
policy.mod = "enforce"
policy.mode = "observe"
policy.mode = 7
policy.rule = "none"
policy.unverified.overlod = "pass"
policy.unverified.overload = "maybe"
policy.max_false_rejection_rate = nan
policy.max_false_rejection_rate = 0
policy.max_false_rejection_rate = 1.0
policy.infected_budget = 0.5
limits.rows = 0
limits.rows = -3
limits.rows = "many"
limits.rows = 600
limits.rows = 1.5
limits.body_timeout_seconds = 0
limits.body_timeout_seconds = inf
limits.image_pixels = 0
listen.http = "here"
listen.http = "unix:here"
listen.grpc = "127.0.0.1:1"
upstream.grpc_url = "http://u"
admin.listen = "unix:/run/a"
perturbation.max_epsilon = 1.5
perturbation.algorithm = "newton"
perturbation.steps = 0
inspection.lambda = 0
inspection.success_rate = 2
preprocess.std = [1, 0]
preprocess.mean = []
preprocess.mean = "x"
preprocess.resize = "crop"
preprocess.shortest_side = 9
preprocess.interpolation = "area"
preprocess.exif_orientation = "maybe"
model.name = ""
model.predictions = "both"
model.predictions = "upstream"\\npolicy.rule = "strip"
calibration.artifact = ""
calibration.artifact = "https://a/b"
calibration.artifact = "s3://a"
calibration.artifact_sha256 = "ab"
calibration.seed = -1
calibration.training_images = 3
calibration.fit_images = 0
images.protocols = ["flask"]
images.protocols = ["bentoml", "litserve"]
images.path = "/a/../b"
images.part = "a b"
audit.path = ""
audit.events = "some"
audit.rotate_bytes = 0
audit.quarantine.directory = "q"
audit.quarantine.files = 0
tls.certificate = "a"
tls.key = "a"
tls.client_ca = "a"
upstream.tls.ca = "a"
upstream.breaker_failures = -1
upstream.max_rows = 0
upstream.http2 = "yes"
telemetry.log = "doorward=loud"
telemetry.format = "xml"
telemetry.otlp.endpoint = "collector"
telemetry.otlp.sample_ratio = 2
not toml
model = 3
models = []
[[models]]
[[models]]\\nmodel.name = "a"
[[models]]\\nmodel.name = "a/b"\\ncalibration.artifact = "a"
[[models]]\\nmodel.name = "a"\\nlimits.rows = 3\\ncalibration.artifact = "a\"""".split("\n")
URLS = [
    "https://a",
    "ftp://a",
    "http://",
    "http://a/path",
    "http://u@a",
    "http://a:0",
    "a:1",
    "http://a b",
    "unix:run/a",
    "unix:",
    "http://[::1]:80",
    "unix:/run/a.sock",
]
ENVIRONMENTS = [
    {"DOORWARD_POLICY__MODE": "monitor", "DOORWARD_LIMITS__ROWS": "3"},
    {"DOORWARD_POLICY__UNVERIFIED__ARTIFACT": '"reject"', "DOORWARD_MODEL__NAME": "17"},
    {
        "DOORWARD_PREPROCESS__MEAN": "[0.5, 1]",
        "DOORWARD_CALIBRATION__TRAINING_IMAGES": '["a", "b"]',
    },
    {"DOORWARD_PORT": "tcp://10.0.0.1:80", "DOORWARD_SERVICE_HOST": "10.0.0.1"},
    {"DOORWARD_POLICY__MOD": "monitor"},
    {"DOORWARD_POLISY__MODE": "monitor"},
    {"DOORWARD_LIMITS__ROWS": "many"},
    {"DOORWARD_LIMITS__": "1"},
    {"DOORWARD___ROWS": "1"},
]
HELP = [
    "",
    "calibrate",
    "config",
    "config check",
    "config show",
    "demo",
    "evaluate",
    "health",
    "inject",
    "inspect",
    "scan",
    "serve",
    "webhook",
]

# Words of the model, each in turn spelled otherwise.
PARTS = b"""Conv Relu Gemm Flatten AveragePool Concat BatchNormalization GlobalAveragePool input
logits kernel_shape pads epsilon axis""".split()


def settings(program):
    """`config show`, `config check`, `--help`, and what wrong settings are told."""
    step("settings and help")
    text = program.told([]) + program.told(["--version"])
    text += "".join(program.told([*command.split(), "--help"]) for command in HELP)
    text += "".join(program.told([*command.split(), "-h"]) for command in HELP)
    for wrong in [
        ["nothing"],
        ["serve", "--port", "1"],
        ["evaluate"],
        ["scan", "--images"],
        ["scan", "--images", "a", "--shard", "3/2"],
        ["inspect", "--triggered", "a"],
        ["evaluate", "--clean", "a", "--triggered", "b", "--rule", "none"],
    ]:
        text += program.told(wrong)
    program.write("help.txt", text)

    text = program.told(["config", "show"])
    for name, content in GOOD.items():
        (program.folder / "user.toml").write_text(content)
        text += f"== {name}\n" + program.told(["config", "show", "user.toml"])
        printed = program.run(["config", "show", "user.toml"]).stdout
        (program.folder / "printed.toml").write_text(printed)
        text += program.told(["config", "show", "printed.toml"])
    (program.folder / "user.toml").write_text(REQUIRED)
    for environment in ENVIRONMENTS:
        text += program.told(["config", "show", "user.toml"], environment)
        text += program.told(["config", "check", "user.toml"], environment)
    text += program.told(["config", "show"], {"DOORWARD_UPSTREAM__URL": "http://a"})
    program.write("settings.txt", text)

    text = program.told(["config", "check", "no.toml"])
    text += program.told(["config", "check", "assets"])
    for line in BAD:
        line = line.replace("\\n", "\n")
        (program.folder / "user.toml").write_text(REQUIRED + line + "\n")
        text += f"== {line}\n" + program.told(["config", "check", "user.toml"])
    for key in ["upstream.url", "model.path", "calibration.clean_images"]:
        (program.folder / "user.toml").write_text(without(REQUIRED, key))
        text += f"== without {key}\n" + program.told(["config", "check", "user.toml"])
    (program.folder / "user.toml").write_text(REQUIRED)
    for url in URLS:
        text += program.told(["config", "check", "user.toml"], {"DOORWARD_UPSTREAM__URL": url})
    program.write("errors.txt", text)

    text = program.told(["config", "check", "calibrated.toml"])
    model = (program.folder / "assets/model.onnx").read_bytes()
    models = {
        "empty": b"",
        "words": b"hello, world",
        "ones": b"\xff" * 64,
        "cut": model[: len(model) // 2],
        "head": model[:200],
    }
    for old in PARTS:
        new = old[:-1] + b"x"
        models[f"{old.decode()} to {new.decode()}"] = model.replace(old, new, 1)
        models[f"all {old.decode()} to {new.decode()}"] = model.replace(old, new)
    for at in range(7, 1200, 97):
        models[f"byte {at}"] = model[:at] + bytes([model[at] ^ 4]) + model[at + 1 :]
    environment = {"DOORWARD_MODEL__PATH": "changed.onnx"}
    for name, content in models.items():
        (program.folder / "changed.onnx").write_bytes(content)
        text += f"== {name}\n" + program.told(["config", "check", "calibrated.toml"], environment)
    for mean in ["[0.5, 0.25, 0.5]", "[0.5]"]:
        environment = {"DOORWARD_PREPROCESS__MEAN": mean}
        text += program.told(["config", "check", "calibrated.toml"], environment)
    program.write("models.txt", text)


def described(program, name):
    """An artifact: its manifest, and a digest of each tensor."""
    data = (program.folder / f"{name}.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, tensors = json.loads(data[8 : 8 + size]), data[8 + size :]
    metadata = header.pop("__metadata__")
    manifest = json.loads(metadata.pop("doorward.manifest"))
    # It covers the time of writing.
    metadata["doorward.sha256"] = "<digest>"
    manifest |= {"created": "<time>", "doorward": "<version>"}
    for tensor in header.values():
        start, end = tensor["data_offsets"]
        tensor["sha256"] = digest(tensors[start:end])
    content = {"metadata": metadata, "manifest": manifest, "tensors": header}
    mode = (program.folder / f"{name}.safetensors").stat().st_mode
    return f"mode {mode:o}\n" + json.dumps(content, indent=1) + "\n"


def others(program):
    """The settings of the other artifacts, for a sidecar."""
    texts = {name: (program.folder / f"{name}.toml").read_text() for name in KINDS}
    return {name: text.removeprefix(UPSTREAM) for name, text in texts.items()}


def artifacts(program):
    """Calibration, by several settings."""
    for name in KINDS:
        step(f"calibrate: {name}")
        text = program.told(["calibrate", "-c", f"{name}.toml", "--json"])
        digest_of = digest((program.folder / f"{name}.safetensors").read_bytes())
        text += program.told(["calibrate", "-c", f"{name}.toml"])
        text = text.replace(digest_of, "<digest>")
        program.write(f"artifacts/{name}.txt", described(program, name) + text)


def commands(program):
    """What the other commands print."""
    step("evaluate, inspect, scan, inject")
    secret = digest((program.folder / "calibrated.safetensors").read_bytes())

    def told(*arguments, environment=None):
        return program.told(list(arguments), environment).replace(secret, "<digest>")

    config = ["-c", "calibrated.toml"]
    sources = ["--clean", "clean.bin.gz", "--triggered", "triggered.bin.gz"]
    text = told("evaluate", *config, *sources, "--json") + told("evaluate", *config, *sources)
    text += told("evaluate", *config, *sources, "--target", "3", "--rule", "uap", "--rule", "patch")
    text += told("evaluate", *config, "--clean", "pictures", *sources[2:], "--json")
    text += told("evaluate", *config, "--clean", "no.bin", "--triggered", "clean.bin.gz")
    environment = {"DOORWARD_PERTURBATION__MAX_EPSILON": "0.25"}
    text += told("evaluate", *config, *sources, environment=environment)
    strip = ["evaluate", "-c", "strip.toml", *sources, "--rule", "strip"]
    strip_digest = digest((program.folder / "strip.safetensors").read_bytes())
    text += told(*strip, "--json").replace(strip_digest, "<digest>")
    program.write("evaluate.txt", text)

    few = {
        "DOORWARD_INSPECTION__STEPS": "3",
        "DOORWARD_INSPECTION__SAMPLES": "8",
        "DOORWARD_PERTURBATION__STEPS": "4",
        "DOORWARD_CALIBRATION__FIT_IMAGES": "24",
    }
    text = told("inspect", *config, "--json", "--data-inspection", environment=few)
    text += told("inspect", "-c", "deepfool.toml") + told("inspect", *config, "--model", "other")
    program.write("inspect.txt", text)

    text = told("scan", *config, "--images", "triggered.bin.gz", "--images", "pictures")
    text += told("scan", *config, "--images", "clean.bin.gz", "-o", "scan.jsonl", "--json")
    text += told("scan", *config, "--images", "clean.bin.gz", "-o", "scan.jsonl")
    part = ["-o", "part.jsonl", "--shard", "1/3"]
    text += told("scan", *config, "--images", "triggered.bin.gz", *part)
    text += told("scan", *config, "--images", "pictures", "--images", "pictures")
    text += told("scan", *config, "--images", "missing")
    for name in ["scan.jsonl", "scan.jsonl.clean.txt", "part.jsonl", "part.jsonl.clean.txt"]:
        content = (program.folder / name).read_text()
        text += f"== {name}\n" + program.mask(content).replace(secret, "<digest>")
    program.write("scan.txt", text)

    text = ""
    manifests = sorted((ROOT / "tests/golden/k8s").glob("*.yaml"))
    manifests = [path for path in manifests if not path.name.endswith(".injected.yaml")]
    for path in manifests:
        shutil.copy(path, program.folder / "manifest.yaml")
        text += f"== {path.name}\n" + told("inject", "-f", "manifest.yaml")
    (program.folder / "manifest.yaml").write_text("a: [")
    for path in ["manifest.yaml", "none.yaml", "-"]:
        text += told("inject", "-f", path)
    program.write("inject.txt", text)
    environment = {"DOORWARD_ADMIN__LISTEN": "127.0.0.1:1"}
    text = told("health", *config, environment=environment) + told("webhook", "-c", "none.toml")
    program.write("other.txt", text)
    operators = (ROOT / "docs/operators.md").read_bytes()
    program.write("operators.txt", f"docs/operators.md {digest(operators)}\n")
