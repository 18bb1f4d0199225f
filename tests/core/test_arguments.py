"""An invalid argument raises a ValueError where it's passed, in one line with the expected form."""

import functools
from typing import Any

import pytest
from attrs import fields

from asap_core import (
    Agent,
    AuthScheme,
    Capabilities,
    Endpoints,
    Manifest,
    ManualClock,
    Policy,
    Skill,
    StartPolicy,
    TokenTable,
)
from asap_core.arguments import (
    ArgumentRule,
    expect_whole,
    has_methods,
    is_dict_of,
    is_instance,
    is_list_of,
    is_or_none,
    moved_to,
    replaced,
)
from asap_core.auth.authorization import ClientCredentials
from asap_core.auth.claims import BySubject, TokenPolicy
from asap_core.auth.client_credentials import ClientKey, ClientSecret
from asap_core.auth.introspection_response import IntrospectionPolicy
from asap_core.net.outbound import OutboundPolicy

MANIFEST: Any = {
    "id": "urn:asap:agent:a",
    "name": "a",
    "version": "1.0.0",
    "description": "",
    "capabilities": Capabilities(skills=()),
    "endpoints": Endpoints(asap="https://a.example/asap"),
}
ODD: Any = [5, "x", None, object(), [1], {"a": 1}, {1: 2}, float("nan"), True, b"x", [None], [["a"]], Manifest]


def agent(**changes):
    return Agent(**{"manifest": Manifest(**MANIFEST), "policy": Policy(start=StartPolicy.OPEN), **changes})


def bind(**changes):
    return agent().bind(**{"clock": ManualClock(), "ids": lambda: "id", "key": b"k" * 32, **changes})


async def asynchronous(_decision) -> None: ...


def generator(_decision):
    yield


async def async_generator(_decision):
    yield


class Called:
    async def __call__(self, _decision) -> None: ...

    async def method(self, _decision) -> None: ...


class WrongClock:
    def monotonic(self):
        return "now"

    wall = monotonic


class HalfClock:
    def monotonic(self) -> float:
        return 1.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"manifest": {}}, r"manifest: expected Manifest, such as Manifest\(.*; not dict"),
        ({"manifest": Manifest}, r"manifest: expected Manifest, such as .*; not the class Manifest"),
        ({"policy": {}}, r"policy: expected Policy, such as Policy\(.*; not dict"),
        ({"policy": Policy}, "not the class Policy"),
        ({"payload_types": "task.request"}, 'payload_types: expected strings, such as \\["task.request"\\]'),
        ({"payload_types": [1]}, "payload_types: expected strings"),
        ({"payload_types": 5}, "payload_types: expected strings"),
        ({"aliases": "urn:asap:agent:b"}, "aliases: expected strings"),
    ],
)
def test_an_invalid_argument_of_an_agent_is_refused(changes, expected) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        agent(**changes)
    assert "\n" not in str(caught.value)


def test_payload_types_may_come_one_by_one() -> None:
    assert agent(payload_types=(kind for kind in ["task.request", "x.own"])).payload_types == {"taskrequest", "xown"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"key": "k" * 32}, r"key: expected bytes, such as 16 to 64 random bytes, as .*; not str"),
        ({"key": b"k"}, "16 to 64 random bytes"),
        ({"ids": "id"}, r"ids: expected a function \(\) -> str that isn't async; not str"),
        ({"ids": asynchronous}, "ids: .* this is an async one"),
        ({"clock": ManualClock}, "clock: expected an object with monotonic"),
        ({"clock": None}, "clock: expected an object with monotonic"),
        ({"clock": HalfClock()}, "clock: expected an object with monotonic"),
        ({"clock": WrongClock()}, "clock: expected an object with monotonic"),
        ({"codings": [b"br"]}, r"codings: expected a mapping with keys of bytes, such as .*; not list"),
        ({"codings": {"br": object}}, "codings: expected a mapping with keys of bytes"),
        ({"shared_limits": "peer"}, "shared_limits: expected strings"),
        ({"shared_limits": ["x"]}, "shared_limits: expected some of"),
        ({"shared_limits": None}, "shared_limits: expected strings"),
        ({"shared_limits": [["peer"]]}, "shared_limits: expected strings"),
        ({"codings": {b"br": None}}, "codings: expected a function for each"),
        ({"counters": True}, r"counters: expected Counters, such as Counters\(\); not bool"),
        ({"observe": 5}, r"observe: expected a function \(decision\) that isn't async; not int"),
        (
            {"observe": asynchronous},
            r"observe: expected a function \(decision\) that isn't async; this is an async one",
        ),
        ({"observe": Called()}, "this is an async one"),
        ({"observe": Called().method}, "this is an async one"),
        ({"observe": functools.partial(functools.partial(asynchronous))}, "this is an async one"),
        ({"observe": generator}, "this is a generator function, with `yield` in it"),
        ({"observe": async_generator}, "this is a generator function, with `yield` in it"),
    ],
)
def test_an_invalid_argument_of_bind_is_refused(changes, expected) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        bind(**changes)
    assert "\n" not in str(caught.value)


def test_a_refused_bind_leaves_the_agent_unbound() -> None:
    one = agent()
    with pytest.raises(ValueError, match="ids"):
        one.bind(clock=ManualClock(), ids=5, key=b"k" * 32)
    assert not one.bound
    one.bind(clock=ManualClock(), ids=lambda: "id", key=b"k" * 32)


