"""The recorded HTTP requests: tables, their products, and seeded damage."""

import base64
import gzip
import json
import random
import struct
import zlib
from typing import NamedTuple

import pictures

NAME = "fashion"
V2 = f"/v2/models/{NAME}/infer"
V1 = f"/v1/models/{NAME}:predict"
LENGTH = "Inference-Header-Content-Length"
CODED = "Content-Encoding"
TYPE = "Content-Type"
PNG, JPEG, OCTETS = "image/png", "image/jpeg", "application/octet-stream"
FORM = 'multipart/form-data; boundary="x y"'

CLEAN = pictures.records("clean.bin.gz", 8)
TRIGGERED = pictures.records("triggered.bin.gz", 8)
ROWS = {
    "c": [pictures.values(pixels) for _, pixels in CLEAN],
    "t": [pictures.values(pixels) for _, pixels in TRIGGERED],
}
# What the model says of the rows: triggered ones are answered with the attack's label.
KNOWN = [(label, row) for (label, _), row in zip(CLEAN, ROWS["c"])]
KNOWN += [(0, row) for row in ROWS["t"]]


class Case(NamedTuple):
    """One request. With `raw` in place of the rest, these bytes are sent."""

    name: str
    path: str = V2
    body: bytes = b""
    headers: tuple = ()
    method: str = "POST"
    raw: bytes | None = None


def rows(pattern):
    """Rows for letters: c is clean, t triggered."""
    return [ROWS[letter][at % 8] for at, letter in enumerate(pattern)]


def short(numbers):
    return [round(number, 6) for number in numbers]


def nested(row):
    """A row as channels, lines and columns."""
    return [[short(row[at : at + 28]) for at in range(0, 784, 28)]]


def flat(rows):
    return [number for row in rows for number in row]


def pack(datatype, numbers):
    """A tensor's bytes."""
    if datatype == "BF16":
        return b"".join(struct.pack("<f", number)[2:] for number in numbers)
    letter = {"FP32": "f", "FP64": "d", "FP16": "e", "UINT8": "B", "INT8": "b"}[datatype]
    return struct.pack(f"<{len(numbers)}{letter}", *numbers)


def document(rows, datatype="FP32", data=None, size=None, **more):
    """A V2 request's JSON."""
    tensor = {"name": "x", "shape": [len(rows), 1, 28, 28], "datatype": datatype}
    if size is not None:
        tensor["parameters"] = {"binary_data_size": size}
    else:
        tensor["data"] = short(flat(rows)) if data is None else data
    return json.dumps({"inputs": [tensor]} | more).encode()


def binary(name, text, tensor, **more):
    """A V2 request with a tensor behind its JSON."""
    headers = ((LENGTH, str(len(text))),) + more.get("headers", ())
    return Case(name, V2, text + tensor, headers)


def form_of(form, rows):
    """Path, headers and body of a request in one of the forms."""
    match form:
        case "json":
            return V2, (), document(rows, id="7")
        case "nested":
            return V2, (), document(rows, data=[nested(row) for row in rows])
        case "binary":
            tensor = pack("FP32", flat(rows))
            text = document(rows, size=len(tensor))
            return V2, ((LENGTH, str(len(text))),), text + tensor
        case "whole":
            return V2, ((LENGTH, "0"),), pack("FP32", flat(rows))
        case "instances":
            return V1, (), json.dumps({"instances": [nested(row) for row in rows]}).encode()
        case "named":
            inner = [{"x": nested(row)} for row in rows]
            return V1, (), json.dumps({"signature_name": "s", "instances": inner}).encode()
        case "inputs":
            return V1, (), json.dumps({"inputs": [nested(row) for row in rows]}).encode()
        case "columns":
            inner = {"x": [nested(row) for row in rows]}
            return V1, (), json.dumps({"inputs": inner}).encode()


FORMS = ["json", "nested", "binary", "whole", "instances", "named", "inputs", "columns"]
BATCHES = ["c", "t", "cc", "ct", "tc", "ctct", "cccccccc", "c" * 16, "c" * 15 + "t", "c" * 17]


def batches():
    """Every form with clean, triggered and too many rows."""
    for form in FORMS:
        for pattern in BATCHES:
            path, headers, body = form_of(form, rows(pattern))
            yield Case(f"{form} of {pattern}", path, body, headers)


