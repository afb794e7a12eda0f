#!/usr/bin/env python3
"""Records what a binary does, so that two of them can be compared.

    python3 tests/equality/record.py BINARY OUT_DIR

Writes a folder of text files: artifacts, settings and errors, commands, answers over HTTP and gRPC
with what the upstream received, counters, audit logs. `diff -r` of two records is empty where both
binaries behave in the same way. Request ids, ports, times, the program's version and the names of
modules in log lines are masked. Needs Python's standard library only.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

# Leave nothing in the repository.
sys.dont_write_bytecode = True

import cases
import offline
import pictures
import serving
import upstream
from program import Program, step


def main():
    """Runs all parts in a folder that goes away."""
    parser = argparse.ArgumentParser(description="Record what a binary does.")
    parser.add_argument("binary", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.out.exists() and any(arguments.out.iterdir()):
        sys.exit(f"{arguments.out} is not empty")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(pictures.ASSETS, Path(folder) / "assets")
        program = Program(arguments.binary, Path(folder), arguments.out)
        offline.prepare(program)
        offline.settings(program)
        offline.artifacts(program)
        offline.commands(program)
        servers = upstream.HttpUpstream(cases.KNOWN), upstream.GrpcUpstream()
        total = serving.record(program, offline.BASE, offline.others(program), *servers)
    step(f"{total} requests, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