def test_an_observer_that_calls_an_async_function_is_reported_once() -> None:
    from asap_core import Request

    one = bind(observe=lambda decision: asynchronous(decision))  # noqa: PLW0108 - not async itself
    one.open(Request(method="POST", target="/asap")).feed(b"nonsense").end()
    assert (one.observer_failures, str(one.take_observer_error())) == (
        1,
        "observe: expected a function that isn't async",
    )


@pytest.mark.parametrize("value", [["t"], None, {b"a": "urn:asap:agent:a"}, {"a": 5}, {"a": ["x"]}], ids=repr)
def test_an_invalid_table_of_tokens_is_refused(value) -> None:
    with pytest.raises(ValueError, match="expected"):
        TokenTable(value)


@pytest.mark.parametrize("kind", [Policy, Manifest, Endpoints, Capabilities, Skill, AuthScheme])
def test_any_value_of_a_field_is_accepted_or_raises_value_error(kind) -> None:
    good: Any = {
        Policy: {}, Manifest: MANIFEST, Endpoints: {"asap": "https://a.example"}, Capabilities: {"skills": ()},
        Skill: {"id": "s", "description": ""}, AuthScheme: {"schemes": ["bearer"]},
    }[kind]  # fmt: skip
    refused = 0
    for attribute in fields(kind):
        for value in ODD:
            try:
                kind(**{**good, attribute.name: value})
            except ValueError:
                refused += 1
    assert refused > len(fields(kind))


@pytest.mark.parametrize("value", [0, 11, True, 1.0, "5", None], ids=repr)
def test_a_value_that_is_no_whole_number_in_range_is_refused(value) -> None:
    with pytest.raises(ValueError, match="n: expected a whole number from 1 to 10"):
        expect_whole("n", value, least=1, most=10)
    expect_whole("n", 10, least=1, most=10)


class TestForms:
    def test_an_error_names_the_argument_and_the_expected_form_and_no_value(self) -> None:
        form = ArgumentRule("text, or None", is_or_none(is_instance(str)))
        for value in ("x", None):
            form.check("token", value)
        with pytest.raises(ValueError, match=r"^token: expected text, or None$"):
            form.check("token", b"hunter2")

    @pytest.mark.parametrize(
        ("fits", "good", "bad"),
        [
            (is_instance(str, int), ["x", 5], [None, b"x", 1.5]),
            (is_or_none(is_instance(str)), ["x", None], [5]),
            (is_list_of(is_instance(str)), [[], ["x"], ("x", "y"), {"x"}], ["xy", b"xy", {"x": "y"}, [5], None, 5]),
            (is_dict_of(is_instance(int)), [{}, {"a": 1}], [{"a": "b"}, {1: 1}, [("a", 1)], None]),
            (has_methods("monotonic", "wall"), [ManualClock()], [ManualClock, object(), None]),
        ],
    )  # fmt: skip
    def test_fits_tells_valid_values_from_invalid_ones(self, fits, good, bad) -> None:
        assert all(map(fits, good))
        assert not any(map(fits, bad))


class TestReplaced:
    def test_a_replaced_keyword_is_refused_with_its_replacement(self) -> None:
        @replaced(port="at=(host, port)")
        def serve(agent: str, *, at: tuple[str, int] = ("::1", 80)) -> str:
            """Serve."""
            return f"{agent} at {at}"

        assert serve("a", at=("h", 1)) == "a at ('h', 1)"
        assert (serve.__name__, serve.__doc__) == ("serve", "Serve.")
        with pytest.raises(TypeError, match=r"^port= has been replaced: write at=\(host, port\)$"):
            serve("a", port=1)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="unexpected keyword argument 'prt'"):
            serve("a", prt=1)  # type: ignore[call-arg]

    def test_an_option_that_moved_into_a_class_is_named_with_it(self) -> None:
        @replaced(**moved_to("outbound=OutboundPolicy(…)", OutboundPolicy))
        def make(*, outbound: OutboundPolicy | None = None) -> OutboundPolicy | None:
            return outbound

        assert make() is None
        with pytest.raises(TypeError, match=r"write outbound=OutboundPolicy\(…\), which has an option of this name$"):
            make(allow_ports=[80])  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("kind", "good"),
    [
        (ClientSecret, {"client_id": "c", "secret": "s", "method": "client_secret_basic"}),
        (ClientKey, {"client_id": "c", "algorithm": "EdDSA", "sign": bytes, "kid": None}),
        (
            ClientCredentials,
            {
                "client": ClientSecret("c", "s"), "issuer": "https://id.example", "token_endpoint": None, "scopes": (),
                "audience": None, "resource": None, "dpop": None,
            },
        ),
    ],
)  # fmt: skip
def test_an_invalid_field_of_credentials_is_refused(kind, good) -> None:
    kind(**good)
    for name in good:
        for value in (5, True, float("nan"), b"x", object(), [5], int):
            if name == "sign" and callable(value):
                continue
            with pytest.raises(ValueError, match=r"expected|is not a valid") as caught:
                kind(**{**good, name: value})
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [TokenPolicy, IntrospectionPolicy])
def test_an_invalid_field_of_a_token_policy_is_named(kind) -> None:
    good: Any = {
        "issuer": "https://id.example",
        "audience": "urn:asap:agent:me",
        "agent": BySubject({"7": "urn:asap:agent:me"}),
        "scopes": ["a"],
        "leeway": 5,
    }
    good |= {"fresh_for": 1, "max_known": 1} if kind is TokenPolicy else {"most": 1, "max_asked": 1}
    kind(**good)
    for name in good:
        for value in (0.5j, True, float("nan"), b"x", object(), [5], int):
            with pytest.raises(ValueError, match=f"{name}: expected"):
                kind(**{**good, name: value})
