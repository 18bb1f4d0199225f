"""The least that a server can do here, over anyio's sockets: echo each body. `… server_floor h11|bytes BACKEND`.

`h11` reads requests with h11 and writes responses with it. `bytes` looks for the end of the head and for its length,
and writes a response that was made before: that is reading and writing alone.
"""

import re
import sys

import anyio
import h11
from anyio.abc import ByteStream

__all__: list[str] = []

READ = 65_536
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE).search
_ENDED = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


async def serve_one(stream: ByteStream, connection: h11.Connection) -> bool:
    """Answer one request with its body. Returns whether another one may follow."""
    body = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive(READ))
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            break
        elif not isinstance(event, h11.Request):
            return False
    headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
    parts = [connection.send(h11.Response(status_code=200, headers=headers)), connection.send(h11.Data(data=body))]
    parts.append(connection.send(h11.EndOfMessage()))
    await stream.send(b"".join(part for part in parts if part))
    connection.start_next_cycle()
    return True


async def serve_h11(stream: ByteStream) -> None:
    connection = h11.Connection(h11.SERVER)
    async with stream:
        try:
            while await serve_one(stream, connection):
                pass
        except _ENDED:
            return


async def serve_bytes(stream: ByteStream) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    async with stream:
        try:
            while True:
                data = await stream.receive(READ)
                end = data.index(b"\r\n\r\n") + 4
                length = _LENGTH(data, 0, end)
                whole = end + (int(length[1]) if length else 0)
                parts, size = [data], len(data)
                while size < whole:
                    parts.append(await stream.receive(READ))
                    size += len(parts[-1])
                await stream.send(head % (whole - end) + b"".join(parts)[end:])
        except _ENDED:
            return


async def main(kind: str) -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0, backlog=1_024)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    print(f"http://127.0.0.1:{port}", flush=True)
    await listener.serve({"h11": serve_h11, "bytes": serve_bytes}[kind])


if __name__ == "__main__":
    backend = sys.argv[2]
    options = {"use_uvloop": True} if backend == "uvloop" else {}
    anyio.run(main, sys.argv[1], backend="trio" if backend == "trio" else "asyncio", backend_options=options)