def datatypes():
    """Every datatype, as JSON and as bytes."""
    for datatype in ["FP32", "FP16", "BF16", "FP64", "UINT8", "INT8"]:
        for pattern in "ct":
            row = rows(pattern)[0]
            if datatype.endswith("INT8"):
                row = [int(number > 0.5) for number in row]
            yield Case(f"{datatype} of {pattern}", body=document([row], datatype, short(row)))
            tensor = pack(datatype, row)
            text = document([row], datatype, size=len(tensor))
            yield binary(f"binary {datatype} of {pattern}", text, tensor)
    for datatype, number in [
        ("UINT8", 256),
        ("UINT8", 0.5),
        ("UINT8", 2),
        ("INT8", 128),
        ("INT8", -1),
        ("FP16", 65520),
        ("FP64", 1e300),
        ("FP32", 1e39),
        ("BYTES", 0),
        ("INT32", 0),
        ("fp32", 0),
        ("BOOL", 0),
        ("", 0),
    ]:
        data = [number] + [0] * 783
        body = document([data], datatype, data)
        yield Case(f"{datatype} with {number}", body=body)


def zstd(data):
    """A zstd frame of raw blocks."""
    out = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", len(data))
    pieces = [data[at : at + 65536] for at in range(0, len(data), 65536)]
    for index, piece in enumerate(pieces):
        head = len(piece) << 3 | (index == len(pieces) - 1)
        out += struct.pack("<I", head)[:3] + piece
    return out


def packed(data):
    """gzip without a time."""
    return gzip.compress(data, 9, mtime=0)


CODINGS = {"gzip": packed, "deflate": zlib.compress, "zstd": zstd}


def codings():
    """Coded bodies, and those that say they are."""
    for coding, code in CODINGS.items():
        for form in ["json", "binary", "whole", "instances", "columns"]:
            for pattern in "ct":
                path, headers, body = form_of(form, rows(pattern))
                headers += ((CODED, coding),)
                yield Case(f"{coding} {form} of {pattern}", path, code(body), headers)
        clean, bad = document(rows("c")), document(rows("t"))
        header = ((CODED, coding),)
        for name, body in [
            ("plain", clean),
            ("empty", b""),
            ("two members", code(clean) + code(bad)),
            ("cut short", code(clean)[:-5]),
            ("with a tail", code(clean) + b"x"),
            ("a flipped bit", code(clean)[:-6] + b"\x55" + code(clean)[-5:]),
            ("coded twice", code(code(clean))),
            ("too large", code(b" " * 600_000)),
            ("not JSON", code(b"{}")),
        ]:
            yield Case(f"{coding}: {name}", body=body, headers=header)
    yield Case("raw deflate", body=zlib.compress(clean)[2:-4], headers=((CODED, "deflate"),))
    for names in [
        ["gzip, gzip"],
        ["gzip", "identity"],
        ["gzip,identity"],
        ["x-gzip"],
        [""],
        ["br"],
        ["identity"],
        ["GZIP"],
        ["gzip", "gzip"],
        [" gzip "],
        ["compress"],
    ]:
        headers = tuple((CODED, name) for name in names)
        yield Case(f"coding {names}", body=packed(clean), headers=headers)


