"""As much of HTTP/2 as gRPC needs, client and server, without TLS."""

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1

# RFC 7541, appendix A.
NAMES = """\
:authority :method=GET :method=POST :path=/ :path=/index.html :scheme=http :scheme=https :status=200
:status=204 :status=206 :status=304 :status=400 :status=404 :status=500 accept-charset
accept-encoding=gzip,deflate accept-language accept-ranges accept access-control-allow-origin age
allow authorization cache-control content-disposition content-encoding content-language
content-length content-location content-range content-type cookie date etag expect expires from host
if-match if-modified-since if-none-match if-range if-unmodified-since last-modified link location
max-forwards proxy-authenticate proxy-authorization range referer refresh retry-after server
set-cookie strict-transport-security transfer-encoding user-agent vary via www-authenticate
"""
STATIC = [tuple(name.partition("=")[::2]) for name in NAMES.split()]
STATIC[15] = ("accept-encoding", "gzip, deflate")

# RFC 7541, appendix B: the length of each byte's code, a for 5 bits. The code is canonical.
LENGTHS = (
    "isxxxxxxxtzxxzxxxxxxxxzxxxxxxxxxbffhibdgffdgdbbbaaabbbbbbbcdkbhf"
    "ibccccccccccccccccccccccdcdioijbkabababbbaccbbbabcbaabccccckgjix"
    "prpprrrsrssssststtrstssssqrsrsstrqprrssqsrrtqrssqqrqsrssprrrsrrs"
    "vvporsruvvvwwvtuoqvwwvwtqqvvxwwwptpqrqqsrruuttvsvwvvwwwwwxwwwwwv"
)


def huffman():
    """Bytes by length and code."""
    codes, code, before = {}, 0, 0
    for length, byte in sorted((ord(letter) - 92, byte) for byte, letter in enumerate(LENGTHS)):
        code <<= length - before
        codes[length, code], before = byte, length
        code += 1
    return codes


CODES = huffman()


def unpack(data):
    """Text that is Huffman-coded."""
    out, code, length = bytearray(), 0, 0
    for byte in data:
        for shift in range(7, -1, -1):
            code, length = code << 1 | byte >> shift & 1, length + 1
            if (length, code) in CODES:
                out.append(CODES[length, code])
                code = length = 0
    return bytes(out)


class Decoder:
    """Header blocks of one direction of a connection."""

    def __init__(self):
        self.table = []

    def decode(self, block):
        """Names and values, in order."""
        self.block, self.at, headers = block, 0, []
        while self.at < len(block):
            first = block[self.at]
            if first & 0x80:
                headers.append(self.entry(self.integer(7)))
            elif first & 0xE0 == 0x20:
                self.integer(5)
            else:
                index = self.integer(6 if first & 0x40 else 4)
                name = self.entry(index)[0] if index else self.text()
                headers.append((name, self.text()))
                if first & 0x40:
                    self.table.insert(0, headers[-1])
        return headers

    def entry(self, index):
        return STATIC[index - 1] if index <= len(STATIC) else self.table[index - 1 - len(STATIC)]

    def integer(self, bits):
        value, self.at = self.block[self.at] & (1 << bits) - 1, self.at + 1
        if value < (1 << bits) - 1:
            return value
        shift = 0
        while True:
            byte, self.at = self.block[self.at], self.at + 1
            value, shift = value + ((byte & 0x7F) << shift), shift + 7
            if byte < 0x80:
                return value

    def text(self):
        coded = self.block[self.at] & 0x80
        length = self.integer(7)
        data = self.block[self.at : self.at + length]
        self.at += length
        return (unpack(data) if coded else data).decode("latin-1")


def literal(text):
    """A name or a value."""
    data = text.encode("latin-1")
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, length = len(data) - 127, b"\x7f"
    while rest >= 128:
        length, rest = length + bytes([rest & 0x7F | 0x80]), rest >> 7
    return length + bytes([rest]) + data


def encode(headers):
    """A header block of literals that are not indexed."""
    return b"".join(b"\0" + literal(name) + literal(value) for name, value in headers)


class Peer:
    """A connection, of either side."""

    def __init__(self, connection):
        self.socket, self.file = connection, connection.makefile("rb")
        self.decoder = Decoder()

    def send(self, kind, flags, stream, payload=b""):
        head = struct.pack(">IBI", len(payload) << 8 | kind, flags, stream)
        self.socket.sendall(head + payload)

    def greet(self):
        """No push, and windows that nothing here fills."""
        self.send(SETTINGS, 0, 0, struct.pack(">HIHI", 2, 0, 4, 1 << 30))
        self.send(WINDOW, 0, 0, struct.pack(">I", 1 << 30))

    def frame(self):
        """The next frame that concerns a stream, or None at the end."""
        while True:
            head = self.file.read(9)
            if len(head) < 9:
                return None
            size, flags, stream = struct.unpack(">IBI", head)
            kind, payload = size & 0xFF, self.file.read(size >> 8)
            if kind in (SETTINGS, PING) and not flags & ACK:
                self.send(kind, ACK, 0, payload if kind == PING else b"")
            elif kind in (DATA, HEADERS, RESET, GOAWAY):
                return kind, flags, stream, payload


def call(port, headers, body):
    """One exchange: the lists of headers that came back, the body, and how it ended."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(PREFACE)
        peer = Peer(connection)
        peer.greet()
        peer.send(HEADERS, END_HEADERS, 1, encode(headers))
        for at in range(0, len(body), 16384):
            peer.send(DATA, 0, 1, body[at : at + 16384])
        peer.send(DATA, END_STREAM, 1)
        blocks, data = [], b""
        while (frame := peer.frame()) is not None:
            kind, flags, _, payload = frame
            if kind == HEADERS:
                blocks.append(peer.decoder.decode(payload))
            elif kind == DATA:
                data += payload
                peer.send(WINDOW, 0, 1, struct.pack(">I", max(1, len(payload))))
            else:
                return blocks, data, f"frame {kind}, {payload.hex()}"
            if flags & END_STREAM:
                return blocks, data, "complete"
        return blocks, data, "broken"
