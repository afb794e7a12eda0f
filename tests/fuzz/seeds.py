#!/usr/bin/env python3
"""Seeds of the fuzz targets of the protocols: seeds.py FOLDER writes FOLDER/rest, grpc and picture. Needs Pillow."""
import io
import json
import struct
import sys
from pathlib import Path

from PIL import Image

ROW = [0.25, 0.1, 1.0, 0.0]
SIZES = dict(FP32="f", FP64="d", FP16="e", UINT8="B", INT8="b")


def tensor(datatype, values=ROW):
    return struct.pack(f"<{len(values)}{SIZES[datatype]}", *(int(v) if datatype.endswith("INT8") else v for v in values))


def v2(datatype="FP32", rows=1, **rest):
    return json.dumps({"inputs": [{"name": "x", "shape": [rows, 1, 2, 2], "datatype": datatype, **rest}]}).encode()


def rest():
    for datatype in SIZES:
        data = [int(v) if datatype.endswith("INT8") else v for v in ROW]
        yield b"\0" + v2(datatype, data=data)
        behind = tensor(datatype)
        text = v2(datatype, parameters=dict(binary_data_size=len(behind)))
        yield b"\1" + struct.pack("<H", len(behind)) + text + behind
    yield b"\0" + v2(rows=2, data=[[[ROW[:2], ROW[2:]]]] * 2)
    yield b"\0" + v2(data=ROW)[:-1] + b', "id": "7", "outputs": [{"name": "y", "parameters": {"binary_data": true}}]}'
    yield b"\2" + tensor("FP32", ROW * 2)
    nested = [[ROW[:2], ROW[2:]]]
    yield b"\3" + json.dumps({"instances": [nested, nested]}).encode()
    yield b"\3" + json.dumps({"instances": [{"x": nested}], "signature_name": "s"}).encode()
    yield b"\3" + json.dumps({"inputs": {"x": [nested]}}).encode()


def field(number, content):
    """A length-delimited field of protobuf."""
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def grpc():
    typed = dict(FP32=(6, tensor("FP32")), FP64=(7, tensor("FP64")), UINT8=(4, bytes([0, 1, 1, 0])), INT8=(2, bytes([0, 1, 1, 0])))
    for datatype in SIZES:
        head = field(1, b"x") + field(2, datatype.encode()) + field(3, bytes([1, 1, 2, 2]))
        model = field(1, b"m") + field(3, b"id")
        yield model + field(5, head) + field(7, tensor(datatype))
        if datatype in typed:
            number, content = typed[datatype]
            yield model + field(5, head + field(5, field(number, content)))
    yield model + field(5, head) + field(6, field(1, b"y")) + field(7, tensor("INT8"))


def picture():
    for mode in "L", "RGB":
        for size in (8, 8), (5, 13):
            image = Image.linear_gradient("L").resize(size).convert(mode)
            for kind, options in ("png", {}), ("jpeg", dict(quality=80)), ("jpeg", dict(quality=95, restart_marker_blocks=1)):
                file = io.BytesIO()
                image.save(file, kind, **options)
                yield b"\0" + file.getvalue()
                head = f'--b\r\nContent-Disposition: form-data; name="data"; filename="a"\r\nContent-Type: image/{kind}\r\n\r\n'
                yield b"\1" + head.encode() + file.getvalue() + b"\r\n--b--\r\n"


for target in rest, grpc, picture:
    folder = Path(sys.argv[1]) / target.__name__
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target()):
        (folder / f"seed-{number}").write_bytes(seed)
