"""Invalid arguments of users are rejected immediately, in one line with the right form."""

import inspect
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from asap_adapters import AgentClient
from asap_adapters.auth.introspection import IntrospectionAuthenticator
from asap_adapters.auth.jwt import JwtAuthenticator
from asap_core import AsapError
from asap_core.auth.authorization import ClientCredentials
from asap_core.auth.claims import BySubject, TokenPolicy
from asap_core.auth.client_credentials import ClientKey, ClientSecret
from asap_core.auth.introspection_response import IntrospectionPolicy
from asap_core.client.breaker import BreakerPolicy
from asap_core.client.delivery import RetryPolicy
from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.http.caching import FreshnessPolicy
from tests.builders import manifest
from tests.clients import GROUPED, make_client

pytestmark = pytest.mark.anyio

ME, BASE = "urn:asap:agent:me", "https://agent.example"
MANIFEST = manifest(url=f"{BASE}/asap", id="urn:asap:agent:a")
SECRET = "hunter2-hunter2"
# Of every kind that Python has a literal for, and some texts that are odd.
ODD: Any = [
    None, 5, -1, 0, True, -1.5, float("nan"), float("inf"), "", SECRET, "5", "http://", "\ud800", "\x00", "x" * 100_000,
    b"x", [], [1], [SECRET], (None,), {}, {1: 2}, {"a": 1}, {"a": [1]}, {SECRET}, object(), int, len, ValueError("x"),
    datetime(2026, 1, 1, tzinfo=UTC), Path("no-such-file"), ClientSecret("c", "s"), MANIFEST,
]  # fmt: skip


class NotFound(httpx.AsyncBaseTransport):
    """Answers 404 to everything."""

    async def handle_async_request(self, _request: httpx.Request) -> httpx.Response:
        return httpx.Response(404)


def client_of(**options) -> AgentClient:
    return make_client(**{"sender": ME, "transport": NotFound(), **options})


def made(**options):
    """A client, or why there's none."""
    try:
        return AgentClient(**{"sender": ME, **options}) if "http" in options else client_of(**options)
    except ValueError as error:
        return error


METHODS: Any = {
    "discover": {"base_url": BASE, "expect": None, "require_skill": None, "require_version": None},
    "look_up": {"base_url": BASE, "expect": None, "require_skill": None, "require_version": None},
    "get_manifest": {"url": BASE, "expect": None},
    "keep_fresh": {"base_urls": [BASE]},
    "get_document": {"url": BASE},
    "cached": {"base_url": BASE},
    "forget": {"url": BASE},
    "reset": {},
    "health_check": {"base_url": BASE},
    "registry": {"location": BASE},
    "stands_in": {"location": BASE},
    "find": {"location": BASE, "skill": None, "agent_id": None},
    "resolve": {"urn": ME, "wait": 0, "require_skill": None, "require_version": None},
    "explain": {"urn": ME, "wait": 0, "require_skill": None, "require_version": None},
    "browse": {"interfaces": None},
    "token": {"credentials": ClientCredentials(client=ClientSecret("me", "secret"), issuer=BASE)},
    "follow": {"announcement": None, "expect": None},
    "send": {
        "target": MANIFEST, "payload_type": "task.request", "payload": {}, "idempotency_key": None, "nonce": None,
        "sender": None, "trace_id": None,
    },
    "post": {"manifest": MANIFEST, "envelope": None, "idempotency_key": None},
    "send_batch": {"target": MANIFEST, "messages": [("task.request", {})]},
    "aclose": {},
}  # fmt: skip


async def outcome_of(client, name: str, given) -> Exception | None:
    """The exception of this call, or None. A call that waits is cancelled after a second."""
    try:
        with anyio.move_on_after(1):
            result = getattr(client, name)(**given)
            if inspect.isawaitable(result):
                await result
            elif isinstance(result, AbstractAsyncContextManager) and given.get("interfaces") != []:
                async with result:
                    pass
    except Exception as error:  # noqa: BLE001 - what is raised is the question
        return error
    return None


