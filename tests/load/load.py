#!/usr/bin/env python3
"""Mixed traffic with faults through a real sidecar: no wrong verdict, no accepted request lost, counters that add up, flat memory.

    load.py --requests 20000                                       a few minutes
    load.py --requests 1000000 --minutes 60 --fault-seconds 30     an hour; the figures for BENCHMARKS.md

Sends the demo's clean and triggered images, one to four a request, and malformed bodies, as V2 JSON, V2 binary and V1. What each
image comes to is found out first, without faults. Then, under traffic, the upstream answers some requests slowly and breaks some
connections, is killed and started again; the settings are read again (SIGHUP, with another budget and back); the sidecar gets
SIGTERM and is started again. Every request has one of these ends, and any other is a failure:

    200 with the answer to this very request    all rows pass
    403                                         a row does not; whatever the upstream does
    400                                         malformed
    502                                         all rows pass, and the upstream was broken or away
    503                                         the sidecar has just started and has not read its artifact yet

A connection that is refused was not accepted, and the request is sent again. One that ends without an answer is a lost request.
At the end the audit log, which has all requests of all lives of the sidecar, is compared with what the clients saw, request by
request, and the counters of its last life with the requests of that life. Needs numpy. Exit status 1 if anything failed.
"""
import argparse, collections, gzip, http.client, json, random, signal, socket, subprocess, sys, tempfile, threading, time, urllib.request
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "assets/fashion-mnist"
V2, V1 = "/v2/models/m/infer", "/v1/models/m:predict"
# In turn: a life of the sidecar is long enough to tell whether its memory is flat.
FAULTS = ["upstream restart", "SIGHUP"] * 5 + ["upstream restart", "SIGTERM and restart"]


def images(name, count):
    raw = np.frombuffer(gzip.decompress((ASSETS / name).read_bytes()), np.uint8).reshape(-1, 785)
    return raw[:count, 1:].reshape(-1, 1, 28, 28).astype(np.float32) / np.float32(255)


def request(form, rows):
    """Path, headers and body."""
    shape = list(rows.shape)
    if form == "v1":
        return V1, {}, json.dumps({"instances": rows.round(6).tolist()})
    values = dict(name="x", shape=shape, datatype="FP32")
    if form == "json":
        return V2, {}, json.dumps({"inputs": [values | {"data": rows.ravel().round(6).tolist()}]})
    head = json.dumps({"inputs": [values | {"parameters": {"binary_data_size": rows.nbytes}}]}).encode()
    return V2, {"Inference-Header-Content-Length": str(len(head))}, head + rows.tobytes()


MALFORMED = [(V2, {}, b'{"inputs":[]}'), (V2, {}, b"{"), (V2, {}, b'{"inputs":[{"name":"x","shape":[1,1,28,28],"datatype":"FP32","data":[1]}]}'),
             (V2, {"Inference-Header-Content-Length": "7"}, b"{}"), (V1, {}, b'{"instances":[[1,2],[3]]}'), (V1, {}, b'{"instances":[{"b64":"AA=="}]}'),
             (V2, {}, b'{"inputs":[{"name":"x","shape":[1,1,28,28],"datatype":"FP32","data":[NaN]}]}')]


