"""Invalid arguments of `Client` and its methods raise ValueError before any effect, and say the right form."""

import inspect
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from attrs import fields

from asap_core.auth.authorization import ClientCredentials
from asap_core.auth.client_credentials import ClientSecret
from asap_core.client.breaker import BreakerPolicy
from asap_core.client.client import Client
from asap_core.client.delivery import RetryPolicy
from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.client.options import DiscoveryOptions, RequestOptions, TrustPolicy, check
from asap_core.client.programs import Next, Unavailable
from asap_core.clock import WallTime
from asap_core.errors import AsapError
from asap_core.http.caching import FreshnessPolicy
from asap_core.net.outbound import OutboundPolicy
from asap_core.wire.envelope import Envelope
from tests.builders import manifest
from tests.core.client.agents import announcement
from tests.core.client.scripted import Answer, Driver

ME, BASE = "urn:asap:agent:me", "https://agent.example"
MANIFEST = manifest(url=f"{BASE}/asap", id="urn:asap:agent:a")
CREDENTIALS = ClientCredentials(client=ClientSecret("me", "secret"), issuer=BASE)
ENVELOPE = Envelope.new(
    sender=ME, recipient=MANIFEST.id, payload_type="task.request", payload={}, ids=lambda: "id", wall=WallTime(0.0)
)  # fmt: skip
SECRET = "hunter2-hunter2"
# Of every kind that Python has a literal for, and some texts that are odd.
ODD: Any = [
    None, 5, -1, 0, True, -1.5, float("nan"), float("inf"), "", SECRET, "5", "http://", "\ud800", "\x00", "x" * 100_000,
    b"x", [], [1], [SECRET], (None,), {}, {1: 2}, {"a": 1}, {"a": [1]}, {SECRET}, object(), int, len, ValueError("x"),
    datetime(2026, 1, 1, tzinfo=UTC), Path("no-such-file"), ClientSecret("c", "s"), MANIFEST,
]  # fmt: skip
WANTED: Any = {"expect": None, "require_skill": None, "require_version": None}
# The parameters of each method, each with a valid argument.
METHODS: Any = {
    "discover": {"base_url": BASE, **WANTED},
    "look_up": {"base_url": BASE, **WANTED},
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
    "follow": {"announcement": announcement(ME, "https://a.localhost/m"), "expect": None},
    "token": {"credentials": CREDENTIALS},
    "send": {
        "target": MANIFEST, "payload_type": "task.request", "payload": {}, "idempotency_key": None, "nonce": None,
        "sender": None, "trace_id": None,
    },
    "post": {"manifest": MANIFEST, "envelope": ENVELOPE, "idempotency_key": None},
    "send_batch": {"target": MANIFEST, "messages": [("task.request", {})]},
}  # fmt: skip
GROUPS: Any = {
    "outbound": OutboundPolicy, "trust": TrustPolicy, "discovery": DiscoveryOptions, "http": RequestOptions
}  # fmt: skip
GROUP_OF = {option.name: name for name, group in GROUPS.items() for option in fields(group)}
OF_DRIVERS = {"bind", "take_wakes", "take_removals", "take_remarks"}


class World(Driver):
    """A bound client. Everything answers 404, and there is no local network."""

    def __init__(self, **options: Any) -> None:
        super().__init__(lambda effect: Unavailable("no network") if isinstance(effect, Next) else Answer(404))
        self.client = Client(**{"sender": ME, "discovery": DiscoveryOptions(registries=[BASE]), **options})
        self.client.bind(self.runtime, links=lambda _: (("127.0.0.1/8",), {"eth0"}))

    def call(self, name: str, given: dict[str, Any]) -> Exception | None:
        """Return the exception of this call, or None."""
        try:
            made: Any = getattr(self.client, name)(**given)
            if hasattr(made, "send"):
                self.run(made)
            elif name == "keep_fresh":
                for program in made:
                    self.close(self.start(program))
        except Exception as error:  # noqa: BLE001 - what is raised is the question
            return error
        return None


