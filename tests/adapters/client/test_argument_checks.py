"""Invalid arguments of what only the adapters take are refused at once, in one line with the expected form."""

import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from asap_adapters import AgentClient, HttpOptions
from asap_adapters.auth.introspection import IntrospectionAuthenticator
from asap_adapters.auth.jwt import JwtAuthenticator
from asap_core import AsapError
from asap_core.auth.claims import BySubject, TokenPolicy
from asap_core.auth.client_credentials import ClientSecret
from asap_core.auth.introspection_response import IntrospectionPolicy
from asap_core.client.client import Client

pytestmark = pytest.mark.anyio

ME, BASE = "urn:asap:agent:me", "https://agent.example"
SECRET = "hunter2-hunter2"
# Of every kind that Python has a literal for.
ODD: Any = [
    None, 5, -1, 0, True, -1.5, float("nan"), float("inf"), "", SECRET, "\ud800", "\x00", b"x", [], [1], [SECRET],
    (None,), {}, {1: 2}, {SECRET}, object(), int, len, ValueError("x"), Path("no-such-file"),
]  # fmt: skip
# What a driver calls, and nobody else.
OF_DRIVERS = {"bind", "take_wakes", "take_removals", "take_remarks"}


def methods_of(kind: type) -> dict[str, list[str]]:
    return {
        name: list(inspect.signature(method).parameters)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


class TestMethods:
    def test_a_client_has_the_methods_of_the_core_with_their_parameters(self) -> None:
        """`tests/core/client/test_argument_checks.py` passes them any value."""
        ours, cores = methods_of(AgentClient), methods_of(Client)
        assert ours.keys() - cores.keys() == {"aclose", "browse"}
        assert cores.keys() - ours.keys() == OF_DRIVERS
        assert {name: ours[name] for name in cores.keys() & ours.keys()} == {
            name: cores[name] for name in cores.keys() - OF_DRIVERS
        }

    async def test_an_invalid_argument_is_refused_before_any_request(self) -> None:
        requests: list[httpx.Request] = []
        transport = httpx.MockTransport(requests.append)  # type: ignore[arg-type]
        wrong: Any = None
        async with AgentClient(ME, http=HttpOptions(transport=transport)) as client:
            with pytest.raises(ValueError, match="base_url: expected the base URL of an agent"):
                await client.discover(wrong)
            with pytest.raises(ValueError, match="base_urls: expected a list of base URLs"):
                await client.keep_fresh(wrong)
            with pytest.raises(ValueError, match="payload: expected a dict"):
                await client.send(BASE, "task.request", wrong)
        assert requests == []

    @pytest.mark.parametrize("value", [value for value in ODD if value is not None])
    def test_browse_takes_names_of_interfaces(self, value) -> None:
        client = AgentClient(ME)
        try:
            assert isinstance(client.browse(interfaces=value), AbstractAsyncContextManager)
        except (ValueError, AsapError) as error:
            assert "\n" not in str(error)  # noqa: PT017 - it may be valid, too


class TestOptions:
    @pytest.mark.parametrize(
        ("option", "says"),
        [
            ("verify", "verify: expected an ssl.SSLContext, True or False"),
            ("trust_env", "trust_env: expected True or False"),
            ("transport", "transport: expected an httpx.AsyncBaseTransport, or None"),
            ("resolver", r"resolver: expected an object with a method resolve\(host, port\), or None"),
            ("timeout", "timeout: expected seconds above 0"),
        ],
    )
    def test_an_invalid_http_option_is_refused_with_the_expected_form(self, option: str, says: str) -> None:
        wrong: Any
        for wrong in ("ca.pem", b"x", object(), [5], HttpOptions):
            with pytest.raises(ValueError, match=says):
                HttpOptions(**{option: wrong})

    @pytest.mark.parametrize("value", [value for value in ODD if value is not None])
    def test_a_clock_has_two_methods(self, value) -> None:
        with pytest.raises(ValueError, match="clock: expected a Clock"):
            AgentClient(ME, clock=value)

    def test_the_core_checks_the_other_options(self) -> None:
        wrong: Any = 3
        with pytest.raises(ValueError, match="retry: expected a RetryPolicy"):
            AgentClient(ME, retry=wrong)
        with pytest.raises(ValueError, match="expected as sender an agent URN"):
            AgentClient("me")

    @pytest.mark.parametrize(
        ("old", "now"),
        [
            ("allow_http", "outbound=OutboundPolicy"), ("trusted_keys", "trust=TrustPolicy"),
            ("registries", "discovery=DiscoveryOptions"), ("timeout", "http=HttpOptions"),
            ("policy", "discovery=DiscoveryOptions"),
        ],
    )  # fmt: skip
    def test_an_option_of_an_earlier_version_raises_an_error_that_names_the_new_one(self, old: str, now: str) -> None:
        options: Any = {old: None}
        with pytest.raises(TypeError, match=f"{old}= has been replaced: write {now}"):
            AgentClient(ME, **options)


class TestAuthenticators:
    def test_an_invalid_argument_of_an_authenticator_is_named(self) -> None:
        policy: Any = {"audience": ME, "agent": BySubject({"7": ME}), "issuer": BASE}
        wrong: Any = "secret"
        with pytest.raises(ValueError, match="policy: expected a TokenPolicy"):
            JwtAuthenticator(wrong)
        with pytest.raises(ValueError, match="policy: expected an IntrospectionPolicy"):
            IntrospectionAuthenticator(wrong, ClientSecret("c", "s"))
        with pytest.raises(ValueError, match="client: expected ClientSecret"):
            IntrospectionAuthenticator(IntrospectionPolicy(**policy), wrong)

    @pytest.mark.parametrize(("option", "kind"), [("outbound", "OutboundPolicy"), ("http", "HttpOptions")])
    def test_an_invalid_option_of_an_authenticator_is_named(self, option: str, kind: str) -> None:
        options: Any = {option: ["10.0.0.0/8"]}
        for make in authenticators():
            with pytest.raises(ValueError, match=f"{option}: expected {kind}"):
                make(**options)

    @pytest.mark.parametrize(
        ("old", "now"),
        [
            ("allow_http", "outbound=OutboundPolicy"), ("allow_networks", "outbound=OutboundPolicy"),
            ("verify", "http=HttpOptions"), ("trust_env", "http=HttpOptions"), ("transport", "http=HttpOptions"),
        ],
    )  # fmt: skip
    def test_an_option_of_an_earlier_version_raises_an_error_that_names_the_new_one(self, old: str, now: str) -> None:
        options: Any = {old: None}
        for make in authenticators():
            with pytest.raises(TypeError, match=f"{old}= has been replaced: write {now}"):
                make(**options)


def authenticators() -> tuple[Callable[..., object], ...]:
    rules: Any = {"issuer": BASE, "audience": ME, "agent": BySubject({"7": ME})}
    return (
        partial(JwtAuthenticator, TokenPolicy(**rules)),
        partial(IntrospectionAuthenticator, IntrospectionPolicy(**rules), ClientSecret("c", "s")),
    )
