"""Run by an interpreter with ASGI servers: serves an application on one of them. `… foreign_asgi SERVER trivial|ours`.

The trivial application reads the body and returns it.
"""

import socket
import sys

from asap_adapters import AsgiApp
from asap_adapters.cli.echo_agent import ECHO_ID, echo, echo_manifest
from asap_core import Agent, Policy

__all__: list[str] = []


async def trivial(scope, receive, send):
    if scope["type"] == "lifespan":
        for _ in range(2):
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


ours = AsgiApp(Agent(echo_manifest(ECHO_ID, "http://127.0.0.1:1"), policy=Policy(peer_limits=())), {"echo": echo})


def by_uvicorn(name, port):
    import uvicorn

    uvicorn.run(
        f"benchmarks.foreign_asgi:{name}", port=port, loop="uvloop", http="httptools", log_config=None,
        access_log=False, lifespan="on", backlog=1_024,
    )  # fmt: skip


def by_granian(name, port):
    from granian import Granian
    from granian.constants import Interfaces

    Granian(
        f"benchmarks.foreign_asgi:{name}", port=port, interface=Interfaces.ASGI, log_enabled=False, backlog=1_024
    ).serve()


def by_hypercorn(name, port):
    import trio
    from hypercorn.config import Config
    from hypercorn.trio import serve

    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.accesslog = config.errorlog = None
    config.backlog = 1_024
    trio.run(serve, {"trivial": trivial, "ours": ours}[name], config)


def main(server, name):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    print(f"http://127.0.0.1:{port}", flush=True)
    {"uvicorn": by_uvicorn, "granian": by_granian, "hypercorn": by_hypercorn}[server](name, port)


if __name__ == "__main__":
    main(*sys.argv[1:])
