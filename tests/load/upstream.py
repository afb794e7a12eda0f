#!/usr/bin/env python3
"""The model server of load.py: says which request it answers, and fails on purpose.

    upstream.py PORT SLOW RESET      shares of requests that wait for 0.3 s, and whose connection breaks without an answer
"""
import asyncio, random, sys

LOGITS = ",".join("0.5" for _ in range(10))


def answer(path, rows):
    if path.startswith("/v1/"):
        return '{"predictions":[' + ",".join([f"[{LOGITS}]"] * rows) + "]}"
    return f'{{"outputs":[{{"name":"logits","shape":[{rows},10],"datatype":"FP32","data":[{",".join([LOGITS] * rows)}]}}]}}'


async def serve(reader, writer, slow, reset):
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
            await reader.readexactly(int(headers.get("content-length", 0)))
            if random.random() < reset:
                writer.transport.abort()
                return
            if random.random() < slow:
                await asyncio.sleep(.3)
            body = answer(head[0].split(" ")[1], 1).encode()
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Answer-To: {headers.get('x-request-id', '')}\r\n"
                         f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    port, slow, reset = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    server = await asyncio.start_server(lambda reader, writer: serve(reader, writer, slow, reset), "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


asyncio.run(main())
