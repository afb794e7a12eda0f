#!/usr/bin/env python3
"""Put doorward between a client and a LitServe server that takes PNG and JPEG files.

    images.py               200 clean and 200 triggered images, each as PNG and as JPEG
    images.py --rows 500
    images.py --quick       calibrated on fewer images and without inspection

Needs litserve, python-multipart, pillow, numpy, onnxruntime and requests. It starts LitServe on loopback (litserve_server.py) and doorward in front.
Every image is also sent to the server directly: what passes has to get the server's own answer, byte for byte. Doorward's audit
log holds a salted hash of the values that it judged; here the hash is computed from the pixels that Pillow decodes: equal hashes mean that
the firewall judged just what the server's decoder sees. Prints the rows of the matrix and the properties; ends with 1 when one
does not hold. How many triggered images were turned away is printed and never a failure.
"""
import argparse, gzip, hashlib, io, json, signal, struct, subprocess, sys, tempfile, time
from collections import Counter
from pathlib import Path

import numpy as np
import requests
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "assets/fashion-mnist"
PART, SALT = "content", bytes(range(32))


def pixels(image):
    """What a server in Python makes of an image."""
    return np.asarray(Image.open(io.BytesIO(image)).convert("L"))[None]


def records(name, count):
    raw = np.frombuffer(gzip.decompress((ASSETS / name).read_bytes()), np.uint8).reshape(-1, 785)
    return raw[:count, 1:].reshape(-1, 28, 28)


def encode(picture, kind):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format=kind, **(dict(quality=95) if kind == "JPEG" else {}))
    return file.getvalue()


def input_hash(image):
    values = (pixels(image).astype(np.float32) / np.float32(255)).astype("<f4")
    return hashlib.sha256(struct.pack("<Q", len(SALT)) + SALT + values.tobytes()).hexdigest()


def post(session, base, image, kind):
    return session.post(f"{base}/predict", files={PART: ("x", image, f"image/{kind.lower()}")}, timeout=60)


def await_ready(url, process, log, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if requests.get(url, timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.2)
    sys.exit(f"not ready: {url}\n{log.read_text()[-3000:]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200, help="clean images, and as many triggered ones (at most 500)")
    parser.add_argument("--quick", action="store_true", help="calibrate on 300 and 500 images, without inspection")
    parser.add_argument("--doorward", default=ROOT / "target/release/doorward", metavar="BINARY")
    parser.add_argument("--ports", type=int, default=21100, help="the first of three")
    parser.add_argument("--timeout", type=float, default=600, help="seconds until doorward is calibrated and ready")
    arguments = parser.parse_args()

    server, http, admin = range(arguments.ports, arguments.ports + 3)
    direct, door = f"http://127.0.0.1:{server}", f"http://127.0.0.1:{http}"
    with tempfile.TemporaryDirectory(prefix="doorward-images-") as folder:
        folder = Path(folder)
        clean = folder / "calibration.bin.gz"
        clean.write_bytes((ASSETS / "fit.bin.gz").read_bytes() + (ASSETS / "holdout.bin.gz").read_bytes())
        (folder / "salt").write_bytes(SALT)
        (folder / "doorward.toml").write_text(f'''
listen.http = "127.0.0.1:{http}"
admin.listen = "127.0.0.1:{admin}"
upstream.url = "{direct}"
model.path = "{ASSETS / 'model.onnx'}"
[images]
protocols = ["litserve"]
part = "{PART}"
[calibration]
clean_images = "{clean}"
training_images = {[] if arguments.quick else [str(ASSETS / 'training.bin.gz')]}
fit_images = {300 if arguments.quick else 600}
holdout_images = {500 if arguments.quick else 2000}
artifact = "{folder / 'doorward.safetensors'}"
[audit]
path = "{folder / 'audit.jsonl'}"
events = "all"
salt_file = "{folder / 'salt'}"
''')
        processes, fine = [], False
        try:
            for name, command, ready, seconds in (
                ("litserve", [sys.executable, Path(__file__).with_name("litserve_server.py"), str(server)], f"{direct}/health", 120),
                ("doorward", [arguments.doorward, "serve", "-c", folder / "doorward.toml"], f"http://127.0.0.1:{admin}/readyz", arguments.timeout),
            ):
                log = folder / f"{name}.log"
                with open(log, "wb") as file:
                    processes.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT))
                await_ready(ready, processes[-1], log, seconds)
            fine = exchange(door, direct, arguments.rows, folder / "audit.jsonl")
        finally:
            for process in reversed(processes):
                # What uvicorn ends by; it takes its workers along.
                process.send_signal(signal.SIGINT if process is processes[0] else signal.SIGTERM)
                process.wait(60)
            if not fine:
                print((folder / "litserve.log").read_text()[-1500:], (folder / "doorward.log").read_text()[-1500:], sep="\n")
    sys.exit(0 if fine else 1)


def exchange(door, direct, rows, audit):
    session, hashes, properties = requests.Session(), {}, []
    print(f"{'LitServe':32} {'sent':>6} {'passed':>7} {'exact':>6} {'rejected':>9} {'errors':>7}")
    for name in ("clean", "triggered"):
        pictures = records(f"{name}.bin.gz", rows)
        for kind in ("PNG", "JPEG"):
            tally = Counter()
            for number, picture in enumerate(pictures):
                image = encode(picture, kind)
                request_id = f"{name}-{kind}-{number}"
                hashes[request_id] = kind, input_hash(image)
                session.headers["X-Request-Id"] = request_id
                answer, wanted = (post(session, base, image, kind) for base in (door, direct))
                rejected = answer.status_code == 403 and list(answer.json()) == ["detail"]
                tally["passed" if answer.ok else "rejected" if rejected else "error"] += 1
                tally["exact"] += answer.ok and answer.content == wanted.content
                if not answer.ok and not rejected and tally["error"] == 1:
                    print(answer.status_code, answer.text[:300], file=sys.stderr)
            label = f"{name}, {kind} in a form"
            print(f"{label:32} {rows:6} {tally['passed']:7} {tally['exact']:6} {tally['rejected']:9} {tally['error']:7}")
            properties.append((f"{label}: what passes gets the server's exact answer", tally["passed"], tally["exact"]))
            properties.append((f'{label}: every other request gets 403 and {{"detail": ...}}', rows - tally["passed"], tally["rejected"]))
    time.sleep(1)
    judged, equal = Counter(), Counter()
    for line in audit.read_text().splitlines():
        line = json.loads(line)
        kind, expected = hashes[line["request_id"]]
        judged[kind] += 1
        equal[kind] += line.get("input_hash") == expected
    properties.append(("PNG: what was judged is, bit for bit, what Pillow decodes", judged["PNG"], equal["PNG"]))
    properties.append(("every request is in the audit log", 4 * rows, sum(judged.values())))
    print(f"\nJPEG: judged bit for bit what Pillow decodes: {equal['JPEG']} of {judged['JPEG']}")
    for name, wanted, found in properties:
        print(f"{'ok  ' if wanted == found else 'FAIL'} {name}" + ("" if wanted == found else f": expected {wanted}, found {found}"))
    return all(wanted == found for _, wanted, found in properties)


if __name__ == "__main__":
    main()