class Sidecar:
    """The process under test, its lives and its memory."""

    def __init__(self, binary, folder, ports):
        self.binary, self.folder = binary, folder
        self.listen, self.admin, self.upstream = ports
        self.file, self.lives, self.memory, self.process = folder / "doorward.toml", 0, [], None
        self.settings(.05)

    def settings(self, budget):
        (self.folder / "next.toml").write_text(f"""
listen.http = "127.0.0.1:{self.listen}"
admin.listen = "127.0.0.1:{self.admin}"
upstream.url = "http://127.0.0.1:{self.upstream}"
model.path = "{ASSETS / 'model.onnx'}"
calibration.clean_images = ["{ASSETS / 'fit.bin.gz'}", "{ASSETS / 'holdout.bin.gz'}"]
calibration.fit_images = 100
calibration.holdout_images = 500
calibration.artifact = "{self.folder / 'doorward.safetensors'}"
perturbation.steps = 20
policy.max_false_rejection_rate = 0.05
policy.infected_budget = {budget * 20 + 1}
audit.path = "{self.folder / 'audit.jsonl'}"
audit.events = "all"
audit.rotate_bytes = 4000000000
telemetry.log = "error"
""")
        (self.folder / "next.toml").rename(self.file)

    def calibrate(self):
        subprocess.run([self.binary, "calibrate", "-c", self.file], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start(self, wait):
        self.process = subprocess.Popen([self.binary, "serve", "-c", self.file], stdout=subprocess.DEVNULL, stderr=open(self.folder / "doorward.log", "ab"))
        self.lives += 1
        deadline = time.monotonic() + 60
        while wait:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/readyz", timeout=5).close()
                return
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    sys.exit(f"the sidecar is not ready:\n{(self.folder / 'doorward.log').read_text()[-2000:]}")
                time.sleep(.02)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def resident(self, sent):
        try:
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS"):
                    self.memory.append((self.lives, sent, int(line.split()[1]) / 1024))
        except OSError:
            pass

    def counters(self):
        """Requests by verdict."""
        found = collections.Counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=30) as page:
            for line in page.read().decode().splitlines():
                name, _, value = line.rpartition(" ")
                if name.startswith("doorward_requests_total"):
                    found[name.split('verdict="')[1].split('"')[0]] += int(float(value))
                elif name in ("doorward_audit_dropped_total", 'doorward_config_reloads_total{result="failure"}'):
                    found[name] = int(float(value))
        return found


class Upstream:
    def __init__(self, port, slow, reset):
        self.command = [sys.executable, ROOT / "tests/load/upstream.py", str(port), str(slow), str(reset)]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command)

    def wait(self):
        for _ in range(600):
            try:
                return socket.create_connection(("127.0.0.1", int(self.command[2])), 1).close()
            except OSError:
                time.sleep(.05)
        sys.exit("the upstream does not listen")

    def kill(self):
        self.process.kill()
        self.process.wait()


class Client(threading.Thread):
    """Sends until the work is done; notes what came of each request."""

    def __init__(self, number, run):
        super().__init__(daemon=True)
        self.number, self.run_, self.random = number, run, random.Random(run.seed * 1000 + number)
        self.connection, self.ends = None, {}

    def run(self):
        for sequence in range(10 ** 9):
            if not self.run_.take():
                return
            kind, expected, (path, headers, body) = self.run_.draw(self.random)
            name = f"{self.run_.tag}-{self.number}-{sequence}"
            status, answer_to = self.send(path, headers | {"X-Request-Id": name, "Content-Type": "application/json" if "Inference" not in str(headers) else "application/octet-stream"}, body)
            self.ends[name] = status
            self.run_.count(kind, expected, status, answer_to == name)

    def send(self, path, headers, body):
        """The status, and which request the upstream says it answered; (0, None) for a lost request."""
        while True:
            if self.connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self.run_.port, timeout=60)
                try:
                    connection.connect()
                except OSError:
                    time.sleep(.02)         # not accepted
                    continue
                self.connection = connection
            try:
                self.connection.request("POST", path, body, headers)
                answer = self.connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.connection.close()
                self.connection = None
                print(f"lost: {type(error).__name__} {error}", file=sys.stderr)
                return 0, None
            if answer.getheader("Connection", "").lower() == "close":
                self.connection.close()
                self.connection = None
            return answer.status, answer.getheader("X-Answer-To")