class TestAnyValue:
    """As in the README: every exception is an `AsapError`, an `OSError` or a `ValueError`."""

    def test_every_method_and_parameter_is_in_the_table(self) -> None:
        public = {
            name: set(inspect.signature(method).parameters) - {"self"}
            for name, method in vars(Client).items()
            if not name.startswith("_") and inspect.isfunction(method)
        }
        assert public.keys() == METHODS.keys() | OF_DRIVERS
        assert {name: public[name] for name in METHODS} == {name: set(given) for name, given in METHODS.items()}

    @pytest.mark.parametrize(("name", "parameter"), [(name, each) for name, given in METHODS.items() for each in given])
    def test_any_argument_of_a_method_raises_only_documented_errors(self, name: str, parameter: str) -> None:
        world = World()
        for value in ODD:
            error = world.call(name, {**METHODS[name], parameter: value})
            assert error is None or isinstance(error, AsapError | OSError | ValueError), (value, error)
            assert "\n" not in str(error)
            assert "hunter2" not in str(error) or isinstance(error, AsapError | OSError), error

    @pytest.mark.parametrize("parameter", sorted({*inspect.signature(Client).parameters, *GROUP_OF}))
    def test_any_argument_of_a_client_raises_only_documented_errors(self, parameter: str) -> None:
        for value in ODD:
            made = made_with(parameter, value)
            if isinstance(made, World):
                failure = made.call("discover", {"base_url": BASE})
                assert isinstance(failure, AsapError | OSError | ValueError), (value, failure)
            else:
                assert "\n" not in str(made)
                assert SECRET not in str(made)


def made_with(parameter: str, value: object) -> World | ValueError:
    """A client, or why there's none."""
    try:
        if parameter in GROUP_OF:
            group = GROUP_OF[parameter]
            return World(**{group: GROUPS[group](**{parameter: value})})
        return World(**{parameter: value})
    except ValueError as error:
        return error


