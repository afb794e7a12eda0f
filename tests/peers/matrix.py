#!/usr/bin/env python3
"""Put doorward between real clients and a real model server, and check what it promises.

    matrix.py --server mlserver --upstream 127.0.0.1:18080 --grpc-upstream 127.0.0.1:18081
    matrix.py --server triton --upstream 127.0.0.1:18280 --grpc-upstream 127.0.0.1:18281 --rows 500 --forms grpc,stream
    matrix.py ... --without-doorward    the servers' half only

`run.sh` beside it starts the servers and calls it. Needs numpy and tritonclient[http,grpc]. The server
must serve assets/fashion-mnist/model.onnx as `victim`. Prints a matrix of what was sent and what
came of it, then the properties; ends with 1 when a property does not hold. How many triggered rows
were turned away is printed and never a failure.

The forms are tritonclient's JSON, binary tensors, gRPC and gRPC stream, and KServe V1. Every request is also
sent to the server directly, so that an answer can be compared with the one the server itself gives, also where
that is an error: not every server takes every form.
"""
import argparse, gzip, json, queue, signal, socket, subprocess, sys, tempfile, time, urllib.error, urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "assets/fashion-mnist"
MODEL, SHAPE, BATCH = "victim", (1, 28, 28), 8


def images(name, count):
    """The first images of a record file, as the model takes them."""
    raw = np.frombuffer(gzip.decompress((ASSETS / name).read_bytes()), np.uint8).reshape(-1, 1 + int(np.prod(SHAPE)))
    return raw[:count, 1:].reshape(-1, *SHAPE).astype(np.float32) / 255


class Form:
    """A client that keeps count of what it sent and what came back."""

    def __init__(self):
        self.seen = Counter()

    def infer(self, rows):
        """("passed", outputs), ("rejected", message) or ("error", what)."""
        self.seen["rows"] += len(rows)
        answer = self.ask(rows)
        self.seen[answer[0]] += 1
        return answer

    def reads(self):
        """Health and metadata, by name; an error is what the server says to such a question."""
        answers = {}
        for name, read in self.questions().items():
            self.seen["reads"] += 1
            try:
                answers[name] = read()
            except InferenceServerException as error:
                answers[name] = f"{error.status()} {error.message()}"
        return answers

    def close(self):
        pass


class V2(Form):
    """V2 REST by tritonclient, numbers in JSON or binary tensors both ways."""
    protocol = "oip_http"

    def __init__(self, address, binary):
        super().__init__()
        self.client = http_client.InferenceServerClient(address, network_timeout=60, connection_timeout=60)
        self.binary = binary
        # The client sends none, and KServe wants one; it also wants an id.
        self.headers = None if binary else {"Content-Type": "application/json"}

    def ask(self, rows):
        source = http_client.InferInput("input", list(rows.shape), "FP32")
        source.set_data_from_numpy(rows, binary_data=self.binary)
        target = http_client.InferRequestedOutput("logits", binary_data=self.binary)
        try:
            result = self.client.infer(MODEL, [source], outputs=[target], request_id="1", headers=self.headers)
        except InferenceServerException as error:
            # The client keeps the body as details when it is not {"error": ...}.
            rejected = error.status() == "403" and not error.debug_details() and isinstance(error.message(), str)
            return ("rejected", error.message()) if rejected else ("error", f"{error.status()} {error.message()}")
        outputs = result.get_response()["outputs"]
        return "passed", (outputs, result.as_numpy("logits").tobytes() if self.binary else None)

    def questions(self):
        return dict(live=self.client.is_server_live, ready=self.client.is_server_ready,
                    model_ready=lambda: self.client.is_model_ready(MODEL), server=self.client.get_server_metadata,
                    model=lambda: self.client.get_model_metadata(MODEL))


class Grpc(Form):
    """V2 gRPC by tritonclient, which sends raw contents."""
    protocol = "oip_grpc"

    def __init__(self, address):
        super().__init__()
        self.client = grpc_client.InferenceServerClient(address)

    def tensors(self, rows):
        source = grpc_client.InferInput("input", list(rows.shape), "FP32")
        source.set_data_from_numpy(rows)
        return [source], [grpc_client.InferRequestedOutput("logits")]

    def ask(self, rows):
        sources, targets = self.tensors(rows)
        try:
            return "passed", exact(self.client.infer(MODEL, sources, outputs=targets, client_timeout=60))
        except InferenceServerException as error:
            rejected = error.status() == "StatusCode.PERMISSION_DENIED"
            return ("rejected", error.message()) if rejected else ("error", f"{error.status()} {error.message()}")

    def questions(self):
        text = lambda message: message.SerializeToString(deterministic=True)
        return dict(live=self.client.is_server_live, ready=self.client.is_server_ready,
                    model_ready=lambda: self.client.is_model_ready(MODEL),
                    server=lambda: text(self.client.get_server_metadata()),
                    model=lambda: text(self.client.get_model_metadata(MODEL)),
                    config=lambda: text(self.client.get_model_config(MODEL)))


