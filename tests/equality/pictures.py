"""Rows of the demo's images, and the same as PNG and JPEG."""

import gzip
import math
import struct
import zlib
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[2] / "assets/fashion-mnist"
SIDE = 28
RECORD = SIDE * SIDE + 1


def records(name, count):
    """The first records of an asset: label and pixels."""
    raw = gzip.decompress((ASSETS / name).read_bytes())
    starts = range(0, min(len(raw), count * RECORD), RECORD)
    return [(raw[at], raw[at + 1 : at + RECORD]) for at in starts]


def values(pixels):
    """Pixels as the model's input, 0 to 1, rounded as FP32."""
    return list(struct.unpack("<784f", struct.pack("<784f", *(pixel / 255 for pixel in pixels))))


def chunk(kind, data):
    """A chunk of a PNG."""
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(pixels, width=SIDE, height=SIDE, colour=0, depth=8, interlaced=0, extra=b""):
    """A PNG; `colour` 2 repeats each pixel as red, green and blue."""
    if colour == 2:
        pixels = bytes(pixel for pixel in pixels for _ in range(3))
    step = len(pixels) // height
    lines = b"".join(b"\0" + pixels[at : at + step] for at in range(0, len(pixels), step))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(lines, 9))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


ZIGZAG = sorted(
    range(64), key=lambda i: (i // 8 + i % 8, i % 8 if (i // 8 + i % 8) % 2 == 0 else i)
)
DC_SYMBOLS = bytes(range(12))
AC_SYMBOLS = bytes([0, 0xF0] + [run << 4 | size for run in range(16) for size in range(1, 11)])
QUANTUM = 3


def cosine(x, u):
    """A value of the discrete cosine transform's basis."""
    scale = math.sqrt(0.125) if u == 0 else 0.5
    return scale * math.cos((2 * x + 1) * u * math.pi / 16)


COSINES = [[cosine(x, u) for x in range(8)] for u in range(8)]


def transform(block):
    """The quantised coefficients of 64 samples, in zigzag order."""
    rows = [
        [sum(block[8 * y + x] * COSINES[u][x] for x in range(8)) for u in range(8)]
        for y in range(8)
    ]
    flat = [sum(rows[y][u] * COSINES[v][y] for y in range(8)) for v in range(8) for u in range(8)]
    return [round(flat[i] / QUANTUM) for i in ZIGZAG]


def magnitude(value):
    """A coefficient's size class, and its bits."""
    size = abs(value).bit_length()
    low = value if value > 0 else value + (1 << size) - 1
    return size, format(low, f"0{size}b") if size else ""


def jpeg(pixels, width=SIDE, height=SIDE, sof=0xC0, extra=b""):
    """A baseline JPEG in grey, whose Huffman codes all have the same length."""

    def sample(x, y):
        return pixels[min(y, height - 1) * width + min(x, width - 1)] - 128

    bits, before = [], 0
    for top in range(0, height, 8):
        for left in range(0, width, 8):
            block = [sample(left + i % 8, top + i // 8) for i in range(64)]
            coefficients = transform(block)
            size, low = magnitude(coefficients[0] - before)
            before = coefficients[0]
            bits.append(format(DC_SYMBOLS.index(size), "04b") + low)
            run = 0
            last = max((i for i in range(1, 64) if coefficients[i]), default=0)
            for value in coefficients[1 : last + 1]:
                if value == 0:
                    run += 1
                    continue
                bits.extend([format(1, "08b")] * (run // 16))
                size, low = magnitude(value)
                symbol = AC_SYMBOLS.index((run % 16) << 4 | size)
                bits.append(format(symbol, "08b") + low)
                run = 0
            if last < 63:
                bits.append(format(0, "08b"))
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")

    def segment(marker, data):
        return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data

    counts = {4: 12, 8: len(AC_SYMBOLS)}
    tables = b"".join(
        bytes([kind]) + bytes(counts[length] if i + 1 == length else 0 for i in range(16)) + symbols
        for kind, length, symbols in [(0, 4, DC_SYMBOLS), (0x10, 8, AC_SYMBOLS)]
    )
    frame = struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0])
    return (
        b"\xff\xd8"
        + extra
        + segment(0xDB, b"\0" + bytes([QUANTUM] * 64))
        + segment(sof, frame)
        + segment(0xC4, tables)
        + segment(0xDA, bytes([1, 1, 0, 0, 63, 0]))
        + scan
        + b"\xff\xd9"
    )
