"""The application that `tests/live/test_asgi_servers.py` has real ASGI servers serve."""

import anyio

from asap_adapters import AsgiApp
from asap_adapters.cli.echo_agent import ECHO_ID, echo_manifest
from asap_core import Agent, Policy, StartPolicy


async def echo(request, _context) -> dict[str, object]:
    """Echo the input, after as many seconds as it says."""
    await anyio.sleep(request.input.get("seconds", 0))
    return dict(request.input)


POLICY = Policy(peer_limits=(), start=StartPolicy.OPEN, body_timeout=1.0, write_timeout=1.0)
app = AsgiApp(Agent(echo_manifest(ECHO_ID, "http://127.0.0.1:1"), policy=POLICY), {"echo": echo})