def spelled():
    """V2 documents of odd or wrong spelling."""
    zeros = "[" + ",".join(["0"] * 784) + "]"
    plain = '{"inputs":[{"name":"x","shape":[1,1,28,28],"datatype":"FP32","data":%s}]}' % zeros
    table = {
        "spaces": plain.replace(":", " :\t"),
        "a second document": plain + "{}",
        "a tail": plain + " x",
        "cut": plain[:-1],
        "empty": "",
        "an array": "[" + plain + "]",
        "a number": "7",
        "null": "null",
        "BOM": "\ufeff" + plain,
        "no inputs": "{}",
        "inputs empty": '{"inputs":[]}',
        "inputs null": '{"inputs":null}',
        "inputs object": '{"inputs":{}}',
    }
    changes = {
        "escaped key": ('"inputs"', '"\\u0069nputs"'),
        "id": ('{"inputs"', '{"id":"\\u0041","inputs"'),
        "id number": ('{"inputs"', '{"id":7,"inputs"'),
        "id null": ('{"inputs"', '{"id":null,"inputs"'),
        "id twice": ('{"inputs"', '{"id":"a","id":"a","inputs"'),
        "inputs twice": ('{"inputs"', '{"inputs":[],"inputs"'),
        "inputs twice, escaped": ('{"inputs"', '{"input\\u0073":[],"inputs"'),
        "unknown key": ('{"inputs"', '{"extra":1,"inputs"'),
        "unknown key within": ('"name"', '"extra":1,"name"'),
        "name twice": ('"name":"x"', '"name":"x","name":"y"'),
        "no name": ('"name":"x",', ""),
        "name number": ('"name":"x"', '"name":1'),
        "name empty": ('"name":"x"', '"name":""'),
        "name unicode": ('"name":"x"', '"name":"\u00e9\\ud83d\\ude00"'),
        "lone surrogate": ('"name":"x"', '"name":"\\ud83d"'),
        "parameters": ('"name"', '"parameters":{"b":1,"a":[2.5,null,{"c":1e2}]},"name"'),
        "parameters null": ('"name"', '"parameters":null,"name"'),
        "parameter twice": ('"name"', '"parameters":{"b":1,"b":2},"name"'),
        "parameters list": ('"name"', '"parameters":[],"name"'),
        "shared memory": ('"name"', '"parameters":{"shared_memory_region":"r"},"name"'),
        "shared memory above": ('{"i', '{"parameters":{"shared_memory_region":"r"},"i'),
        "top parameters": ('{"inputs"', '{"parameters":{"x":1.50,"y":"\\n"},"inputs"'),
        "outputs": ('{"inputs"', '{"outputs":[{"name":"y","parameters":{"k":2}}],"inputs"'),
        "outputs empty": ('{"inputs"', '{"outputs":[],"inputs"'),
        "outputs wrong": ('{"inputs"', '{"outputs":{"name":"y"},"inputs"'),
        "outputs twice": ('{"inputs"', '{"outputs":[],"outputs":[],"inputs"'),
        "no shape": ('"shape":[1,1,28,28],', ""),
        "shape null": ("[1,1,28,28]", "null"),
        "shape text": ("[1,1,28,28]", '"1"'),
        "shape float": ("[1,1,28,28]", "[1.0,1,28,28]"),
        "shape negative": ("[1,1,28,28]", "[-1,1,28,28]"),
        "no rows": ("[1,1,", "[0,1,"),
        "shape flat": ("[1,1,28,28]", "[1,784]"),
        "shape of two": ("[1,1,", "[2,1,"),
        "shape empty": ("[1,1,28,28]", "[]"),
        "shape long": ("[1,1,", "[1,1,1,"),
        "shape swapped": ("[1,1,28,28]", "[1,28,28,1]"),
        "shape 2^62": ("[1,1,", "[4611686018427387904,1,"),
        "shape 2^64": ("[1,1,", "[18446744073709551616,1,"),
        "shape of 17": ("[1,1,", "[17,1,"),
        "shape of 1000": ("[1,1,28,28]", "[" + "1," * 999 + "1]"),
        "no datatype": ('"datatype":"FP32",', ""),
        "datatype null": ('"FP32"', "null"),
        "datatype number": ('"FP32"', "32"),
        "no data": (',"data":' + zeros, ""),
        "data null": (zeros, "null"),
        "data text": (zeros, '"0"'),
        "data object": (zeros, "{}"),
        "data short": (zeros, zeros.replace("[0,", "[", 1)),
        "data long": ("[0,", "[0,0,"),
        "data empty": (zeros, "[]"),
        "data twice": ('"data"', '"data":[0],"data"'),
        "data nested oddly": (zeros, "[" + zeros + ",[]]"),
        "data deep": (zeros, "[" * 200 + "]" * 200),
        "data nested in one": (zeros, "[" + zeros + "]"),
        "data ragged": (zeros, "[[0,0],[0]]"),
        "size without header": ('"name"', '"parameters":{"binary_data_size":4},"name"'),
    }
    numbers = [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e39",
        "1e999",
        "-1e-400",
        "1.0000001",
        "1.5",
        "-0.5",
        "-0",
        "-0.0",
        "01",
        "+1",
        ".5",
        "1.",
        "0x1",
        '"0"',
        "true",
        "null",
        "1e-400",
        "0.1e1",
        "0.10000000149011612",
        "3.4028236e38",
        "1" * 400,
        "0." + "3" * 400,
        "1E0",
        "[0]",
    ]
    table |= {name: plain.replace(old, new, 1) for name, (old, new) in changes.items()}
    table |= {f"number {text[:24]}": plain.replace("[0,", f"[{text},", 1) for text in numbers}
    table["two inputs"] = plain[:-1] + ',"inputs":[]}'
    table["two tensors"] = plain.replace("]}]}", "]},{}]}")
    for name, text in table.items():
        yield Case(f"V2 {name}", body=text.encode())
    for name, body in [
        ("not UTF-8", plain.encode().replace(b'"x"', b'"\xff"')),
        ("UTF-16", plain.encode("utf-16")),
        ("a null byte", plain.encode() + b"\0"),
    ]:
        yield Case(f"V2 {name}", body=body)


