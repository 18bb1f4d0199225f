"""The echo agent, which `asap serve` serves by default: it answers a task request with the request's own input."""

from typing import Final

from asap_adapters.server.handlers import Context
from asap_core.wire.manifest import AuthScheme, Capabilities, Endpoints, Manifest, Skill
from asap_core.wire.payloads import TaskRequest

ECHO_ID: Final = "urn:asap:agent:echo-agent"


async def echo(request: TaskRequest, _context: Context) -> dict[str, object]:
    """Return the input of the request."""
    return {"echoed": request.input}


def echo_manifest(agent_id: str, base_url: str, *, auth: bool = False) -> Manifest:
    """Build the manifest of an echo agent at `base_url`; `auth`: whether callers authenticate by bearer token."""
    return Manifest(
        id=agent_id,
        name="Echo Agent",
        version="1.0.0",
        description="Echoes task input",
        capabilities=Capabilities(skills=(Skill(id="echo", description="Echo back the input"),)),
        endpoints=Endpoints(asap=f"{base_url}/asap"),
        auth=AuthScheme(schemes=("bearer",)) if auth else None,
    )
