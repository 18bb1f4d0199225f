"""Clients for tests that take any of `AgentClient`'s options, flat: `make_client(timeout=1, allow_http=["a.lan"])`."""

from typing import Any, Final

from attrs import fields

from asap_adapters import AgentClient, DiscoveryOptions, HttpOptions, TrustPolicy
from asap_adapters.coding import CODINGS
from asap_adapters.driver import ProgramDriver
from asap_core import OutboundPolicy
from asap_core.client.requests import HttpAnswer, Requests

_GROUPS: Final = {
    "outbound": OutboundPolicy,
    "trust": TrustPolicy,
    "discovery": DiscoveryOptions,
    "http": HttpOptions,
}


GROUPED: Final = {field.name for made in _GROUPS.values() for field in fields(made)}


def make_client(sender: str = "urn:asap:agent:me", **options: Any) -> AgentClient:
    """Make a client. Options that belong to a group are put there."""
    grouped: dict[str, Any] = {}
    for name, made in _GROUPS.items():
        own = {field.name for field in fields(made)}
        given = {option: options.pop(option) for option in own & options.keys()}
        if given:
            grouped[name] = made(**given)
    return AgentClient(sender=sender, **grouped, **options)


class Wired:
    """`Requests` over a driver, with its programs as methods to await: for tests of what requests connect to."""

    def __init__(self, http: HttpOptions, **options: Any) -> None:
        self.driver = ProgramDriver(http, owner="Wired(…)")
        self.requests = Requests(self.driver.runtime, codings=CODINGS, **{"policy": OutboundPolicy(), **options})
        self.judge = self.requests.judge
        self.name_origin = self.requests.name_origin

    async def get(self, *args: Any, **options: Any) -> HttpAnswer:
        return await self.driver.run(self.requests.get(*args, **options))

    async def post(self, *args: Any, **options: Any) -> HttpAnswer:
        return await self.driver.run(self.requests.post(*args, **options))

    async def aclose(self) -> None:
        await self.driver.aclose()
