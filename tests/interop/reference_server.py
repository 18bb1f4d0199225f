"""Run by the reference implementation's interpreter: its echo server on a free loopback port, which it prints.

Usage: reference_server.py [TOKEN URN]
"""

import logging
import socket
import sys

logging.disable(logging.CRITICAL)

import uvicorn  # noqa: E402
from asap.models.entities import AuthScheme, Capability, Endpoint, Manifest, Skill  # noqa: E402
from asap.transport.server import create_app  # noqa: E402


def main(token=None, urn=None):
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # so that whoever reads the port can connect at once
    port = listener.getsockname()[1]
    manifest = Manifest(
        id="urn:asap:agent:reference-server",
        name="Reference Server",
        version="1.0.0",
        description="The reference implementation's echo",
        capabilities=Capability(asap_version="0.1", skills=[Skill(id="echo", description="Echo")]),
        endpoints=Endpoint(asap=f"http://127.0.0.1:{port}/asap"),
        auth=AuthScheme(schemes=["bearer"]) if token else None,
    )
    validator = (lambda given: urn if given == token else None) if token else None
    app = create_app(manifest, token_validator=validator, require_nonce=True, rate_limit="100000/second;1000000/minute")
    print(port, flush=True)
    uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
