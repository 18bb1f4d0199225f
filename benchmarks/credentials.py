"""What a caller's token costs: a request of 1 KB with one that's known and with a new one, ours and the reference's.

Whole requests through each one's ASGI application on asyncio, without sockets. Times are the processor's.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import anyio
import httpx

from asap_adapters import AsgiApp, HttpOptions
from asap_adapters.auth.jwt import JwtAuthenticator
from asap_core import Agent, AuthScheme, Capabilities, Endpoints, Manifest, Policy, Skill, StartPolicy
from asap_core.auth.claims import ByClaim, TokenPolicy
from benchmarks import reference_python
from benchmarks.requests_with_tokens import AUDIENCE, ISSUER, keys, times


async def echo(request: Any, _context: Any) -> Any:
    return request.input


async def measure() -> dict[str, tuple[float, float]]:
    """Seconds for a known and a new token, by algorithm."""
    ours = keys()

    def provide(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/keys":
            return httpx.Response(200, json={"keys": [key.as_dict(private=False) for key in ours.values()]})
        return httpx.Response(200, json={"issuer": ISSUER, "jwks_uri": f"{ISSUER}/keys"})

    manifest = Manifest(
        id=AUDIENCE,
        name="Measured",
        version="1.0.0",
        description="An echo",
        capabilities=Capabilities(skills=[Skill(id="echo", description="Echo")]),
        endpoints=Endpoints(asap="http://localhost/asap"),
        auth=AuthScheme(schemes=["bearer"]),
    )
    policy = Policy(peer_limits=(), start=StartPolicy.OPEN)
    rules = TokenPolicy(issuer=ISSUER, audience=AUDIENCE, agent=ByClaim("sub"))
    async with JwtAuthenticator(rules, http=HttpOptions(transport=httpx.MockTransport(provide))) as tokens:
        app = AsgiApp(Agent(manifest, policy=policy), {"echo": echo}, authenticate=tokens.verify)
        return {algorithm: await times(app, algorithm, key) for algorithm, key in ours.items()}


def main() -> None:
    ours = anyio.run(measure, backend="asyncio")
    reference = reference_python()
    theirs = {}
    if reference is not None:
        command = [reference, str(Path(__file__).parent / "reference_credentials.py")]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        theirs = json.loads(printed.splitlines()[-1])
    for algorithm, (known, new) in ours.items():
        line = f"{algorithm}: known token {known * 1e6:.0f} us, new token {new * 1e6:.0f} us"
        if algorithm in theirs:
            their_known, their_new = theirs[algorithm]
            line += f"; reference {their_known * 1e6:.0f} us and {their_new * 1e6:.0f} us"
            line += f": {their_known / known:.1f}x and {their_new / new:.1f}x ours"
        print(line)


if __name__ == "__main__":
    main()
