"""The least that a server can do here: h11 over anyio's sockets echoes each body. `… server_floor BACKEND`."""

import sys

import anyio
import h11
from anyio.abc import SocketStream

__all__: list[str] = []

READ = 65_536


async def serve_one(stream: SocketStream, connection: h11.Connection) -> bool:
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


async def serve(stream: SocketStream) -> None:
    connection = h11.Connection(h11.SERVER)
    async with stream:
        try:
            while await serve_one(stream, connection):
                pass
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return


async def main() -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    print(f"http://127.0.0.1:{port}", flush=True)
    await listener.serve(serve)


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1])