class Run:
    """What is sent, and what has come of it."""

    def __init__(self, seed, port, tag):
        self.seed, self.port, self.tag, self.left, self.lock = seed, port, tag, 0, threading.Lock()
        self.pools, self.seen, self.wrong = {}, collections.Counter(), []

    def take(self):
        with self.lock:
            self.left -= 1
            return self.left >= 0

    def end(self):
        with self.lock:
            self.left = min(self.left, 0)

    def draw(self, source):
        kind = source.choices(list(self.pools), [6, 2, 1])[0]
        expected, made = source.choice(self.pools[kind])
        return kind, expected, made

    def count(self, kind, expected, status, own):
        allowed = {"pass": (200, 502, 503), "reject": (403, 503), "malformed": (400, 503)}[expected]
        with self.lock:
            self.seen[kind, status] += 1
            if status not in allowed or status == 200 and not own:
                self.wrong.append((kind, status, own))


def pools(run, clean, triggered, verdicts):
    """Requests of which it is known what has to come of them."""
    source = random.Random(run.seed)
    rows = np.concatenate([clean, triggered])
    passing, rejected = [i for i, passes in enumerate(verdicts) if passes], [i for i, passes in enumerate(verdicts) if not passes]
    forms = ("json", "binary", "v1")
    def made(indices, form):
        return request(form, rows[indices])
    def some(pool, count):
        return [source.choice(pool) for _ in range(count)]
    run.pools = {
        "clean": [("pass", made(some(passing, source.choice((1, 1, 1, 4))), form)) for _ in range(100) for form in forms],
        "triggered": [("reject", made(source.sample(some(passing, count) + some(rejected, 1), count + 1), form)) for _ in range(50) for count in (0, 3) for form in forms],
        "malformed": [("malformed", one) for one in MALFORMED],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end by then, with however many requests have been sent")
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--fault-seconds", type=float, default=5, help="between two faults; the sidecar lives for twelve of them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int, default=21240, help="the first of three that are used")
    parser.add_argument("--doorward", default=ROOT / "target/release/doorward", metavar="BINARY")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="doorward-load-") as folder:
        sys.exit(0 if play(arguments, Path(folder)) else 1)


def play(arguments, folder):
    ports = range(arguments.port, arguments.port + 3)
    sidecar = Sidecar(arguments.doorward, folder, ports)
    sidecar.calibrate()
    upstream = Upstream(ports[2], 0, 0)
    upstream.wait()
    sidecar.start(wait=True)
    run = Run(arguments.seed, ports[0], "r")
    try:
        clean, triggered = images("clean.bin.gz", 150), images("triggered.bin.gz", 100)
        probe = Client(-1, run)
        probe_statuses = []
        for index, row in enumerate(np.concatenate([clean, triggered])):
            path, headers, body = request(("json", "binary", "v1")[index % 3], row[None])
            probe_statuses.append(probe.send(path, headers | {"X-Request-Id": f"p-{index}"}, body)[0])
            probe.ends[f"p-{index}"] = probe_statuses[-1]
        if set(probe_statuses) - {200, 403}:
            sys.exit(f"statuses {collections.Counter(probe_statuses)} without any fault, expected 200 and 403")
        pools(run, clean, triggered, [status == 200 for status in probe_statuses])
        upstream.kill()
        upstream.command[-2:] = ["0.01", "0.002"]
        upstream.start()

        run.left, began = arguments.requests, time.monotonic()
        clients = [Client(number, run) for number in range(arguments.clients)]
        for client in clients:
            client.start()
        exits, faults, last = [], collections.Counter(), began
        ended_before = {}
        while any(client.is_alive() for client in clients):
            time.sleep(.25)
            sidecar.resident(sum(run.seen.values()))
            if time.monotonic() - began > arguments.minutes * 60:
                run.end()
            if time.monotonic() - last < arguments.fault_seconds or run.left < 500:
                continue
            last = time.monotonic()
            fault = FAULTS[sum(faults.values()) % len(FAULTS)]
            faults[fault] += 1
            if fault == "upstream restart":
                upstream.kill()
                time.sleep(.2)
                upstream.start()
            elif fault == "SIGHUP":
                sidecar.settings(.05 + .05 * (faults[fault] % 2))
                sidecar.process.send_signal(signal.SIGHUP)
            else:
                exits.append(sidecar.stop())
                time.sleep(.5)      # clients note what the old life answered; nobody listens
                ended_before = {name: None for client in clients + [probe] for name in list(client.ends)}
                sidecar.start(wait=False)
        took = time.monotonic() - began
        sidecar.resident(sum(run.seen.values()))
        counters = sidecar.counters()
        exits.append(sidecar.stop())
        return report(arguments, run, sidecar, [probe] + clients, ended_before, counters, exits, faults, took)
    finally:
        upstream.kill()
        if sidecar.process.poll() is None:
            sidecar.process.kill()


