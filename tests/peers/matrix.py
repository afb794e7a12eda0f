#!/usr/bin/env python3
"""Put doorward between a real client and a real model server, and check what it promises.

    matrix.py --server mlserver --upstream 127.0.0.1:18080
    matrix.py --server triton --upstream 127.0.0.1:18280 --rows 500
    matrix.py --server mlserver --upstream 127.0.0.1:18080 --without-doorward    the servers' half only

`run.sh` beside it starts the servers and calls it. Needs numpy and tritonclient[http]. The server
must serve assets/fashion-mnist/model.onnx as `victim`. Prints a matrix of what was sent and what
came of it, then the properties; ends with 1 when a property does not hold. How many triggered rows
were turned away is printed and never a failure.

tritonclient speaks JSON here (binary_data=False both ways), and every request is also sent to the
server directly, so that an answer can be compared with the one the server itself gives.
"""
import argparse, gzip, signal, socket, subprocess, sys, tempfile, time, urllib.error, urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import tritonclient.http as client
from tritonclient.utils import InferenceServerException

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "assets/fashion-mnist"
MODEL, SHAPE, BATCH = "victim", (1, 28, 28), 8


def images(name, count):
    """The first images of a record file, as the model takes them."""
    raw = np.frombuffer(gzip.decompress((ASSETS / name).read_bytes()), np.uint8).reshape(-1, 1 + int(np.prod(SHAPE)))
    return raw[:count, 1:].reshape(-1, *SHAPE).astype(np.float32) / 255


class Server:
    """A Triton client that keeps count of what it sent and what came back."""

    def __init__(self, address):
        self.client = client.InferenceServerClient(address, network_timeout=60, connection_timeout=60)
        self.seen = Counter()

    def infer(self, rows):
        """("passed", outputs), ("rejected", message) or ("error", what)."""
        source = client.InferInput("input", list(rows.shape), "FP32")
        source.set_data_from_numpy(rows, binary_data=False)
        target = client.InferRequestedOutput("logits", binary_data=False)
        self.seen["rows"] += len(rows)
        try:
            answer = "passed", self.client.infer(MODEL, [source], outputs=[target]).get_response()["outputs"]
        except InferenceServerException as error:
            # The client keeps the body as details when it is not {"error": ...}.
            rejected = error.status() == "403" and not error.debug_details() and isinstance(error.message(), str)
            answer = ("rejected", error.message()) if rejected else ("error", f"{error.status()} {error.message()}")
        self.seen[answer[0]] += 1
        return answer

    def reads(self):
        """Health and metadata, by name."""
        self.seen["reads"] += 5
        return dict(live=self.client.is_server_live(), ready=self.client.is_server_ready(),
                    model_ready=self.client.is_model_ready(MODEL), server=self.client.get_server_metadata(),
                    model=self.client.get_model_metadata(MODEL))


