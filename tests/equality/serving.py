"""Traffic through `doorward serve`: answers, what the upstream received, counters, audit log."""

import http.client
import json
import re
import signal
import socket
import time
import urllib.error
import urllib.request

import calls
import cases
import http2
from program import digest, masked, step

SHOWN = 400
COUNTED = (
    "requests_total",
    "rows_total",
    "unverified_total",
    "rejected_rows_total",
    "remote_rows_total",
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def shown(body):
    """A body as text where it is, and the digest of all of it."""
    text = masked(body.decode("latin-1"))
    printable = all(32 <= ord(letter) < 127 or letter in "\r\n\t" for letter in text)
    part = text[:SHOWN] if printable else text[:SHOWN].encode("unicode_escape").decode()
    summary = f"{len(text)} bytes {digest(text.encode('latin-1'))[:32]}"
    return f"{summary}\n    {part!r}" if text else "empty"


def fields(headers):
    """Headers in their order; the date is the clock's."""
    lines = []
    for name, value in headers:
        value = "<date>" if name.lower() == "date" else masked(value)
        lines.append(f"    {name}: {value!r}\n")
    return "".join(lines)


class Sidecar:
    """A serving program and what it records of its traffic."""

    def __init__(self, program, name, settings, http_upstream, grpc_upstream=None):
        self.program, self.name, self.http_upstream = program, name, http_upstream
        self.grpc_upstream, self.sent, self.text = grpc_upstream, 0, []
        # Whether the upstream has to answer before there is a verdict.
        self.first = '= "upstream"' in settings
        self.awaited = "/livez" if name.startswith("early") else "/readyz"
        self.port, self.admin, self.grpc_port = free_port(), free_port(), free_port()
        grpc = ""
        if grpc_upstream:
            grpc = f'listen.grpc = "127.0.0.1:{self.grpc_port}"\n'
            grpc += f'upstream.grpc_url = "http://127.0.0.1:{grpc_upstream.port}"'
        text = f"""listen.http = "127.0.0.1:{self.port}"
admin.listen = "127.0.0.1:{self.admin}"
upstream.url = "http://127.0.0.1:{http_upstream.port}"
audit.path = "{name}.audit.jsonl"
audit.events = "all"
audit.scores = true
audit.salt_file = "salt"
{grpc}
{settings}"""
        (program.folder / f"{name}.toml").write_text(text)
        self.log = open(program.folder / f"{name}.log", "wb")
        self.process = program.start(["serve", "-c", f"{name}.toml"], self.log)
        deadline = time.monotonic() + 120
        while self.read(self.awaited)[0] != 200:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                log = (program.folder / f"{name}.log").read_text()
                raise SystemExit(f"{name} is not ready: {log}")
            time.sleep(0.05)

    def read(self, path):
        """A page of the admin listener."""
        try:
            url = f"http://127.0.0.1:{self.admin}{path}"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def number(self):
        """Marks a request; one that was given up may still reach the upstream much later."""
        self.sent += 1
        return f"{self.name}-{self.sent}"

    def send(self, case):
        """Sends one case, and notes its answer and what the upstream got."""
        number = self.number()
        if case.raw is not None:
            request = case.raw.replace(b"%d", number.encode())
        else:
            lines = [("Host", "doorward.test"), ("X-Case", number), *case.headers]
            if case.body or case.method not in ("GET", "HEAD", "CONNECT"):
                lines.append(("Content-Length", str(len(case.body))))
            head = "".join(f"{name}: {value}\r\n" for name, value in lines)
            start = f"{case.method} {case.path} HTTP/1.1\r\n{head}\r\n"
            request = start.encode("latin-1") + case.body
        status, answer = self.exchange(case.method, request)
        start = f"{case.method} {case.path}" if case.raw is None else "raw"
        got = self.received(self.http_upstream, number, status == 403 and not self.first)
        self.text.append(
            f"== {number} {case.name}\n{start} {digest(request)[:16]}\n{answer}{got}\n"
        )

    def exchange(self, method, request):
        with socket.create_connection(("127.0.0.1", self.port), 30) as connection:
            try:
                connection.sendall(request)
            except OSError:
                pass
            answer = http.client.HTTPResponse(connection, method=method)
            try:
                answer.begin()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                return 0, f"no answer: {type(error).__name__}\n"
            head = f"answer {answer.version} {answer.status} {answer.reason!r}\n"
            text = head + fields(answer.getheaders()) + f"  body {shown(body)}\n"
            return answer.status, text

    def received(self, upstream, number, rejected):
        """The upstream is asked while the rows are judged, so that a rejection may come first."""
        requests = upstream.take(number)
        if rejected:
            return "upstream: not compared\n"
        text = "".join(
            f"upstream {masked(start)!r}\n{fields(headers)}  body {shown(body)}\n"
            for start, headers, body in requests
        )
        return text or "upstream: nothing\n"

    def call(self, case):
        """One call of gRPC."""
        number = self.number()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", case.path),
            (":authority", "doorward.test"),
            ("te", "trailers"),
            ("x-case", number),
        ]
        kinds = [name for name, _ in case.headers if name == "content-type"]
        headers += [] if kinds else [("content-type", "application/grpc")]
        blocks, data, end = http2.call(self.grpc_port, headers + list(case.headers), case.body)
        replies = calls.frames(data) if case.path == calls.STREAM else [data]
        rejected = any(dict(block).get("grpc-status") == "7" for block in blocks)
        text = "".join(f"headers\n{fields(block)}" for block in blocks)
        text += "".join(sorted(f"  reply {shown(reply)}\n" for reply in replies)) + end + "\n"
        got = self.received(self.grpc_upstream, number, rejected)
        head = f"== {number} {case.name}\n{case.path} {digest(case.body)[:16]}\n"
        self.text.append(f"{head}{text}{got}\n")

    def finish(self):
        """Writes the record, and ends the process."""
        write, name = self.program.write, self.name
        write(f"{name}/exchanges.txt", "".join(self.text))
        write(f"{name}/metrics.txt", metrics(self.read("/metrics")[1]))
        write(f"{name}/status.json", self.status())
        for path in ["/livez", "/readyz", "/nowhere", "/status/nobody"]:
            write(f"{name}/admin{path.replace('/', '_')}.txt", "%s %s\n" % self.read(path))
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        self.log.close()
        lines = (self.program.folder / f"{name}.audit.jsonl").read_text()
        write(f"{name}/audit.jsonl", self.program.mask(lines))
        write(f"{name}/exit.txt", f"exit status {status}\n")
        write(f"{name}/log.txt", self.program.mask(self.logged()))

    def logged(self):
        """The log without times, progress, and how far the upstream got with what was rejected."""
        text = (self.program.folder / f"{self.name}.log").read_text()
        text = re.sub(r" (detection|upstream)_ms=\S+", "", text)
        text = re.sub(r'(verdict="rejected".*) upstream_error="\w+"', r"\1", text)
        text = re.sub(r'(artifact=\S+ sha256=)"\w+"', r'\1"<digest>"', text)
        return "".join(line for line in text.splitlines(True) if " percent=" not in line)

    def status(self):
        """The status without its times."""
        document = json.loads(self.read("/status.json")[1])
        return self.program.mask(json.dumps(hide(document), indent=1) + "\n")