def tensors():
    """Binary requests that say two things."""
    tensor = pack("FP32", flat(rows("c")))
    text = document(rows("c"), size=len(tensor))
    for length in [
        "",
        "+1",
        "-1",
        "0x10",
        "1e2",
        "00",
        "9" * 23,
        " ",
        f"0{len(text)}",
        f"{len(text)}, {len(text)}",
        str(len(text) - 1),
        str(len(text) + 1),
        str(len(text) + len(tensor)),
        str(len(text) + len(tensor) + 1),
    ]:
        yield Case(f"length {length!r}", body=text + tensor, headers=((LENGTH, length),))
    twice = ((LENGTH, str(len(text))),) * 2
    yield Case("length twice", body=text + tensor, headers=twice)
    yield Case("no length", body=text + tensor)
    for size in [
        "3135",
        "3137",
        "0",
        "-3136",
        "3136.0",
        "3.136e3",
        '"3136"',
        "null",
        "[3136]",
        "true",
        "18446744073709554752",
    ]:
        yield binary(f"size {size}", text.replace(b"3136", size.encode()), tensor)
    for name, tail in [
        ("short", tensor[:-1]),
        ("long", tensor + b"\0"),
        ("twice", tensor * 2),
        ("none", b""),
    ]:
        yield binary(f"tensor {name}", text, tail)
    for number in [float("nan"), float("inf"), float("-inf"), 1.5, -0.5, 3.4e38, 1e-40, -0.0]:
        changed = tensor[:-4] + struct.pack("<f", number)
        yield binary(f"tensor with {number}", text, changed)
        yield Case(f"whole with {number}", body=changed, headers=((LENGTH, "0"),))
    for datatype in ["FP16", "FP64", "UINT8", "BYTES", "INT32"]:
        yield binary(f"tensor as {datatype}", text.replace(b"FP32", datatype.encode()), tensor)
    old, size = b'"parameters": {"binary_data_size": 3136}', b'"binary_data_size": 3136'
    for name, new in [
        ("both", old + b', "data": [0]'),
        ("neither", b'"parameters": {}'),
        ("twice", b'"parameters": {%s, %s}' % (size, size)),
        ("outside", old + b", " + size),
        ("shared", b'"parameters": {%s, "shared_memory_region": "r"}' % size),
        ("beside", b'"parameters": {%s, "k": [1, {"a": null}]}' % size),
    ]:
        yield binary(f"tensor {name}", text.replace(old, new), tensor)
    for key in [
        b'"outputs":[{"name":"y","parameters":{"binary_data":true}}],',
        b'"outputs":[{"name":"y","parameters":{"binary_data_size":16}}],',
        b'"parameters":{"binary_data_output":true},',
        b'"parameters":{"binary_data_size":1},',
    ]:
        yield binary(f"with {key.decode()}", text.replace(b"{", b"{" + key, 1), tensor)
    for name, body in [("short", tensor[:-1]), ("empty", b""), ("long", tensor + b"\0" * 4)]:
        yield Case(f"whole {name}", body=body, headers=((LENGTH, "0"),))
    for kind in [
        "application/json",
        "Application/Octet-Stream",
        PNG,
        "text/plain",
        "",
        "a/b; c=d",
        "application/json; charset=utf-8",
        "application/json; charset=latin-1",
    ]:
        yield binary(f"binary as {kind!r}", text, tensor, headers=((TYPE, kind),))
        yield Case(f"whole as {kind!r}", body=tensor, headers=((LENGTH, "0"), (TYPE, kind)))
        yield Case(f"JSON as {kind!r}", body=document(rows("c")), headers=((TYPE, kind),))
        yield Case(f"V1 as {kind!r}", V1, form_of("instances", rows("c"))[2], ((TYPE, kind),))


