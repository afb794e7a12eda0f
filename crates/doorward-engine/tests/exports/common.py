"""What the two scripts that export models do alike; each runs with frameworks of its own."""
import sys, time, zlib

import onnx
from safetensors.numpy import save_file


def seed(name):
    return zlib.crc32(name.encode()) % 2**31


def missing(names, folder, only, force):
    """Those of the exports that are asked for and not there yet."""
    return [name for name in names if (not only or any(part in name for part in only))
            and (force or not (folder / f"{name}.safetensors").exists())]


def write(names, folder, one):
    """Exports each of them with `one(name, path)`, which checks the file and gives its references; the failures."""
    failed = []
    for name in names:
        start, path = time.time(), folder / f"{name}.onnx"
        try:
            tensors = one(name, path)
            opset = next(i.version for i in onnx.load(path).opset_import if i.domain == "")
        except Exception as error:           # of whatever kind the exporter has: the others go on
            path.unlink(missing_ok=True)
            failed.append(f"{name}: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")
            print(f"  {failed[-1]}", flush=True)
            continue
        save_file(tensors, folder / f"{name}.safetensors")
        print(f"  {name:38} opset {opset} {path.stat().st_size / 1e6:6.1f} MB {time.time() - start:5.1f} s", flush=True)
    return failed


def end(failed):
    if failed:
        sys.exit(f"{len(failed)} not exported:\n" + "\n".join(failed))