class Doorward:
    """The process under test: calibrated, in front of `upstream`, on ports of its own."""

    def __init__(self, binary, upstream, folder, timeout):
        http, admin = free_ports(2)
        self.address, self.admin = f"127.0.0.1:{http}", f"http://127.0.0.1:{admin}"
        clean = folder / "calibration.bin.gz"          # gzip files joined are one gzip file
        clean.write_bytes((ASSETS / "fit.bin.gz").read_bytes() + (ASSETS / "holdout.bin.gz").read_bytes())
        config = folder / "doorward.toml"
        config.write_text(f'''
[listen]
http = "{self.address}"
[admin]
listen = "127.0.0.1:{admin}"
[upstream]
url = "http://{upstream}"
[model]
path = "{ASSETS / 'model.onnx'}"
[calibration]
clean_images = "{clean}"
training_images = "{ASSETS / 'training.bin.gz'}"
fit_images = 600
holdout_images = 2000
artifact = "{folder / 'doorward.safetensors'}"
[policy]
mode = "enforce"
rule = "calibrated"
max_false_rejection_rate = 0.01
''')
        self.log = folder / "doorward.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([binary, "serve", "-c", config], stdout=log, stderr=subprocess.STDOUT)
        try:
            self.await_ready(timeout)
        except BaseException:
            self.process.kill()
            raise

    def await_ready(self, timeout):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                sys.exit(f"doorward ended with status {self.process.returncode}:\n{self.log.read_text()[-4000:]}")
            try:
                with urllib.request.urlopen(f"{self.admin}/readyz", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(.2)
        sys.exit(f"doorward was not ready after {timeout} s:\n{self.log.read_text()[-4000:]}")

    def metric(self, family, **labels):
        """The sum over the family's samples that carry `labels`."""
        total = 0.
        with urllib.request.urlopen(f"{self.admin}/metrics", timeout=10) as page:
            for line in page.read().decode().splitlines():
                name, _, value = line.rpartition(" ")
                if name.split("{")[0] == family and all(f'{key}="{wanted}"' in name for key, wanted in labels.items()):
                    total += float(value)
        return int(total)

    def stop(self):
        """The exit status after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return "none within 60 s"


class Report:
    """The matrix and the properties."""

    def __init__(self):
        self.rows, self.properties = [], []

    def exchange(self, name, door, direct, batches):
        """Sends every batch through the door and to the server; returns the answers through the door."""
        answers, tally = [], Counter()
        for rows in batches:
            answer, wanted = door.infer(rows), direct.infer(rows)
            tally[answer[0]] += 1
            tally["exact"] += answer[0] == "passed" and answer == wanted
            if answer[0] == "error" and tally["error"] == 1:
                print(f"{name}: {answer[1]}", file=sys.stderr)
            answers.append(answer)
        self.rows.append((name, len(batches), *(tally[column] for column in ("passed", "exact", "rejected", "error"))))
        self.holds(f"{name}: what passes gets the server's exact answer", tally["passed"], tally["exact"])
        self.holds(f"{name}: every other request gets 403 and {{\"error\": ...}}", len(batches) - tally["passed"], tally["rejected"])
        return answers

    def holds(self, name, wanted, found):
        self.properties.append((name, wanted, found))

    def print(self, server):
        print(f"\n{server:34} {'sent':>6} {'passed':>7} {'exact':>6} {'rejected':>9} {'errors':>7}")
        for name, *counts in self.rows:
            print(f"{name:34} " + " ".join(f"{count:{width}}" for count, width in zip(counts, (6, 7, 6, 9, 7))))
        print()
        for name, wanted, found in self.properties:
            print(f"{'ok  ' if wanted == found else 'FAIL'} {name}" + ("" if wanted == found else f": expected {wanted}, found {found}"))
        return all(wanted == found for _, wanted, found in self.properties)


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [bound.getsockname()[1] for bound in sockets]
    for bound in sockets:
        bound.close()
    return ports


def exchange_all(report, door, direct, count):
    clean, triggered = images("clean.bin.gz", count), images("triggered.bin.gz", count)
    report.holds("health and metadata are the server's", direct.reads(), door.reads())
    single = report.exchange("clean rows", door, direct, [row[None] for row in clean])
    attack = report.exchange("triggered rows", door, direct, [row[None] for row in triggered])

    good = [row for row, answer in zip(clean, single) if answer[0] == "passed"]
    bad = [row for row, answer in zip(triggered, attack) if answer[0] == "rejected"]
    whole = [np.stack(good[i: i + BATCH]) for i in range(0, len(good) - BATCH + 1, BATCH)]
    answers = report.exchange(f"batches of {BATCH} clean rows", door, direct, whole)
    report.holds("a batch of rows that pass alone passes", len(whole), sum(answer[0] == "passed" for answer in answers))
    if not bad:
        return
    mixed = [rows.copy() for rows in whole]
    for index, rows in enumerate(mixed):
        rows[index % BATCH] = bad[index % len(bad)]
    answers = report.exchange(f"batches of {BATCH}, one row triggered", door, direct, mixed)
    report.holds("a batch with a row that is rejected alone is rejected", len(mixed), sum(answer[0] == "rejected" for answer in answers))
    named = sum(str(index % BATCH) in numbers(answer[1]) for index, answer in enumerate(answers) if answer[0] == "rejected")
    report.holds("the error names the row", len(mixed), named)


def numbers(text):
    return "".join(c if c.isdigit() else " " for c in text).split()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, metavar="NAME", help="for the heading")
    parser.add_argument("--upstream", required=True, metavar="HOST:PORT")
    parser.add_argument("--rows", type=int, default=200, help="clean rows, and as many triggered ones (at most 500)")
    parser.add_argument("--doorward", default=ROOT / "target/release/doorward", metavar="BINARY")
    parser.add_argument("--timeout", type=float, default=600, help="seconds until doorward is calibrated and ready")
    parser.add_argument("--without-doorward", action="store_true", help="talk to the server twice: nothing is rejected")
    arguments = parser.parse_args()
    report, direct = Report(), Server(arguments.upstream)

    if arguments.without_doorward:
        exchange_all(report, Server(arguments.upstream), direct, arguments.rows)
        sys.exit(0 if report.print(arguments.server) else 1)

    with tempfile.TemporaryDirectory(prefix="doorward-peers-") as folder:
        doorward = Doorward(arguments.doorward, arguments.upstream, Path(folder), arguments.timeout)
        try:
            door = Server(doorward.address)
            exchange_all(report, door, direct, arguments.rows)
            for verdict, wanted in dict(passed=door.seen["passed"], rejected=door.seen["rejected"], bypassed=door.seen["reads"],
                                        flagged=0, refused=0, unverified_passed=0, unverified_rejected=0).items():
                report.holds(f'doorward_requests_total{{verdict="{verdict}"}} is what the client saw', wanted,
                             doorward.metric("doorward_requests_total", verdict=verdict))
            report.holds("doorward_rows_total adds up to the rows sent", door.seen["rows"], doorward.metric("doorward_rows_total"))
        finally:
            status = doorward.stop()
        report.holds("SIGTERM ends doorward with status 0", 0, status)
        fine = report.print(arguments.server)
        if not fine:
            print(f"\nthe end of doorward's log:\n{doorward.log.read_text()[-2000:]}")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