def columns():
    """V1 documents that say two things."""
    line = "[" + ",".join(["0"] * 28) + "]"
    row = "[[" + ",".join([line] * 28) + "]]"

    def listed(inner):
        return f'{{"instances":[{inner}]}}'

    b64 = '{"b64":"AAAA"}'
    table = [
        "",
        "[]",
        "{}",
        "null",
        listed(""),
        listed(row),
        listed(row) + "{}",
        listed(row) + " x",
        f'{{"instances":[{row}],"inputs":[{row}]}}',
        f'{{"inputs":[{row}],"instances":null}}',
        f'{{"instances":[{row}],"instances":[{row}]}}',
        f'{{"instances":[{row}],"inst\\u0061nces":[]}}',
        f'{{"instances":[{row}],"examples":[]}}',
        f'{{"instances":[{row}],"signature_name":7}}',
        f'{{"instances":[{row}],"signature_name":null}}',
        f'{{"instances":{row}}}',
        listed(f'{{"x":{row},"x":{row}}}'),
        listed(f'{{"x":{row},"z":{row}}}'),
        listed(f'{{"x":{row}}},{{"z":{row}}}'),
        listed(f'{{"x":{row}}},{row}'),
        listed("{}"),
        listed(f'{{"x":{row}}},{{"\\u0078":{row}}}'),
        listed(b64),
        listed('{"x":%s}' % b64),
        '{"inputs":%s}' % b64,
        '{"inputs":{"x":%s}}' % b64,
        listed("0"),
        listed(row[1:-1]),
        f'{{"inputs":{{"x":[{row}],"y":[{row}]}}}}',
        '{"inputs":{}}',
        '{"inputs":[]}',
        listed(f"[{row}]"),
        listed(line),
        listed(row.replace("0]", "0,0]", 1)),
        listed("[[[0,0],0]]"),
        listed(",".join([row] * 17)),
        '{"instances":"x"}',
        '{"instances":7}',
    ]
    for number in [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e39",
        "1e999",
        "1.5",
        "2",
        '"0"',
        "-0.0",
        "1e-7",
        "0.10000000149",
        "true",
        "null",
    ]:
        table.append(listed(row.replace("0", number, 1)))
    for index, text in enumerate(table):
        yield Case(f"V1 document {index}", V1, text.encode())
    body = listed(row).encode()
    for headers in [((LENGTH, "0"),), ((LENGTH, "5"),), ((CODED, "br"),)]:
        yield Case(f"V1 with {headers}", V1, body, headers)
    yield Case("V1 version", f"/v1/models/{NAME}/versions/2:predict", body)
    yield Case("V2 version", f"/v2/models/{NAME}/versions/2/infer", document(rows("c")))


PATHS = """/ /v2 /v2/ /v2/health/live /v2/health/ready /v2/health /v2/models /v2/models/fashion
/v2/models/fashion/ready /v2/models/fashion/config /v2/models/fashion/stats
/v2/models/fashion/versions/1 /v2/models/fashion/versions/1/ready?verbose=1
/v2/models/other /v2/models/other/infer /v2/models/fashion/generate /v2//models/fashion/infer
//v2/models/fashion/infer /v2/models/fashion/infer/ /v2/models/fashion%2finfer
/v2/models/%66ashion/infer /v2/models/x/../fashion/infer /v2/models/./fashion/infer
/v2/models/fashion/infer?x=1 /v2/models/fashion/infer? /v2/models/fashion;v=1/infer
/V2/models/fashion/infer /v2/models/Fashion/infer /v2/repository/index
/v2/repository/models/fashion/load /v2/systemsharedmemory/status /v2/models/fashion/trace/setting
/v2/logging /v1 /v1/models /v1/models/fashion /v1/models/fashion/metadata
/v1/models/fashion/versions/1 /v1/models/fashion/versions/1/metadata /v1/models/fashion:classify
/v1/models/fashion:explain /v1/models/fashion:predict:predict /v1/models/fashion:predict/
/v1/models/fashion:predict?x=1 /v1/models/fashion%3apredict /v1/models/:predict
/v1/models/fashion/versions/:predict /v1/models/fashion/labels/a:predict
/v1//models/fashion:predict /v1/models/other:predict /v1/config /metrics /status /livez
/predictions /predictions/ /predictions/fashion /predictions/fashion/1 /predictions/fashion/1/2
/predictions/other /predictions//fashion /predictions/%66ashion /predictions/..
/predictions/fashion?a=1 /ping /invocations /invocations/ /models /predict /health /healthz
/readyz http://elsewhere/v2/models/fashion/infer *""".split()