class Stream(Grpc):
    """One ModelStreamInfer for all requests; a rejection is an error_message in it."""

    def __init__(self, address):
        super().__init__(address)
        self.replies = queue.Queue()
        self.client.start_stream(lambda result, error: self.replies.put((result, error)))

    def ask(self, rows):
        sources, targets = self.tensors(rows)
        self.client.async_stream_infer(MODEL, sources, outputs=targets)
        result, error = self.replies.get(timeout=60)
        if error is None:
            return "passed", exact(result)
        rejected = error.status() is None and "rejected by the firewall" in error.message()
        return ("rejected", error.message()) if rejected else ("error", f"{error.status()} {error.message()}")

    def questions(self):
        return {}

    def close(self):
        self.client.stop_stream()


class V1(Form):
    """KServe V1: rows of numbers in JSON."""
    protocol = "kserve_v1"

    def __init__(self, address):
        super().__init__()
        self.url = f"http://{address}/v1/models/{MODEL}"

    def ask(self, rows):
        body = json.dumps({"instances": rows.tolist()}).encode()
        request = urllib.request.Request(f"{self.url}:predict", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return "passed", answer.read()
        except urllib.error.HTTPError as error:
            text = error.read().decode()
            if error.code == 403 and list(json.loads(text)) == ["error"]:
                return "rejected", json.loads(text)["error"]
            return "error", f"{error.code} {text}"

    def questions(self):
        return dict(model=lambda: urllib.request.urlopen(self.url, timeout=60).read())


# Name, what the server's address is in, and the client.
FORMS = dict(json=("http", lambda address: V2(address, False)), binary=("http", lambda address: V2(address, True)),
             grpc=("grpc", Grpc), stream=("grpc", Stream), v1=("http", V1))
# What a server does not have at all. MLServer takes no binary tensors, and its ModelStreamInfer replies with another
# message than Triton's, which tritonclient cannot read.
LACKS = dict(mlserver={"binary", "stream", "v1"}, kserve={"stream"}, triton={"v1"})


def exact(result):
    """A reply's bytes: raw contents as they came."""
    return result.get_response().SerializeToString(deterministic=True)


class Doorward:
    """The process under test: calibrated, in front of the upstream, on ports of its own."""

    def __init__(self, binary, upstreams, folder, artifact, timeout):
        http, grpc, admin = free_ports(3)
        self.addresses = dict(http=f"127.0.0.1:{http}", grpc=f"127.0.0.1:{grpc}")
        self.admin = f"http://127.0.0.1:{admin}"
        clean = folder / "calibration.bin.gz"          # gzip files joined are one gzip file
        clean.write_bytes((ASSETS / "fit.bin.gz").read_bytes() + (ASSETS / "holdout.bin.gz").read_bytes())
        config = folder / "doorward.toml"
        config.write_text(f'''
[listen]
http = "{self.addresses['http']}"
grpc = "{self.addresses['grpc']}"
[admin]
listen = "127.0.0.1:{admin}"
[upstream]
url = "http://{upstreams['http']}"
grpc_url = "http://{upstreams['grpc']}"
[model]
path = "{ASSETS / 'model.onnx'}"
[calibration]
clean_images = "{clean}"
training_images = "{ASSETS / 'training.bin.gz'}"
fit_images = 600
holdout_images = 2000
artifact = "{artifact}"
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
            tally["exact"] += answer[0] != "rejected" and same(answer, wanted)
            if answer[0] == "error" and tally["error"] == 1:
                print(f"{name}: {answer[1][:200]}", file=sys.stderr)
            answers.append(answer)
        self.rows.append((name, len(batches), *(tally[column] for column in ("passed", "exact", "rejected", "error"))))
        self.holds(f"{name}: what is not rejected gets the server's exact answer", len(batches) - tally["rejected"], tally["exact"])
        return answers

    def holds(self, name, wanted, found):
        self.properties.append((name, wanted, found))

    def print(self, server):
        print(f"\n{server:42} {'sent':>6} {'passed':>7} {'exact':>6} {'rejected':>9} {'errors':>7}")
        for name, *counts in self.rows:
            print(f"{name:42} " + " ".join(f"{count:{width}}" for count, width in zip(counts, (6, 7, 6, 9, 7))))
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


def exchange_all(report, form, door, direct, count):
    clean, triggered = images("clean.bin.gz", count), images("triggered.bin.gz", count)
    report.holds(f"{form}: health and metadata are the server's", direct.reads(), door.reads())
    single = report.exchange(f"{form}: clean rows", door, direct, [row[None] for row in clean])
    attack = report.exchange(f"{form}: triggered rows", door, direct, [row[None] for row in triggered])

    good = [row for row, answer in zip(clean, single) if answer[0] == "passed"]
    bad = [row for row, answer in zip(triggered, attack) if answer[0] == "rejected"]
    whole = [np.stack(good[i: i + BATCH]) for i in range(0, len(good) - BATCH + 1, BATCH)]
    answers = report.exchange(f"{form}: batches of {BATCH} clean rows", door, direct, whole)
    report.holds(f"{form}: a batch of rows that pass alone passes", len(whole), sum(answer[0] == "passed" for answer in answers))
    if not bad:
        return
    mixed = [rows.copy() for rows in whole]
    for index, rows in enumerate(mixed):
        rows[index % BATCH] = bad[index % len(bad)]
    answers = report.exchange(f"{form}: batches of {BATCH}, one row triggered", door, direct, mixed)
    report.holds(f"{form}: a batch with a row that is rejected alone is rejected", len(mixed), sum(answer[0] == "rejected" for answer in answers))
    named = sum(str(index % BATCH) in numbers(answer[1]) for index, answer in enumerate(answers) if answer[0] == "rejected")
    report.holds(f"{form}: the error names the row", len(mixed), named)


def same(answer, wanted):
    """Of errors the status: MLServer quotes the request, and what it got is the firewall's spelling."""
    if answer[0] == "error" == wanted[0]:
        return answer[1].split()[0] == wanted[1].split()[0]
    return answer == wanted


def numbers(text):
    return "".join(c if c.isdigit() else " " for c in text).split()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, metavar="NAME", help="for the heading")
    parser.add_argument("--upstream", required=True, metavar="HOST:PORT")
    parser.add_argument("--grpc-upstream", required=True, metavar="HOST:PORT")
    parser.add_argument("--forms", default=",".join(FORMS), help="of " + ", ".join(FORMS))
    parser.add_argument("--rows", type=int, default=100, help="clean rows, and as many triggered ones, for each form (at most 500)")
    parser.add_argument("--doorward", default=ROOT / "target/release/doorward", metavar="BINARY")
    parser.add_argument("--artifact", type=Path, metavar="FILE", help="where calibration is kept for the next run")
    parser.add_argument("--timeout", type=float, default=600, help="seconds until doorward is calibrated and ready")
    parser.add_argument("--without-doorward", action="store_true", help="talk to the server twice: nothing is rejected")
    arguments = parser.parse_args()
    report, upstreams = Report(), dict(http=arguments.upstream, grpc=arguments.grpc_upstream)
    lacks = LACKS.get(arguments.server, set())
    forms = {name: FORMS[name] for name in arguments.forms.split(",") if name not in lacks}

    def run(addresses):
        seen = {}
        for name, (port, form) in forms.items():
            door, direct = form(addresses[port]), form(upstreams[port])
            try:
                exchange_all(report, name, door, direct, arguments.rows)
            finally:
                door.close(), direct.close()
            seen.setdefault(door.protocol, Counter()).update(door.seen)
        return seen

    if arguments.without_doorward:
        run(upstreams)
        sys.exit(0 if report.print(arguments.server) else 1)

    with tempfile.TemporaryDirectory(prefix="doorward-peers-") as folder:
        artifact = (arguments.artifact or Path(folder) / "doorward.safetensors").resolve()
        doorward = Doorward(arguments.doorward, upstreams, Path(folder), artifact, arguments.timeout)
        try:
            all_seen = run(doorward.addresses)
            for protocol, seen in all_seen.items():
                # An error of the server's is an answer that passed.
                for verdict, wanted in dict(passed=seen["passed"] + seen["error"], rejected=seen["rejected"], bypassed=seen["reads"],
                                            flagged=0, refused=0, unverified_passed=0, unverified_rejected=0).items():
                    report.holds(f'doorward_requests_total{{protocol="{protocol}",verdict="{verdict}"}} is what the client saw', wanted,
                                 doorward.metric("doorward_requests_total", protocol=protocol, verdict=verdict))
            rows = sum(seen["rows"] for seen in all_seen.values())
            report.holds("doorward_rows_total adds up to the rows sent", rows, doorward.metric("doorward_rows_total"))
        finally:
            status = doorward.stop()
        report.holds("SIGTERM ends doorward with status 0", 0, status)
        fine = report.print(arguments.server)
        if not fine:
            print(f"\nthe end of doorward's log:\n{doorward.log.read_text()[-2000:]}")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