VERDICTS = {200: {"passed"}, 403: {"rejected"}, 400: {"unverified_rejected"}, 502: {"passed"}, 503: {"unverified_rejected"}}


def report(arguments, run, sidecar, clients, ended_before, counters, exits, faults, took):
    ends = {name: status for client in clients for name, status in client.ends.items()}
    audited = {}
    with open(sidecar.folder / "audit.jsonl") as lines:
        for line in lines:
            event = json.loads(line)
            audited.setdefault(event["request_id"], set()).add(event["verdict"])
    differing = [name for name, status in ends.items() if not audited.get(name, set()) <= VERDICTS.get(status, set()) or name not in audited]
    own = collections.Counter()
    for name, status in ends.items():
        if name not in ended_before:
            own[next(iter(VERDICTS.get(status, {"lost"})))] += 1
    counted = collections.Counter({verdict: counters[verdict] for verdict in ("passed", "rejected", "unverified_rejected", "flagged", "refused", "bypassed", "unverified_passed") if counters[verdict]})
    lives = [[(sent, mib) for life, sent, mib in sidecar.memory if life == number] for number in range(1, sidecar.lives + 1)]
    longest = max(lives, key=len)
    steady = [mib for _, mib in longest]
    statuses = collections.Counter()
    for (_, status), count in run.seen.items():
        statuses[status] += count
    print(f"{sum(statuses.values()):,} requests in {took:,.0f} s by {arguments.clients} clients; faults: {dict(faults)}")
    print("ends:", ", ".join(f"{status or 'lost'} {count:,}" for status, count in sorted(statuses.items())))
    print(f"memory, MiB: {max(mib for _, _, mib in sidecar.memory):.0f} at most; in the longest life, of {longest[-1][0] - longest[0][0]:,} requests, {steady[len(steady) // 4]:.0f} after a quarter, "
          f"{steady[len(steady) // 2]:.0f} after half, {steady[-1]:.0f} at its end")
    checks = [
        ("every request has an end that it may have", 0, len(run.wrong)),
        ("no accepted request is lost", 0, statuses[0]),
        ("the audit log says of every request what its client saw", 0, len(differing)),
        ("it says nothing of others", 0, len(audited.keys() - ends.keys())),
        ("no audit line is dropped in the last life", 0, counters["doorward_audit_dropped_total"]),
        ("the counters of the last life are what its clients saw", dict(own), dict(counted)),
        ("no reload failed in the last life", 0, counters['doorward_config_reloads_total{result="failure"}']),
        ("SIGTERM ends every life with status 0", {0}, set(exits)),
    ]
    for name, wanted, found in checks:
        print(f"{'ok  ' if wanted == found else 'FAIL'} {name}" + ("" if wanted == found else f": expected {wanted}, found {found}"))
    for one in run.wrong[:10]:
        print("wrong:", one)
    for name in differing[:10]:
        print("differs:", name, ends[name], audited.get(name))
    return all(wanted == found for _, wanted, found in checks)


if __name__ == "__main__":
    main()
