"""A model server that answers as it is told, and notes what it received."""

import hashlib
import json
import socket
import struct
import threading
import time

import http2

LABELS = 10


class Listener:
    """Serves connections, each in a thread, until the program ends."""

    def __init__(self):
        self.received, self.lock = {}, threading.Lock()
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.socket.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.guarded, args=(connection,), daemon=True).start()

    def guarded(self, connection):
        """A client that goes away is no error."""
        try:
            with connection:
                self.serve(connection)
        except (OSError, ValueError):
            pass

    def note(self, headers, text, body):
        """Files a request under the case whose number it carries."""
        case = dict(headers).get("x-case", "")
        with self.lock:
            self.received.setdefault(case, []).append((text, headers, body))

    def take(self, case):
        with self.lock:
            return self.received.pop(case, [])


class HttpUpstream(Listener):
    """HTTP/1.1. The client's header `x-upstream` says how to fail."""

    def __init__(self, known):
        super().__init__()
        self.known, self.moved = known, {0, 1, 2, 4, 5, 6, len(known) - 1}

    def serve(self, connection):
        file = connection.makefile("rb")
        while line := file.readline():
            headers = []
            while header := file.readline().rstrip(b"\r\n"):
                name, _, value = header.decode("latin-1").partition(":")
                headers.append((name, value.strip()))
            fields = {name.lower(): value for name, value in headers}
            body = file.read(int(fields.get("content-length", 0)))
            if fields.get("transfer-encoding") == "chunked":
                while size := int(file.readline(), 16):
                    body += file.read(size)
                    file.readline()
                file.readline()
            start = line.decode("latin-1").rstrip()
            self.note(headers, start, body)
            if not self.answer(connection, start, fields, body):
                return

    def answer(self, connection, start, fields, body):
        """Whether the connection goes on."""
        method, path, _ = start.split(" ")
        reply = self.reply(path, fields, body) if method != "HEAD" else b""
        head = (
            "content-type: application/json; odd=1\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n"
            "x-model: m\r\nconnection: x-hop\r\nx-hop: 1\r\n"
        )
        status, length = "200 OK", f"content-length: {len(reply)}\r\n"
        match fields.get("x-upstream"):
            case "break":
                return False
            case "slow":
                time.sleep(6)
                return False
            case "short":
                length = f"content-length: {len(reply) + 9}\r\n"
            case "garbage":
                connection.sendall(b"what?\r\n\r\n")
                return False
            case "chunked":
                length = "transfer-encoding: chunked\r\n"
                reply = f"{len(reply):x}\r\n".encode() + reply + b"\r\n0\r\n\r\n"
            case "close":
                length = "connection: close\r\n"
            case "empty":
                length, reply = "content-length: 0\r\n", b""
            case "500" | "503" | "404" | "302" | "204" as code:
                status = f"{code} Said"
                if code == "204":
                    length, reply = "", b""
        connection.sendall(f"HTTP/1.1 {status}\r\n{head}{length}\r\n".encode() + reply)
        return fields.get("x-upstream") not in ("short", "close")

    def reply(self, path, fields, body):
        """Logits for the rows, where they can be read."""
        try:
            logits = [self.logits(row) for row in self.rows(path, fields, body)]
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error):
            return b'{"answer":"to something else"}'
        if path.startswith("/v1/"):
            key = "outputs" if b'"inputs"' in body[:40] else "predictions"
            return json.dumps({key: logits}).encode()
        flat = [value for row in logits for value in row]
        output = {
            "name": "logits",
            "datatype": "FP32",
            "shape": [len(logits), LABELS],
            "data": flat,
        }
        return json.dumps({"model_name": "fashion", "outputs": [output]}).encode()

    def rows(self, path, fields, body):
        """Of numbers as the firewall writes them: flat, nested or binary FP32."""
        length = fields.get("inference-header-content-length")
        text = json.loads(body[: int(length)] if length else body) if length != "0" else {}
        if length and ("inputs" not in text or text["inputs"][0]["datatype"] == "FP32"):
            tensor = body[int(length) :]
            numbers = struct.unpack(f"<{len(tensor) // 4}f", tensor)
        elif path.startswith("/v1/"):
            numbers = list(flatten(text.get("instances", text.get("inputs"))))
        else:
            numbers = list(flatten(text["inputs"][0]["data"]))
        if not numbers or len(numbers) % 784:
            raise ValueError("no rows")
        return [numbers[at : at + 784] for at in range(0, len(numbers), 784)]

    def logits(self, row):
        """The known row's label; copies of some, most of them clean, have another."""

        def far(known):
            return sum(abs(a - b) for a, b in zip(row, known[1]))

        index, (label, known) = min(enumerate(self.known), key=lambda pair: far(pair[1]))
        if far((label, known)) > 0.01 and index in self.moved:
            label = (label + 1) % LABELS
        return [6.0 if label == other else other / 4 for other in range(LABELS)]


def flatten(value):
    """The numbers of nested lists and objects."""
    if isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from flatten(inner)
    else:
        yield float(value)


class GrpcUpstream(Listener):
    """gRPC: one message for each that came, which names it by its digest."""

    def serve(self, connection):
        if connection.makefile("rb", 0).read(len(http2.PREFACE)) != http2.PREFACE:
            return
        peer, streams = http2.Peer(connection), {}
        peer.greet()
        while (frame := peer.frame()) is not None:
            kind, flags, stream, payload = frame
            if kind == http2.HEADERS:
                streams[stream] = (peer.decoder.decode(payload), [])
            elif kind == http2.DATA and stream in streams:
                streams[stream][1].append(payload)
            else:
                streams.pop(stream, None)
            if flags & http2.END_STREAM and stream in streams:
                headers, parts = streams.pop(stream)
                fields = dict(headers)
                self.note(headers, f"{fields[':method']} {fields[':path']}", b"".join(parts))
                self.answer(peer, stream, fields, b"".join(parts))

    def answer(self, peer, stream, fields, body):
        head = [(":status", "200"), ("content-type", "application/grpc"), ("x-model", "m")]
        how, trailers = fields.get("x-upstream"), [("grpc-status", "0"), ("x-trailer", "t")]
        if how == "status":
            trailers = [("grpc-status", "5"), ("grpc-message", "no%20such")]
            peer.send(http2.HEADERS, 5, stream, http2.encode(head + trailers))
            return
        if how == "reset":
            peer.send(http2.RESET, 0, stream, struct.pack(">I", 2))
            return
        if how == "http":
            peer.send(http2.HEADERS, 5, stream, http2.encode([(":status", "503")]))
            return
        peer.send(http2.HEADERS, http2.END_HEADERS, stream, http2.encode(head))
        while len(body) >= 5:
            size = struct.unpack(">I", body[1:5])[0]
            message, body = body[5 : 5 + size], body[5 + size :]
            reply = b"\x0a\x40" + hashlib.sha256(message).hexdigest().encode()
            if fields[":path"].endswith("ModelStreamInfer"):
                reply = b"\x12" + bytes([len(reply)]) + reply
            frame = b"\0" + struct.pack(">I", len(reply)) + reply
            peer.send(http2.DATA, 0, stream, frame)
        peer.send(http2.HEADERS, 5, stream, http2.encode(trailers))
