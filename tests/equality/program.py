"""Runs the program in a folder of its own, and writes what came of it with the volatile masked."""

import hashlib
import re
import subprocess
import time
from pathlib import Path

# What may differ between two runs of the same program, and nothing else.
MASKS = [
    # A request id that the firewall made up: random, and a counter.
    (re.compile(r"(?<![\w-])[0-9a-f]{16}-[0-9a-f]+\b"), "<id>"),
    (re.compile(r"\b127\.0\.0\.1:\d{4,5}\b"), "127.0.0.1:<port>"),
    (re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "<time>"),
    # The module that a log line comes from is no behaviour.
    (re.compile(r"(?m)^(<time> +[A-Z]+ )[a-z_]+(::[a-z_0-9]+)*:"), r"\1<module>:"),
    (
        re.compile(
            r'("(?:created|seconds|[a-z_]+_seconds|uap|inspection|calibration)":) ?[\d.e-]+'
        ),
        r"\1<number>",
    ),
    (re.compile(r"\b\d+\.\d s\b"), "<seconds> s"),
]


def masked(text):
    """Text without what is volatile."""
    for pattern, replacement in MASKS:
        text = pattern.sub(replacement, text)
    return text


def digest(data):
    return hashlib.sha256(data).hexdigest()


class Program:
    """A binary, the folder it runs in, and the folder that the record goes to."""

    def __init__(self, binary, folder, out):
        self.binary, self.folder, self.out = Path(binary).resolve(), folder, out
        self.version = self.run(["--version"]).stdout.split()[-1]

    def run(self, arguments, environment=None):
        """A command that ends by itself."""
        clean = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "NO_COLOR": "1"}
        return subprocess.run(
            ["doorward", *arguments],
            executable=self.binary,
            cwd=self.folder,
            capture_output=True,
            text=True,
            env=clean | (environment or {}),
            stdin=subprocess.DEVNULL,
            timeout=600,
        )

    def start(self, arguments, log):
        """A command that serves."""
        clean = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "NO_COLOR": "1"}
        return subprocess.Popen(
            ["doorward", *arguments],
            executable=self.binary,
            cwd=self.folder,
            env=clean,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )

    def mask(self, text):
        """Masks, with this program's version and folder."""
        text = text.replace(str(self.folder), "<folder>")
        text = masked(text).replace(f'"doorward":"{self.version}"', '"doorward":"<version>"')
        return text.replace(f"doorward {self.version}", "doorward <version>")

    def told(self, arguments, environment=None):
        """A command, its exit status and both its outputs; progress comes by the clock."""
        result = self.run(arguments, environment)
        errors = "".join(line for line in result.stderr.splitlines(True) if " percent=" not in line)
        words = [f"{key}={value}" for key, value in (environment or {}).items()] + arguments
        head = f"$ {' '.join(words)}\nexit status {result.returncode}\n"
        return self.mask(f"{head}--- output\n{result.stdout}--- errors\n{errors}\n")

    def write(self, name, text):
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def step(name):
    """Says what is being recorded, since when."""
    print(time.strftime("%H:%M:%S"), name, flush=True)