def paths():
    """Every path read and asked, and some with other methods."""
    for path in PATHS:
        yield Case(f"GET {path}", path, method="GET")
        yield Case(f"POST {path}", path, document(rows("c")))
    for method in ["PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "post", "BREW"]:
        for path in [V2, V1, "/v2/health/live", "/predictions/fashion", "/ping", "/nowhere"]:
            yield Case(f"{method} {path}", path, method=method)


def heads():
    """Odd headers, ids, framing, and requests that are not HTTP."""
    body, bad = document(rows("c")), document(rows("t"))
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    tensor = pack("FP32", flat(rows("c")))
    text = document(rows("c"), size=len(tensor))
    for name, headers in {
        "id": [("X-Request-Id", "given-1")],
        "id with spaces": [("X-Request-Id", "a b")],
        "id empty": [("X-Request-Id", "")],
        "ids": [("X-Request-Id", "a"), ("X-Request-Id", "b")],
        "id long": [("X-Request-Id", "a" * 129)],
        "id of 128": [("X-Request-Id", "a" * 128)],
        "trace": [("traceparent", trace), ("tracestate", "a=b")],
        "bad trace": [("traceparent", "00-x")],
        "override": [
            ("X-HTTP-Method-Override", "DELETE"),
            ("X-Original-URL", "/x"),
            ("X-Rewrite-URL", "/x"),
        ],
        "hop": [
            ("Connection", "x-secret"),
            ("X-Secret", "1"),
            ("TE", "trailers"),
            ("Keep-Alive", "5"),
        ],
        "typed hop": [("Content-Type", PNG), ("Connection", "content-type")],
        "proxy": [("Proxy-Authorization", "a"), ("Proxy-Connection", "b"), ("Authorization", "c")],
        "forwarded": [("X-Forwarded-For", "1.2.3.4"), ("Forwarded", "for=1"), ("Via", "1.0 a")],
        "cookies": [("Cookie", "a=1"), ("Cookie", "b=2"), ("Accept-Encoding", "gzip")],
        "cloud event": [("ce-source", "tests"), ("ce-id", "1")],
        "upgrade": [("Upgrade", "h2c")],
        "expect": [("Expect", "100-continue")],
        "expect other": [("Expect", "200-ok")],
        "trailer": [("Trailer", "x")],
        "latin": [("X-Odd", "\xe9")],
        "target": [("X-Amzn-SageMaker-Target-Model", "o")],
    }.items():
        for pattern, content in [("c", body), ("t", bad)]:
            yield Case(f"{name}, {pattern}", body=content, headers=tuple(headers))
        yield Case(f"{name}, read", f"/v2/models/{NAME}", headers=tuple(headers), method="GET")
    for header in [(LENGTH, str(len(text))), (LENGTH, "0"), (CODED, "gzip")]:
        content = {"0": tensor, "gzip": packed(body)}.get(header[1], text + tensor)
        headers = (header, ("Connection", header[0]))
        yield Case(f"hop {header[0]} {header[1][:4]}", body=content, headers=headers)
    yield Case("too large", body=b" " * 400_001)
    yield Case("largest", body=body + b" " * (400_000 - len(body)))
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    start = f"POST {V2} HTTP/1.1\r\nHost: h\r\nX-Case: %d\r\n".encode()
    for name, raw in {
        "chunked": start + b"Transfer-Encoding: chunked\r\n\r\n" + chunks,
        "chunked with a trailer": start
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + chunks[:-2]
        + b"A: b\r\n\r\n",
        "bad chunk": start + b"Transfer-Encoding: chunked\r\n\r\nx\r\n",
        "chunked and length": start
        + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunks,
        "two lengths": start + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        "bad length": start + b"Content-Length: +5\r\n\r\n12345",
        "no host": b"GET /v2 HTTP/1.1\r\n\r\n",
        "HTTP/1.0": b"GET /v2 HTTP/1.0\r\nX-Case: %d\r\n\r\n",
        "not HTTP": b"hello\r\n\r\n",
        "folded": start + b"A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
        "space": start + b"A : b\r\n\r\n",
        "body cut": start + b"Content-Length: 9\r\n\r\n{}",
    }.items():
        yield Case(name, raw=raw)


def form(parts, boundary=b"x y", end=True):
    """A form of parts: name, type, content."""
    out = b""
    for name, kind, content in parts:
        out += b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\n' % (
            boundary,
            name.encode(),
        )
        out += b"Content-Type: %s\r\n\r\n%s\r\n" % (kind.encode(), content)
    return out + (b"--%s--\r\n" % boundary if end else b"")