class TestAnyValue:
    """As in the README: every exception is an `AsapError`, an `OSError` or a `ValueError`."""

    def test_every_method_and_parameter_is_in_the_table(self) -> None:
        public = {
            name: set(inspect.signature(method).parameters) - {"self"}
            for name, method in vars(AgentClient).items()
            if not name.startswith("_") and inspect.isfunction(method)
        }
        assert public == {name: set(given) for name, given in METHODS.items()}

    @pytest.mark.parametrize(("name", "parameter"), [(name, each) for name, given in METHODS.items() for each in given])
    async def test_any_argument_of_a_method_raises_only_documented_errors(self, name, parameter) -> None:
        # None is all interfaces of this machine.
        values = [value for value in ODD if value is not None or parameter != "interfaces"]
        async with client_of(registries=[BASE]) as client:
            for value in values:
                error = await outcome_of(client, name, {**METHODS[name], parameter: value})
                assert error is None or isinstance(error, AsapError | OSError | ValueError), (value, error)
                assert "\n" not in str(error)

    @pytest.mark.parametrize("parameter", sorted({*inspect.signature(AgentClient).parameters, *GROUPED}))
    async def test_any_argument_of_a_client_raises_only_documented_errors(self, parameter) -> None:
        for value in ODD:
            client = made(**{parameter: value})
            if isinstance(client, ValueError):
                assert "\n" not in str(client)
                assert SECRET not in str(client)
                continue
            if parameter in ("transport", "resolver", "http"):
                continue  # None: the network
            async with client:
                error = await outcome_of(client, "discover", {"base_url": BASE})
                assert error is None or isinstance(error, AsapError | OSError | ValueError), (value, error)