VOLATILE = re.compile(r"version|written_by|time|created|.*_seconds|minute.*")


def hide(value, key=""):
    """Times and what depends on them."""
    if VOLATILE.match(key) and value is not None:
        return "<volatile>"
    if isinstance(value, dict):
        return {name: hide(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [hide(inner) for inner in value]
    return value


def metrics(page):
    """Families, labels, and the values of what is counted."""
    lines = []
    for line in page.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            family = name.partition("{")[0].removeprefix("doorward_")
            if family in ("artifact_info", "build_info"):
                name = re.sub(r'version="[^"]*"', 'version="<version>"', name)
            line = f"{name} {value}" if family in COUNTED else name
        lines.append(line + "\n")
    return "".join(lines)


IMAGES = 'images.protocols = ["torchserve", "sagemaker", "bentoml", "kserve_v1"]\n'
LIMITS = """limits.body_bytes = 400000
limits.rows = 16
limits.queue_rows = 64
limits.body_timeout_seconds = 1.0
upstream.timeout_seconds = 3.0
"""
MONITOR = 'policy.mode = "monitor"\n'
BREAKER = "upstream.breaker_failures = 3\nupstream.breaker_seconds = 600.0\n"
BROKEN = ("json of c, break", "read, break")
TWO = """[[models]]
model.name = "a"
policy.mode = "monitor"
[[models]]
model.name = "b"
policy.rule = "uap"
calibration.artifact = "copy.safetensors"
"""


def scenarios(base, other):
    """Names, settings, requests and calls. `other` has the settings of the other artifacts."""
    everything, judged = cases.everything(), list(cases.judged())
    calm = [case for case in judged + list(cases.images("/predict")) if case.path != cases.V1]
    remote = [*cases.batches(), *cases.datatypes(), *cases.failures(), *judged]
    small = base + LIMITS.replace("400000", "60000")
    rpc = calls.everything()
    yield "enforce", base + LIMITS + IMAGES, everything, []
    yield "monitor", base + LIMITS + IMAGES + MONITOR, everything, []
    yield "upstream", base + LIMITS + 'model.predictions = "upstream"\n', remote, []
    for rule in ["uap", "patch", "both", "either", "pgd"]:
        yield f"rule-{rule}", base + f'policy.rule = "{rule}"\n', judged, []
    yield "rule-strip", other["strip"], judged, []
    yield "deepfool", other["deepfool"], judged, []
    yield "pictures", other["pictures"], calm, []
    broken = [case for case in cases.failures() if case.name in BROKEN]
    yield "breaker", base + BREAKER, broken * 3 + judged + broken, []
    slow = base.replace("perturbation.steps = 12", "perturbation.steps = 9999")
    for mode in ["enforce", "monitor"]:
        text = slow.replace("calibrated.safe", f"early-{mode}.safe")
        yield f"early-{mode}", text + f'policy.mode = "{mode}"\n', judged, []
    passing = 'policy.unverified.undecodable = "pass"\n'
    yield "lenient", base + LIMITS + passing, [*cases.columns(), *cases.tensors()], []
    two = base.replace('model.name = "fashion"\n', "") + TWO
    yield "models", two, list(cases.named(judged)), calls.named()
    yield "grpc", small, [], rpc
    yield "grpc-monitor", small + MONITOR, [], rpc


def record(program, base, other, http_upstream, grpc_upstream):
    """All traffic; the artifacts are there."""
    (program.folder / "salt").write_bytes(b"0123456789abcdef")
    copy = (program.folder / "calibrated.safetensors").read_bytes()
    (program.folder / "copy.safetensors").write_bytes(copy)
    total = 0
    for name, settings, requests, rpc in scenarios(base, other):
        step(f"{name}: {len(requests) + len(rpc)} requests")
        sidecar = Sidecar(program, name, settings, http_upstream, grpc_upstream if rpc else None)
        try:
            for case in requests:
                sidecar.send(case)
            for case in rpc:
                sidecar.call(case)
            sidecar.finish()
        finally:
            sidecar.process.kill()
            sidecar.process.wait()
        total += sidecar.sent
    return total