def images(path=f"/predictions/{NAME}"):
    """Pictures, raw, in forms and in base64, and what is none."""
    clean, bad = [pixels for _, pixels in CLEAN], [pixels for _, pixels in TRIGGERED]
    made = {
        (kind, letter): make(pixels[0])
        for kind, make in [(PNG, pictures.png), (JPEG, pictures.jpeg)]
        for letter, pixels in [("c", clean), ("t", bad)]
    }
    for target in [f"/predictions/{NAME}", "/invocations", "/predict"]:
        for (kind, letter), image in made.items():
            for declared in [kind, OCTETS, None]:
                headers = ((TYPE, declared),) if declared else ()
                yield Case(f"{declared} {kind} of {letter} to {target}", target, image, headers)
            content = form([("data", kind, image)])
            yield Case(f"form {kind} of {letter} to {target}", target, content, ((TYPE, FORM),))
    good, other = made[PNG, "c"], made[JPEG, "c"]
    twice = form([("data", PNG, good), ("data", PNG, made[PNG, "t"])])
    one = form([("data", PNG, good)])
    size = pictures.chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    huge = good[:8] + size + good[33:]
    for name, kind, body in [
        ("PNG as JPEG", JPEG, good),
        ("JPEG as PNG", PNG, other),
        ("GIF", "image/gif", b"GIF89a"),
        ("JSON", "application/json", b"{}"),
        ("urlencoded", "application/x-www-form-urlencoded", good),
        ("parameter", "image/png; q=1", good),
        ("empty", PNG, b""),
        ("two", PNG, good + good),
        ("two JPEGs", JPEG, other + other),
        ("base64", PNG, base64.b64encode(good)),
        ("twice", FORM, twice),
        ("no form", FORM, good),
        ("no part", FORM, form([])),
        ("unfinished", FORM, form([("data", PNG, good)], end=False)),
        ("other name", FORM, form([("body", PNG, good)])),
        ("part as JPEG", FORM, form([("data", JPEG, good)])),
        ("part as text", FORM, form([("data", "text/plain", good)])),
        ("no boundary", "multipart/form-data", one),
        ("mixed", 'multipart/mixed; boundary="x y"', one),
        ("tail", FORM, one + b"--x y\r\n\r\n" + good),
        ("preamble", FORM, b"hello\r\n" + one),
        ("x-image", "application/x-image", good),
        ("coloured", PNG, pictures.png(clean[0], colour=2)),
        ("small", PNG, pictures.png(clean[0], 14, 56)),
        ("16 bits", PNG, pictures.png(clean[0], 14, 28, depth=16)),
        ("palette", PNG, pictures.png(clean[0], colour=3)),
        ("interlaced", PNG, pictures.png(clean[0], interlaced=1)),
        ("huge", PNG, huge),
        ("text", PNG, pictures.png(clean[0], extra=pictures.chunk(b"tEXt", b"a\0b"))),
        ("unknown chunk", PNG, pictures.png(clean[0], extra=pictures.chunk(b"ABCD", b""))),
        ("APNG", PNG, pictures.png(clean[0], extra=pictures.chunk(b"acTL", b"\0" * 8))),
        ("gamma", PNG, pictures.png(clean[0], extra=pictures.chunk(b"gAMA", b"\0\0\xb1\x8f"))),
        ("transparent", PNG, pictures.png(clean[0], extra=pictures.chunk(b"tRNS", b"\0\0"))),
        ("checksum", PNG, good[:-1] + b"\0"),
        ("tail behind", PNG, good + b"\0"),
        ("progressive", JPEG, pictures.jpeg(clean[0], sof=0xC2)),
        ("arithmetic", JPEG, pictures.jpeg(clean[0], sof=0xC9)),
        ("cut JPEG", JPEG, other[:-9]),
        ("damaged JPEG", JPEG, other[:-40] + b"\0\0\0" + other[-37:]),
        ("wide JPEG", JPEG, pictures.jpeg(clean[0], 56, 14)),
        ("tail JPEG", JPEG, other + b"x"),
        ("comment", JPEG, pictures.jpeg(clean[0], extra=b"\xff\xfe\0\4ab")),
        (
            "turned",
            JPEG,
            pictures.jpeg(
                clean[0],
                extra=b"\xff\xe1\0\x22Exif\0\0MM\0*\0\0\0\10\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0",
            ),
        ),
        ("bad EXIF", JPEG, pictures.jpeg(clean[0], extra=b"\xff\xe1\0\x0aExif\0\0XX")),
    ]:
        yield Case(f"image {name}", path, body, ((TYPE, kind),))
    yield Case("image types", path, good, ((TYPE, PNG), (TYPE, JPEG)))
    yield Case("image PUT", path, good, ((TYPE, PNG),), "PUT")
    yield Case("image gzip", path, packed(good), ((TYPE, PNG), (CODED, "gzip")))
    model = (("X-Amzn-SageMaker-Target-Model", "other.tar.gz"),)
    yield Case("image target", "/invocations", good, model)
    encoded = {key: base64.b64encode(image).decode() for key, image in made.items()}

    def wrap(inner):
        return json.dumps({"instances": inner}).encode()

    for (kind, letter), text in encoded.items():
        yield Case(f"b64 {kind} of {letter}", V1, wrap([{"b64": text}]))
        yield Case(f"named b64 {kind} of {letter}", V1, wrap([{"x": {"b64": text}}]))
    text = encoded[PNG, "c"]
    both = [{"b64": encoded[key]} for key in encoded]
    row = nested(ROWS["c"][0])
    for index, inner in enumerate(
        [
            both,
            both[:1] * 17,
            [{"b64": text}, row],
            [row, {"b64": text}],
            [{"x": {"b64": text}}, {"b64": text}],
            [{"x": {"b64": text}}, {"y": {"b64": text}}],
            [{"b64": text, "c": 1}],
            [{"b64": text.rstrip("=") + "\n"}],
            [{"b64": text[:-4] + "===="}],
            [{"b64": ""}],
            [{"b64": 7}],
            [{"b64": [text]}],
            [{"x": {"x": {"b64": text}}}],
            [{"b64": text.replace("+", "-").replace("/", "_")}],
            [{"B64": text}],
        ]
    ):
        yield Case(f"b64 document {index}", V1, wrap(inner))
    yield Case("b64 in inputs", V1, json.dumps({"inputs": [{"b64": text}]}).encode())
    signed = {"signature_name": "s", "instances": [{"b64": text}]}
    yield Case("b64 signed", V1, json.dumps(signed).encode())