class TestErrorMessages:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"sender": None}, "sender expected as an agent URN"),
            ({"auth": "secret"}, "auth: expected a dict of origins .* such as {'https://agent.example': 'token'}"),
            ({"auth": {BASE: 5}}, "auth: expected a dict of origins"),
            ({"token": 5}, "token: expected a token, as text"),
            ({"registries": "file.json"}, r"registries: expected a list of URLs and files, such as \['https://"),
            ({"registries": Path("file.json")}, "registries: expected a list"),
            ({"registries": [5]}, "registries: expected a list"),
            ({"allow_http": "agent.lan"}, r"allow_http: expected a list, such as \['agent.lan'\]"),
            ({"allow_networks": "10.0.0.0/8"}, r"allow_networks: expected a list, such as \['10.0.0.0/8'\]"),
            ({"allow_endpoints": BASE}, "allow_endpoints: expected a list, such as"),
            ({"allow_ports": 81}, r"allow_ports: expected a list of ports from 1 to 65535, such as \[81\]"),
            ({"allow_ports": ["81"]}, "allow_ports: expected a list of ports"),
            ({"redirects": "2"}, "redirects: expected 0 to 2"),
            ({"timeout": "5"}, "timeout: expected seconds above 0, such as 60.0"),
            ({"timeout": 0}, "timeout: expected seconds above 0"),
            ({"timeout": -1}, "timeout: expected seconds above 0"),
            ({"timeout": float("nan")}, "timeout: expected seconds above 0"),
            ({"timeout": None}, "timeout: expected seconds above 0"),
            ({"trusted_keys": "base64"}, "trusted_keys: expected a dict of agents"),
            ({"trusted_keys": {"urn:asap:agent:a": 5}}, "trusted_keys: expected a dict of agents"),
            ({"trusted_keys": {"me": "x"}}, "in trusted_keys"),
            ({"require_signed": "no"}, "require_signed: expected True or False"),
            ({"verify": "ca.pem"}, "verify: expected an ssl.SSLContext, True or False"),
            ({"retry": 3}, r"retry: expected a RetryPolicy, such as RetryPolicy\(retries=2\), or None"),
            ({"breaker": True}, r"breaker: expected a BreakerPolicy"),
            ({"transport": "http"}, "transport: expected an httpx.AsyncBaseTransport"),
            ({"resolver": object()}, r"resolver: expected an object with a method resolve"),
            ({"clock": LookupError}, "clock: expected a clock"),
        ],
    )
    def test_an_invalid_argument_of_a_client_is_refused_with_the_expected_form(self, options, says) -> None:
        if "sender" in options:
            says = "expected as sender an agent URN"
        with pytest.raises(ValueError, match=says):
            client_of(**options)

    @pytest.mark.parametrize(
        ("name", "given", "says"),
        [
            ("discover", {"base_url": None}, r"base_url: expected the base URL of an agent, such as https://agent\.ex"),
            ("discover", {"require_version": 2.1}, "require_version: expected a version such as '2.1', as text"),
            ("keep_fresh", {"base_urls": BASE}, "base_urls: expected a list of base URLs"),
            ("resolve", {"urn": BASE}, "urn: expected an agent URN"),
            ("resolve", {"wait": "3"}, "wait: expected seconds, 0 or more"),
            ("registry", {"location": None}, "location: expected the URL or file of a registry"),
            ("send", {"target": None}, "target: expected a Manifest, or the base URL of an agent"),
            ("send", {"payload": "hello"}, "payload: expected a dict such as {'skill_id': 'echo', 'input': {}}"),
            ("send", {"payload": [("skill_id", "echo")]}, "payload: expected a dict"),
            ("send", {"payload_type": None}, "payload_type: expected text such as 'task.request'"),
            ("send", {"idempotency_key": ""}, "expected an idempotency key of 1 to 256 visible ASCII characters"),
            (
                "send",
                {"payload": {"skill_id": "x", "input": {"when": {1}}}},
                r"\.input\.when: expected values that",
            ),
            ("send", {"sender": "me"}, "sender: expected an agent URN"),
            ("send_batch", {"messages": {"task.request": {}}}, "messages: expected pairs of payload type and payload"),
            ("send_batch", {"messages": [("task.request", "hello")]}, "payload: expected a dict"),
            ("post", {"envelope": {}}, "envelope: expected an Envelope"),
            ("post", {"manifest": BASE}, "manifest: expected a Manifest"),
            ("follow", {"announcement": BASE}, "announcement: expected an Announcement"),
        ],
    )
    async def test_an_invalid_argument_of_a_method_is_refused_with_the_expected_form(self, name, given, says) -> None:
        async with client_of() as client:
            error = await outcome_of(client, name, {**METHODS[name], **given})
        assert isinstance(error, ValueError)
        with pytest.raises(ValueError, match=says):
            raise error

    @pytest.mark.parametrize(
        ("policy", "options"),
        [
            (RetryPolicy, ["retries", "first_delay", "longest_delay", "spread"]),
            (BreakerPolicy, ["threshold", "rest"]),
            (DocumentCachePolicy, ["max_entries", "first_failure", "longest_failure"]),
            (FreshnessPolicy, ["default", "most", "stale_while_revalidate", "stale_if_error"]),
        ],
    )
    def test_an_invalid_field_of_a_policy_is_named(self, policy, options) -> None:
        for name in options:
            for value in ("5", None, -1, float("nan"), [1], True):
                with pytest.raises(ValueError, match=name):
                    policy(**{name: value})

    @pytest.mark.parametrize(
        ("kind", "good"),
        [
            (ClientSecret, {"client_id": "c", "secret": "s", "method": "client_secret_basic"}),
            (ClientKey, {"client_id": "c", "algorithm": "EdDSA", "sign": bytes, "kid": None}),
            (
                ClientCredentials,
                {
                    "client": ClientSecret("c", "s"), "issuer": BASE, "token_endpoint": None, "scopes": (),
                    "audience": None, "resource": None, "dpop": None,
                },
            ),
        ],
    )  # fmt: skip
    def test_an_invalid_field_of_credentials_is_refused(self, kind, good) -> None:
        kind(**good)
        for name in good:
            for value in (5, True, float("nan"), b"x", object(), [5], int):
                if name == "sign" and callable(value):
                    continue
                with pytest.raises(ValueError, match=r"expected|is not a valid") as caught:
                    kind(**{**good, name: value})
                assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("kind", [TokenPolicy, IntrospectionPolicy])
    def test_an_invalid_field_of_a_token_policy_is_named(self, kind) -> None:
        good: Any = {"issuer": BASE, "audience": ME, "agent": BySubject({"7": ME}), "scopes": ["a"], "leeway": 5}
        good |= {"fresh_for": 1, "max_known": 1} if kind is TokenPolicy else {"most": 1, "max_asked": 1}
        kind(**good)
        for name in good:
            for value in (0.5j, True, float("nan"), b"x", object(), [5], int):
                with pytest.raises(ValueError, match=f"{name}: expected"):
                    kind(**{**good, name: value})

    def test_an_invalid_argument_of_an_authenticator_is_named(self) -> None:
        policy: Any = {"audience": ME, "agent": BySubject({"7": ME}), "issuer": BASE}
        wrong: Any = "secret"
        with pytest.raises(ValueError, match="policy: expected a TokenPolicy"):
            JwtAuthenticator(wrong)
        with pytest.raises(ValueError, match="policy: expected an IntrospectionPolicy"):
            IntrospectionAuthenticator(wrong, ClientSecret("c", "s"))
        with pytest.raises(ValueError, match="client: expected ClientSecret"):
            IntrospectionAuthenticator(IntrospectionPolicy(**policy), wrong)

    @pytest.mark.parametrize("option", ["allow_http", "allow_networks"])
    def test_an_invalid_outbound_option_of_an_authenticator_is_named(self, option) -> None:
        rules: Any = {"issuer": BASE, "audience": ME, "agent": BySubject({"7": ME})}
        for value in ("10.0.0.0/8", 5, None, [5]):
            options: Any = {option: value}
            with pytest.raises(ValueError, match=f"{option}: expected a list, such as"):
                JwtAuthenticator(TokenPolicy(**rules), **options)
            with pytest.raises(ValueError, match=f"{option}: expected a list, such as"):
                IntrospectionAuthenticator(IntrospectionPolicy(**rules), ClientSecret("c", "s"), **options)
