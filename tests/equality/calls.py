"""The recorded calls of gRPC."""

import random
import struct

import cases

SERVICE = "/inference.GRPCInferenceService/"
INFER, STREAM = SERVICE + "ModelInfer", SERVICE + "ModelStreamInfer"


def varint(number):
    number &= (1 << 64) - 1
    out = b""
    while number >= 128:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def field(number, content):
    """A field of bytes, or of an integer."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def frame(message, flag=0):
    return bytes([flag]) + struct.pack(">I", len(message)) + message


def frames(data):
    """The messages of a body."""
    out = []
    while len(data) >= 5:
        size = struct.unpack(">I", data[1:5])[0]
        out, data = out + [data[: 5 + size]], data[5 + size :]
    return out + ([data] if data else [])


def parameter(key, number=2, content=b"r"):
    return field(4, field(1, key) + field(2, field(number, content)))


def tensor(shape=(1, 1, 28, 28), datatype="FP32", contents=None, more=b""):
    """An input; `contents` are typed."""
    inner = field(1, "x") + field(2, datatype)
    inner += field(3, b"".join(varint(size) for size in shape)) + more
    return field(5, inner + (field(5, contents) if contents is not None else b""))


def request(pattern="c", name=cases.NAME, raw=True, ident="7"):
    """An inference request for rows, as bytes or typed."""
    numbers = cases.flat(cases.rows(pattern))
    data = cases.pack("FP32", numbers)
    shape = (len(pattern), 1, 28, 28)
    head = field(1, name) + field(3, ident)
    if raw:
        return head + tensor(shape) + field(7, data)
    return head + tensor(shape, contents=field(6, data))


def messages():
    """Requests that are right, and those that say two things."""
    for pattern in ["c", "t", "cc", "ct", "tc", "ctct", "c" * 16, "c" * 15 + "t", "c" * 17]:
        for raw in [True, False]:
            yield f"{pattern}, raw {raw}", request(pattern, raw=raw)
    row = cases.ROWS["c"][0]
    data, typed = cases.pack("FP32", row), field(6, cases.pack("FP32", row))
    head, good = field(1, cases.NAME), tensor()
    for datatype in ["FP16", "BF16", "FP64", "UINT8", "INT8", "BYTES", "INT32", "fp32", "BOOL", ""]:
        numbers = [int(value > 0.5) for value in row] if "INT" in datatype else row
        kind = datatype if datatype in ("FP16", "BF16", "FP64", "UINT8", "INT8") else "FP32"
        packed = cases.pack(kind, numbers)
        yield f"{datatype} raw", head + tensor(datatype=datatype) + field(7, packed)
        yield f"{datatype} as FP32", head + tensor(datatype=datatype, contents=typed)
    integers = b"".join(varint(int(value > 0.5)) for value in row)
    for datatype, number in [
        ("UINT8", 4),
        ("INT8", 2),
        ("UINT8", 2),
        ("FP32", 1),
        ("FP32", 3),
        ("FP32", 5),
    ]:
        yield f"{datatype} in field {number}", head + tensor(
            datatype=datatype, contents=field(number, integers)
        )
    for datatype, number, value in [("UINT8", 4, 256), ("INT8", 2, 128), ("INT8", 2, -1)]:
        content = field(number, varint(value) + integers[1:])
        yield f"{datatype} of {value}", head + tensor(datatype=datatype, contents=content)
    content = field(7, cases.pack("FP64", row))
    yield "FP64 typed", head + tensor(datatype="FP64", contents=content)
    yield "bytes typed", head + tensor(contents=typed + field(8, b""))
    yield "both", head + tensor(contents=typed) + field(7, data)
    yield "both, one empty", head + tensor(contents=b"") + field(7, data)
    yield "neither", head + good
    yield "empty typed", head + tensor(contents=b"")
    yield "short typed", head + tensor(contents=field(6, data[:-4]))
    yield "typed twice", head + field(
        5,
        field(1, "x")
        + field(2, "FP32")
        + field(3, b"\1\1\x1c\x1c")
        + field(5, field(6, data[:400]))
        + field(5, field(6, data[400:])),
    )
    yield "two raw", head + good + field(7, data) * 2
    yield "no inputs", head + field(7, data)
    yield "two inputs", head + good * 2 + field(7, data)
    yield "empty", b""
    yield "no model", good + field(7, data)
    yield "other model", request(name="other")
    yield "two names", field(1, "other") + request()
    yield "two names, last other", request() + field(1, "other")
    yield "unknown field", request() + field(15, b"unknown")
    yield "version", request() + field(2, "1")
    yield "outputs", request() + field(6, field(1, "y"))
    yield "triggered behind", request() + field(7, cases.pack("FP32", cases.ROWS["t"][0]))
    yield "many tensors", request() + field(5, b"") * 2000
    yield "datatype behind", request() + field(5, field(2, "FP16"))
    for size in [0, 1, 3135, 3137, 6272]:
        yield f"{size} bytes", head + good + field(7, (data * 2)[:size])
    for shape in [
        (),
        (1, 784),
        (1, 28, 28, 1),
        (1, 1, 28, 28, 1),
        (-1, 1, 28, 28),
        (0, 1, 28, 28),
        (17, 1, 28, 28),
        (1 << 62, 1, 28, 28),
        ((1 << 63) - 1, 1, 28, 28),
        (1,) * 300,
    ]:
        yield f"shape {shape[:5]} {len(shape)}", head + tensor(shape) + field(7, data)
    for value in [float("nan"), float("inf"), float("-inf"), 1.5, -0.5, 3.4e38, -0.0]:
        changed = data[:-4] + struct.pack("<f", value)
        yield f"value {value}", head + good + field(7, changed)
        yield f"typed {value}", head + tensor(contents=field(6, changed))
    for key in ["shared_memory_region", "binary_data_size", "k"]:
        yield f"parameter {key}", request() + parameter(key)
        yield f"tensor's parameter {key}", head + tensor(more=parameter(key)) + field(7, data)
    yield "parameter twice", request() + parameter("k", 2, 1) + parameter("k", 2, 2)


def named():
    """Calls for several models, and for none of them."""
    out = []
    for name in ["a", "b", "c", ""]:
        for pattern in ["c", "t", "ct"]:
            message = frame(request(pattern, name=name))
            out.append(cases.Case(f"{pattern} for {name}", INFER, message))
            out.append(cases.Case(f"stream of {pattern} for {name}", STREAM, message))
    both = field(1, "a") + request("t", name="b")
    return out + [cases.Case("two names", INFER, frame(both))]


def everything():
    """All calls, in a fixed order."""
    out = [cases.Case(name, INFER, frame(message)) for name, message in messages()]

    def add(name, body, *headers, path=INFER):
        out.append(cases.Case(name, path, body, headers))

    clean, bad = request("c"), request("t")
    add("nothing", b"")
    add("three bytes", b"\0\0\0")
    add("long", b"\0" + struct.pack(">I", len(clean) + 1) + clean)
    add("huge", b"\0\xff\xff\xff\xff" + clean)
    add("flag 2", frame(clean, 2))
    add("two messages", frame(clean) + frame(bad))
    add("tail", frame(clean) + b"\0")
    add("too large", frame(b"\0" * 60001))
    gzip = cases.packed
    for encoding in ["gzip", "identity", "br", "gzip, gzip", "deflate", "zstd", ""]:
        add(f"flag 1 as {encoding}", frame(gzip(clean), 1), ("grpc-encoding", encoding))
        add(f"flag 0 as {encoding}", frame(clean), ("grpc-encoding", encoding))
    add("flag 1 without", frame(gzip(clean), 1))
    header = ("grpc-encoding", "gzip")
    for name, body in [
        ("triggered", gzip(bad)),
        ("plain", clean),
        ("two members", gzip(clean) + gzip(bad)),
        ("too large", gzip(b"\0" * 100_000)),
        ("cut", gzip(clean)[:-3]),
    ]:
        add(f"gzip {name}", frame(body, 1), header)
    add("gzip twice", frame(gzip(clean), 1), header, ("grpc-encoding", "identity"))
    for kind in [
        "application/grpc+proto",
        "application/grpc+json",
        "application/grpc-web",
        "application/json",
        "application/grpc; a=b",
    ]:
        add(f"type {kind}", frame(clean), ("content-type", kind))
    two = [("content-type", "application/grpc"), ("content-type", "application/grpc+json")]
    add("two types", frame(clean), *two)
    for name, value in [
        ("x-request-id", "given-1"),
        ("x-request-id", "a b"),
        ("grpc-timeout", "9S"),
        ("grpc-timeout", "x"),
        ("x-http-method-override", "GET"),
        ("authorization", "b"),
        ("x-odd-bin", "AAAA"),
        ("user-agent", "tests/1"),
        ("grpc-accept-encoding", "gzip"),
    ]:
        add(f"{name} {value}", frame(clean), (name, value))
        add(f"{name} {value}, triggered", frame(bad), (name, value))
    for how in ["status", "reset", "http"]:
        add(f"upstream {how}", frame(clean), ("x-upstream", how))
        add(f"upstream {how}, triggered", frame(bad), ("x-upstream", how))
    named = frame(field(1, cases.NAME))
    for method in [
        "ServerLive",
        "ServerReady",
        "ModelReady",
        "ServerMetadata",
        "ModelMetadata",
        "ModelConfig",
        "ModelStatistics",
        "RepositoryIndex",
        "SystemSharedMemoryStatus",
        "TraceSetting",
        "modelinfer",
        "ModelInfer/",
        "ModelInfer?x=1",
        "%4dodelInfer",
        "",
    ]:
        body = named if method.startswith("Model") else frame(b"")
        add(f"call {method}", body, path=SERVICE + method)
    add("other model's metadata", frame(field(1, "other")), path=SERVICE + "ModelMetadata")
    for path in [
        "/grpc.health.v1.Health/Check",
        "/",
        "//inference.GRPCInferenceService/ModelInfer",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/inference.Other/ModelInfer",
    ]:
        add(f"path {path}", frame(b""), path=path)
    for name, patterns in [
        ("clean", "c"),
        ("triggered", "t"),
        ("three", "ctc"),
        ("bad", "cxc"),
        ("none", ""),
    ]:
        body = b"".join(
            frame(b"\xff" if letter == "x" else request(letter, ident=str(at)))
            for at, letter in enumerate(patterns)
        )
        add(f"stream {name}", body, path=STREAM)
    source = random.Random(11)
    for index in range(40):
        message = bytearray(request("ct"[index % 2], raw=index % 4 < 2))
        at = source.randrange(60) if index % 3 else source.randrange(len(message))
        if index % 5 == 0:
            del message[at:]
        else:
            message[at] ^= 1 << source.randrange(8)
        add(f"damaged {index}", frame(bytes(message)))
    return out