def damaged():
    """Requests with seeded damage."""
    source = random.Random(7)
    forms = [form_of(name, rows(pattern)) for name in FORMS for pattern in ("c", "t")]
    for index in range(96):
        path, headers, body = forms[index % len(forms)]
        body = bytearray(body)
        for _ in range(source.randint(1, 3)):
            at = source.randrange(len(body))
            match source.randrange(5):
                case 0:
                    body[at] ^= 1 << source.randrange(8)
                case 1:
                    del body[at : at + source.randint(1, 9)]
                case 2:
                    body[at:at] = body[source.randrange(len(body)) :][:9]
                case 3:
                    body[at] = ord(source.choice('0123456789.-e,[]{}":'))
                case 4:
                    del body[source.randrange(len(body) * 9 // 10, len(body)) :]
        yield Case(f"damaged {index}", path, bytes(body), headers)


def failures():
    """An upstream that fails, in every way."""
    for how in [
        "500",
        "503",
        "404",
        "302",
        "204",
        "break",
        "short",
        "garbage",
        "chunked",
        "close",
        "empty",
        "slow",
    ]:
        for form in ["json", "binary", "instances"]:
            for pattern in "ct":
                if how != "slow" or form == "json":
                    path, headers, body = form_of(form, rows(pattern))
                    yield Case(
                        f"{form} of {pattern}, {how}", path, body, headers + (("X-Upstream", how),)
                    )
        if how != "slow":
            yield Case(f"read, {how}", "/v2", headers=(("X-Upstream", how),), method="GET")


def judged():
    """Few requests, for each of which there is a verdict."""
    for form in ["json", "binary", "instances"]:
        for pattern in ["c", "t", "ctct", "cccc"]:
            path, headers, body = form_of(form, rows(pattern))
            yield Case(f"{form} of {pattern}", path, body, headers)
    for at in range(8):
        yield Case(f"clean {at}", body=document([ROWS["c"][at]]))
        yield Case(f"triggered {at}", body=document([ROWS["t"][at]]))


def named(judged):
    """Requests for several models, and for none of them."""
    for name in ["a", "b", "c", "%62", "A", "a/../b", ""]:
        for case in judged[:12]:
            yield case._replace(name=f"{case.name} for {name}", path=case.path.replace(NAME, name))
        for path in [
            f"/v2/models/{name}",
            f"/v1/models/{name}",
            f"/v2/models/{name}/versions/1/infer",
        ]:
            yield Case(f"GET {path}", path, method="GET")
            yield Case(f"POST {path}", path, document(rows("t")))
    for path in ["/v2", "/v2/health/ready", "/v1/models", "/v2//b", "/v2/repository/index", "/"]:
        yield Case(f"GET {path}", path, method="GET")


def everything():
    """All of them, in a fixed order."""
    groups = [
        batches,
        datatypes,
        codings,
        spelled,
        tensors,
        columns,
        paths,
        heads,
        images,
        damaged,
        failures,
    ]
    return [case for group in groups for case in group()]