class TestErrorMessages:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"sender": None}, "expected as sender an agent URN"),
            ({"token": 5}, "token: expected a token, as text"),
            ({"auth": "secret"}, "auth: expected a dict of origins .* such as {'https://agent.example': 'token'}"),
            ({"auth": {BASE: 5}}, "auth: expected a dict of origins"),
            ({"outbound": 5}, "outbound: expected an OutboundPolicy, such as OutboundPolicy.*, or None"),
            ({"trust": 5}, "trust: expected a TrustPolicy, such as TrustPolicy.*, or None"),
            ({"discovery": 5}, "discovery: expected a DiscoveryOptions, such as DiscoveryOptions.*, or None"),
            ({"http": 5}, "http: expected a RequestOptions, such as RequestOptions.*, or None"),
            ({"retry": 3}, r"retry: expected a RetryPolicy, such as RetryPolicy\(retries=2\), or None"),
            ({"breaker": True}, "breaker: expected a BreakerPolicy, such as BreakerPolicy.*, or None"),
        ],
    )
    def test_an_invalid_argument_of_a_client_is_refused_with_the_expected_form(
        self, options: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(ValueError, match=f"^{says}"):
            World(**options)

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ({"runtime": None}, r"runtime: expected a Runtime, such as Runtime\(clock, new_id, new_token, fraction\)$"),
            ({"codings": {"br": None}}, r"codings: expected a mapping with keys of bytes, such as \{b'br': Brotli\}$"),
            ({"codings": 5}, "codings: expected a mapping"),
            ({"links": None}, r"links: expected a function \(interface\) -> \(networks, scopes\)$"),
            ({"verify": 5}, r"verify: expected a function \(public_key, signature, message\) -> bool, or None$"),
        ],
    )
    def test_an_invalid_argument_of_bind_is_refused_and_the_client_is_not_bound(
        self, given: dict[str, Any], says: str
    ) -> None:
        client = Client(ME)
        with pytest.raises(ValueError, match=f"^{says}"):
            client.bind(**{"runtime": Driver().runtime, **given})
        client.bind(Driver().runtime, codings={}, verify=None)

    @pytest.mark.parametrize(
        ("name", "given", "says"),
        [
            ("discover", {"base_url": None}, r"base_url: expected the base URL of an agent, such as https://agent\.ex"),
            ("discover", {"expect": "me"}, "expect: expected an agent's URN, or None"),
            ("discover", {"require_skill": 5}, "require_skill: expected the id of a skill, as text, or None"),
            ("discover", {"require_version": 2.1}, "require_version: expected a version such as '2.1', as text"),
            ("get_manifest", {"url": None}, "url: expected a URL such as https://agent.example, as text"),
            ("cached", {"base_url": 5}, "base_url: expected the base URL"),
            ("forget", {"url": 5}, "url: expected a URL"),
            ("keep_fresh", {"base_urls": BASE}, "base_urls: expected a list of base URLs"),
            ("keep_fresh", {"base_urls": [5]}, "base_urls: expected a list of base URLs"),
            ("resolve", {"urn": BASE}, "urn: expected an agent URN"),
            ("resolve", {"wait": "3"}, "wait: expected seconds, 0 or more"),
            ("resolve", {"wait": True}, "wait: expected seconds, 0 or more"),
            ("explain", {"wait": -1}, "wait: expected seconds, 0 or more"),
            ("explain", {"wait": float("nan")}, "wait: expected seconds, 0 or more"),
            ("registry", {"location": None}, "location: expected the URL or file of a registry, as text or Path"),
            ("stands_in", {"location": 5}, "location: expected the URL or file of a registry"),
            ("find", {"skill": 5}, "skill: expected text, or None"),
            ("find", {"agent_id": 5}, "agent_id: expected text, or None"),
            ("token", {"credentials": "secret"}, "credentials: expected ClientCredentials"),
            ("send", {"target": None}, "target: expected a Manifest, or the base URL of an agent"),
            ("send", {"payload": "hello"}, "payload: expected a dict such as {'skill_id': 'echo', 'input': {}}"),
            ("send", {"payload": [("skill_id", "echo")]}, "payload: expected a dict"),
            ("send", {"payload_type": None}, "payload_type: expected text such as 'task.request'"),
            ("send", {"idempotency_key": ""}, "expected an idempotency key of 1 to 256 visible ASCII characters"),
            ("send", {"payload": {"skill_id": "x", "input": {"when": {1}}}}, r".*\.input\.when: expected values that"),
            ("send", {"sender": "me"}, "sender: expected an agent URN"),
            ("send_batch", {"target": 5}, "target: expected a Manifest, or the base URL of an agent"),
            ("send_batch", {"messages": {"task.request": {}}}, "messages: expected pairs of payload type and payload"),
            ("send_batch", {"messages": [("task.request", "hello")]}, "payload: expected a dict"),
            ("post", {"envelope": {}}, "envelope: expected an Envelope"),
            ("post", {"manifest": BASE}, "manifest: expected a Manifest"),
            ("follow", {"announcement": BASE}, "announcement: expected an Announcement"),
            ("follow", {"expect": "me"}, "expect: expected an agent's URN, or None"),
        ],
    )
    def test_an_invalid_argument_of_a_method_is_refused_with_the_expected_form(
        self, name: str, given: dict[str, Any], says: str
    ) -> None:
        world = World()
        error = world.call(name, {**METHODS[name], **given})
        assert isinstance(error, ValueError)
        with pytest.raises(ValueError, match=f"^{says}"):
            raise error
        assert world.effects == []

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"allow_http": "agent.lan"}, r"allow_http: expected a list, such as \['agent.lan'\]"),
            ({"allow_networks": "10.0.0.0/8"}, r"allow_networks: expected a list, such as \['10.0.0.0/8'\]"),
            ({"allow_endpoints": BASE}, "allow_endpoints: expected a list, such as"),
            ({"allow_ports": 81}, r"allow_ports: expected a list of ports from 1 to 65535, such as \[81\]"),
            ({"allow_ports": ["81"]}, "allow_ports: expected a list of ports"),
            ({"redirects": "2"}, "redirects: expected 0 to 2"),
        ],
    )
    def test_an_invalid_field_of_the_outbound_policy_is_refused_with_the_expected_form(
        self, options: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(ValueError, match=f"^{says}"):
            OutboundPolicy(**options)

    def test_trusted_keys_belong_to_agents(self) -> None:
        with pytest.raises(ValueError, match="in trusted_keys"):
            World(trust=TrustPolicy(trusted_keys={"me": "x"}))

    def test_a_wait_is_any_number_of_seconds_from_zero(self) -> None:
        for seconds in (0, 0.0, 0.5, 3, float("inf")):
            check(wait=seconds)

    @pytest.mark.parametrize("value", ["clock", 5, None, object(), Driver])
    def test_a_clock_has_two_methods(self, value: object) -> None:
        check(clock=Driver().clock)
        with pytest.raises(ValueError, match="clock: expected a clock with the methods monotonic and wall"):
            check(clock=value)

    @pytest.mark.parametrize(
        ("policy", "options"),
        [
            (RetryPolicy, ["retries", "first_delay", "longest_delay", "spread"]),
            (BreakerPolicy, ["threshold", "rest"]),
            (DocumentCachePolicy, ["max_entries", "first_failure", "longest_failure"]),
            (FreshnessPolicy, ["default", "most", "stale_while_revalidate", "stale_if_error"]),
        ],
    )
    def test_an_invalid_field_of_a_policy_is_named(self, policy: Any, options: list[str]) -> None:
        for name in options:
            for value in ("5", None, -1, float("nan"), [1], True):
                with pytest.raises(ValueError, match=name):
                    policy(**{name: value})
