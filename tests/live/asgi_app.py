"""The applications that `tests/live/test_asgi_servers.py` has real ASGI servers serve."""

import anyio
from attrs import evolve

from asap_adapters import AsgiApp
from asap_adapters.cli.echo_agent import ECHO_ID, echo_manifest
from asap_core import Agent, Capabilities, Policy, Skill, StartPolicy, TokenTable

URL = "http://127.0.0.1:1"


async def echo(request, _context) -> dict[str, object]:
    """Echo the input, after as many seconds as it says."""
    await anyio.sleep(request.input.get("seconds", 0))
    return dict(request.input)


async def fail(_request, _context) -> dict[str, object]:
    """Fail."""
    raise RuntimeError("the work can't be done")


SHORT = Policy(peer_limits=(), start=StartPolicy.OPEN, body_timeout=1.0, write_timeout=1.0)
app = AsgiApp(Agent(echo_manifest(ECHO_ID, URL), policy=SHORT), {"echo": echo})

SKILLS = Capabilities(skills=(Skill(id="echo", description="echo"), Skill(id="fail", description="fail")))
TOKENS = TokenTable({"t-alice": "urn:asap:agent:alice", "t-bob": "urn:asap:agent:bob"})
with_tokens = AsgiApp(
    Agent(evolve(echo_manifest(ECHO_ID, URL, auth=True), capabilities=SKILLS), policy=SHORT),
    {"echo": echo, "fail": fail},
    authenticate=TOKENS,
)
