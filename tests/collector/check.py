"""See run.sh."""
import collections, gzip, json, re, signal, subprocess, sys, tempfile, time, urllib.error, urllib.request
from pathlib import Path

import numpy as np
import rotel

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "assets/fashion-mnist"
PORT = int(sys.argv[1])
LISTEN, ADMIN, UPSTREAM, COLLECTOR, COLLECTOR_GRPC = range(PORT, PORT + 5)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def image(name, index):
    raw = np.frombuffer(gzip.decompress((ASSETS / name).read_bytes()), np.uint8).reshape(-1, 785)
    return (raw[index, 1:] / 255).round(6).tolist()


def wait(what, condition):
    for _ in range(600):
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(.1)
    sys.exit(f"not in time: {what}")


def read(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def infer(name, index):
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": image(name, index)}]})
    headers = {"Content-Type": "application/json", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    request = urllib.request.Request(f"http://127.0.0.1:{LISTEN}/v2/models/m/infer", body.encode(), headers)
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def main(folder):
    settings = folder / "doorward.toml"
    settings.write_text(f"""
listen.http = "127.0.0.1:{LISTEN}"
admin.listen = "127.0.0.1:{ADMIN}"
upstream.url = "http://127.0.0.1:{UPSTREAM}"
model.path = "{ASSETS / 'model.onnx'}"
calibration.clean_images = ["{ASSETS / 'fit.bin.gz'}", "{ASSETS / 'holdout.bin.gz'}"]
calibration.fit_images = 100
calibration.holdout_images = 500
calibration.artifact = "{folder / 'doorward.safetensors'}"
perturbation.steps = 20
policy.max_false_rejection_rate = 0.05
telemetry.log = "warn"
telemetry.otlp.endpoint = "http://127.0.0.1:{COLLECTOR}"
""")
    log = folder / "collector.log"
    agent = Path(rotel.__file__).with_name("rotel-agent")
    commands = [
        [agent, "start", "--exporter", "blackhole", "--debug-log", "traces", "--debug-log-verbosity", "detailed", "--pid-file", folder / "pid",
         "--otlp-http-endpoint", f"127.0.0.1:{COLLECTOR}", "--otlp-grpc-endpoint", f"127.0.0.1:{COLLECTOR_GRPC}"],
        [sys.executable, ROOT / "tests/load/upstream.py", str(UPSTREAM), "0", "0"],
        [ROOT / "target/release/doorward", "serve", "-c", settings],
    ]
    processes = []
    try:
        for command in commands:
            processes.append(subprocess.Popen(command, stdout=open(log, "a"), stderr=subprocess.STDOUT))
        wait("the sidecar is ready", lambda: read(f"http://127.0.0.1:{ADMIN}/readyz"))
        seen = collections.Counter(infer(name, index) for name in ("clean.bin.gz", "triggered.bin.gz") for index in range(40))
        if set(seen) != {200, 403}:
            sys.exit(f"statuses {dict(seen)}, expected some 200 and some 403")
        spans = 3 * sum(seen.values())
        wait(f"{spans} spans are exported", lambda: f'doorward_spans_total{{result="exported"}} {spans}\n' in read(f"http://127.0.0.1:{ADMIN}/metrics"))
        processes[-1].send_signal(signal.SIGTERM)
        ended = processes[-1].wait(30)
        processes[0].send_signal(signal.SIGTERM)
        processes[0].wait(30)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text())
    verdicts = collections.Counter(re.findall(r"doorward\.verdict: Str\((\w+)\)", text))
    got = dict(verdicts=dict(verdicts), of_the_clients_trace=text.count(TRACE), status=ended)
    wanted = dict(verdicts={"passed": seen[200], "rejected": seen[403]}, of_the_clients_trace=spans, status=0)
    print(f"{sum(seen.values())} requests, {seen[403]} rejected; the collector's log: {got}")
    if got != wanted:
        sys.exit(f"expected {wanted}")


with tempfile.TemporaryDirectory(prefix="doorward-collector-") as folder:
    main(Path(folder))
