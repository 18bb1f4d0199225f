"""Tokens judged by their provider (RFC 7662), without a loop: shared requests, failures, callers that leave."""

from base64 import b64decode
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, strategies as st

from asap_core.auth.claims import BySubject
from asap_core.auth.client_credentials import ClientKey, ClientSecret
from asap_core.auth.introspection_response import IntrospectionPolicy
from asap_core.auth.principal import Authenticated, Credential, DpopProof, InsufficientScope
from asap_core.client.programs import Expired, Fetch, Stage, Unanswered
from asap_core.client.requests import Requests
from asap_core.client.token_introspection import IntrospectionUnavailable, TokenIntrospection
from asap_core.net.addresses import Proximity
from asap_core.net.outbound import OutboundPolicy
from tests.core.client.peers import LOST, NOT_CONNECTED, answer, claims_of
from tests.core.client.scripted import HELD, After, Driver, Run

ISSUER, ENDPOINT, AUDIENCE = "https://id.example", "https://id.example/introspect", "urn:asap:agent:echo-agent"
ALICE, TESTER = "urn:asap:agent:alice", "urn:asap:agent:tester"
SECRET = ClientSecret("rs", "s3cret")
CROWDED = Unanswered(Stage.QUEUED, "no connection became free")
FAILS = "the identity provider doesn't say whether a token is good"


class Provider(Driver):
    """Knows some tokens, and has a server that asks about them.

    seconds: how long it takes. does: what it does instead of answering about a token.
    """

    def __init__(self, *, client: Any = SECRET, endpoint: str | None = ENDPOINT, **changes: Any) -> None:
        super().__init__(self._script)
        self.tokens: dict[str, Any] = {"t": {}}
        self.metadata: object = {"issuer": ISSUER, "introspection_endpoint": ENDPOINT}
        self.asked: list[dict[str, str]] = []
        self.seconds = 0.0
        self.does: Any = None
        rules = {"audience": AUDIENCE, "agent": BySubject({"7": ALICE, "8": TESTER}), "issuer": ISSUER, **changes}
        self.requests = Requests(self.runtime, policy=OutboundPolicy())
        self.introspection = TokenIntrospection(
            self.runtime,
            self.requests,
            IntrospectionPolicy(**{"scopes": ["call"], **rules}),
            client,
            secret=b"s" * 32,
            endpoint=endpoint,
        )

    def _script(self, fetch: Fetch) -> Any:
        if fetch.method == "GET":
            return After(
                self.seconds, self.metadata if isinstance(self.metadata, Unanswered) else answer(self.metadata)
            )
        form = dict(parse_qsl((fetch.body or b"").decode()))
        self.asked.append({**dict(fetch.headers), "url": fetch.url, **form})
        reply = self._answer(form["token"]) if self.does is None else self.does
        return reply if isinstance(reply, After) else After(self.seconds, reply)

    def _answer(self, token: str) -> Any:
        known = self.tokens.get(token)
        if known is None:
            return answer({"active": False})
        said = {"active": True, "sub": "7", "aud": AUDIENCE, "iss": ISSUER, "scope": "call"}
        return answer({**said, "exp": int(self.clock.wall()) + 36_000, **known})

    @property
    def left(self) -> tuple[int, int]:
        """Return how many wait for an answer, and how many tokens are being asked about."""
        return self.introspection.waiting, self.introspection._introspector.asking

    @property
    def remarks(self) -> list[tuple[str, str]]:
        remarks = self.runtime.take_remarks()
        assert {each.logger for each in remarks} <= {"asap.introspection"}
        return [(each.level, each.text) for each in remarks]

    def begin(self, token: str) -> Run[Any]:
        return self.start(self.introspection.verify(Credential(token)))

    def ask(self, token: str) -> Any:
        """Return whom it stands for, None, what it lacks, or "unavailable"."""
        run = self.begin(token)
        while run.effect is not None:
            assert self.turn()
        return result_of(run)


def result_of(run: Run[Any]) -> Any:
    if isinstance(run.end, IntrospectionUnavailable):
        return "unavailable"
    found = run.result()
    return found.urn if isinstance(found, Authenticated) else found


class TestRequests:
    def test_a_request_has_the_client_credentials_and_the_token(self) -> None:
        provider = Provider()
        assert [provider.ask("t") for _ in range(3)] == [ALICE] * 3
        assert provider.ask("unknown") is None
        assert [asked["token"] for asked in provider.asked] == ["t", "unknown"]
        assert provider.asked[0]["token_type_hint"] == "access_token"
        assert b64decode(provider.asked[0]["authorization"].removeprefix("Basic ")) == b"rs:s3cret"
        assert provider.remarks == [("info", "a token was refused: expected a token that's active")]

    @pytest.mark.parametrize(("issuer", "audience"), [(ISSUER, ISSUER), (None, ENDPOINT)])
    def test_the_assertion_of_a_client_key_is_for_the_issuer_or_else_the_endpoint(self, issuer, audience) -> None:
        provider = Provider(client=ClientKey("rs", "EdDSA", lambda text: text[:4]), issuer=issuer)
        assert provider.ask("t") == ALICE
        claims = claims_of(provider.asked[0]["client_assertion"])
        assert (claims["aud"], claims["jti"]) == (audience, "token-1")

    def test_the_endpoint_is_that_of_the_metadata_if_none_is_configured(self) -> None:
        provider = Provider(endpoint=None)
        provider.metadata = {"issuer": ISSUER, "introspection_endpoint": f"{ISSUER}/elsewhere"}
        assert provider.ask("t") == ALICE
        assert provider.asked[0]["url"] == f"{ISSUER}/elsewhere"

    @pytest.mark.parametrize("endpoint", [ENDPOINT, None])
    def test_the_provider_may_be_near_even_if_documents_from_afar_name_it_too(self, endpoint: str | None) -> None:
        provider = Provider(endpoint=endpoint)
        provider.requests.judge(ISSUER, named_by="https://evil.example/manifest.json")
        assert provider.ask("t") == ALICE
        first = provider.effects[0]
        assert isinstance(first, Fetch)
        assert first.route.reach is Proximity.MACHINE

    @pytest.mark.parametrize("named", [{}, {"introspection_endpoint": "http://169.254.169.254/"}])
    def test_metadata_without_a_usable_endpoint_makes_introspection_unavailable(self, named: Any) -> None:
        provider = Provider(endpoint=None)
        provider.metadata = {"issuer": ISSUER, **named}
        assert provider.ask("t") == "unavailable"
        assert provider.asked == []

    def test_no_token_is_sent_over_plain_http(self) -> None:
        assert Provider(endpoint="http://id.example/introspect").ask("t") == "unavailable"

    def test_a_thousand_first_requests_cause_one_introspection(self) -> None:
        provider = Provider()
        provider.seconds = 1.0
        runs = [provider.begin("t") for _ in range(1_000)]
        assert provider.left == (1_000, 1)
        provider.advance(1)
        assert [result_of(run) for run in runs] == [ALICE] * 1_000
        assert (len(provider.asked), provider.left) == (1, (0, 0))

    def test_ten_thousand_guesses_do_not_affect_valid_tokens(self) -> None:
        provider = Provider(max_kept=1_000)
        assert provider.ask("t") == ALICE
        provider.seconds = 0.01
        for number in range(10_000):
            provider.begin(f"guess-{number}")
            assert provider.left[1] <= 100
            if number % 100 == 0:
                provider.advance(0.02)
        assert len(provider.introspection._introspector) <= 2_000
        asked = len(provider.asked)
        assert provider.ask("t") == ALICE
        assert len(provider.asked) == asked

    def test_a_revoked_token_is_refused_after_a_minute(self) -> None:
        provider = Provider()
        assert provider.ask("t") == ALICE
        provider.tokens.clear()
        provider.advance(59.9)
        assert provider.ask("t") == ALICE
        provider.advance(0.1)
        assert provider.ask("t") is None

    def test_scopes_and_proofs_are_checked(self) -> None:
        provider = Provider()
        provider.tokens["small"] = {"scope": "other"}
        assert provider.ask("small") == InsufficientScope(frozenset({"call"}))
        shown = DpopProof(text="x", method="POST", url="https://agent.example")
        assert provider.run(provider.introspection.verify(Credential("t", shown))) is None
        assert [asked["token"] for asked in provider.asked] == ["small"]

    def test_arguments_are_checked(self) -> None:
        driver, wrong = Driver(), "wrong"
        requests = Requests(driver.runtime, policy=OutboundPolicy())
        for arguments, told in (
            ((wrong, SECRET), "policy: expected an IntrospectionPolicy"),
            (
                (IntrospectionPolicy(audience="a", agent=BySubject({"7": ALICE})), wrong),
                "client: expected ClientSecret",
            ),
            ((IntrospectionPolicy(audience="a", agent=BySubject({"7": ALICE})), SECRET), "expected the URL of an"),
        ):
            given: Any = arguments
            with pytest.raises(ValueError, match=told):
                TokenIntrospection(driver.runtime, requests, *given, secret=b"s" * 32)
        policy = IntrospectionPolicy(audience="a", agent=BySubject({"7": ALICE}))
        for endpoint in ("nonsense", "", "ftp://id.example/introspect", 5):
            given = endpoint
            with pytest.raises(ValueError, match="endpoint: expected a URL such as https:"):
                TokenIntrospection(driver.runtime, requests, policy, SECRET, secret=b"s" * 32, endpoint=given)


# What providers, and filters before them, answer a token that's odd to them.
ODD: Any = [
    *[answer(status=status) for status in (400, 403, 413, 414, 415, 422, 431)],
    answer({"error": "invalid_request"}, 400),
    answer(b"<html>"),
    answer(),
    answer({"active": None}),
]
# And what they answer, or don't, if they're in trouble as well.
DOUBTFUL: Any = [
    *[answer(status=status) for status in (401, 404, 429, 500, 502, 503, 504)],
    answer(status=302, location="https://evil.example"),
    answer(b"x" * 70_000),
    LOST,
    HELD,
    # Tokens that are slow keep others from being sent.
    CROWDED,
]
HOSTILE: Any = [
    *[NOT_CONNECTED, HELD, answer(status=500), answer({"error": "invalid_client"}, 401), answer(b"<html>")],
    answer(status=302, location="https://evil.example"),
    answer(b"x" * 70_000),
    answer({"active": "true", "sub": "7"}),
]


class TestUnknownTokens:
    """An unknown token affects only its own verdict."""

    def junk(self, provider: Provider, reply: Any, *tokens: str) -> None:
        provider.does = reply
        for token in tokens:
            assert provider.ask(token) == "unavailable"
        provider.does = None

    @pytest.mark.parametrize("reply", ODD)
    def test_an_odd_token_does_not_affect_valid_tokens(self, reply: Any) -> None:
        provider = Provider()
        self.junk(provider, reply, "j" * 8000, "%00", "junk")
        assert provider.ask("t") == ALICE

    @pytest.mark.parametrize("reply", [*ODD, *DOUBTFUL])
    def test_tokens_that_cause_failures_repeatedly_do_not_affect_valid_tokens(self, reply: Any) -> None:
        provider = Provider()
        assert provider.ask("unknown") is None
        for number in range(20):
            provider.tokens[f"new{number}"] = {}
            self.junk(provider, reply, "junk" * number + "j", f"junk{number}")
            assert provider.ask(f"new{number}") == ALICE
            provider.advance(3)

    def test_a_slow_unknown_token_uses_no_slot_of_a_token_that_was_good(self) -> None:
        provider = Provider(max_asked=5)
        assert provider.ask("t") == ALICE
        provider.advance(61)
        provider.seconds = 5.0
        guesses = [provider.begin(f"guess{number}") for number in range(10)]
        provider.advance(1)
        known = provider.begin("t")
        assert provider.left == (5, 5)
        assert provider.ask("guess") == "unavailable"
        provider.advance(5)
        assert [result_of(run) for run in guesses] == [None] * 4 + ["unavailable"] * 6
        assert result_of(known) == ALICE


class TestProviderFailures:
    @pytest.mark.parametrize("reply", HOSTILE)
    def test_a_failure_admits_no_caller_and_is_distinct_from_a_refused_token(self, reply: Any) -> None:
        provider = Provider()
        provider.does = reply
        assert provider.ask("t-s3cret") == "unavailable"
        assert provider.left == (0, 0)
        ((level, text),) = provider.remarks
        assert (level, text.partition(":")[0]) == ("warning", FAILS)
        assert "s3cret" not in text

    def test_a_failing_provider_is_asked_less_and_less_often(self) -> None:
        provider = Provider()
        provider.does = answer(status=500)
        for number in range(240):
            assert provider.ask(f"t{number}") == "unavailable"
            provider.advance(0.25)
        # After 1, 2, 4, 8 and 16 seconds, in a minute.
        assert len(provider.asked) == 6

    @pytest.mark.parametrize("reply", [answer(status=500), NOT_CONNECTED])
    def test_a_provider_that_fails_for_good_tokens_is_asked_less_often_too(self, reply: Any) -> None:
        provider = Provider()
        provider.tokens |= {"u": {}, "v": {}}
        assert [provider.ask(token) for token in "tuv"] == [ALICE] * 3
        provider.advance(60)
        provider.does = reply
        asked = len(provider.asked)
        for _ in range(60):
            assert [provider.ask(token) for token in "tuv"] == ["unavailable"] * 3
            provider.advance(1)
        assert len(provider.asked) - asked <= 9
        provider.does = None
        provider.advance(32)
        assert [provider.ask(token) for token in "tuv"] == [ALICE] * 3

    @pytest.mark.parametrize(("failure", "left_alone"), [(NOT_CONNECTED, True), (CROWDED, False)])
    def test_an_unreachable_provider_is_not_asked_for_a_while(self, failure: Unanswered, left_alone: bool) -> None:
        provider = Provider()
        assert provider.ask("t") == ALICE
        provider.does = failure
        assert [provider.ask(token) for token in "uvw"] == ["unavailable"] * 3
        assert len(provider.asked) == (2 if left_alone else 4)

    @pytest.mark.parametrize(("failure", "left_alone"), [(NOT_CONNECTED, True), (CROWDED, False)])
    def test_a_provider_without_metadata_is_not_asked_for_a_while(self, failure: Unanswered, left_alone: bool) -> None:
        provider = Provider(endpoint=None)
        assert provider.ask("t") == ALICE
        provider.advance(2 * 86_400)
        provider.metadata = failure
        assert [provider.ask(token) for token in "uvw"] == ["unavailable"] * 3
        assert len(provider.remarks) == (1 if left_alone else 3)

    def test_a_cached_answer_is_used_for_a_minute(self) -> None:
        provider = Provider()
        assert provider.ask("t") == ALICE
        provider.does = NOT_CONNECTED
        assert provider.ask("u") == "unavailable"
        provider.advance(59)
        assert provider.ask("t") == ALICE
        provider.advance(1)
        assert provider.ask("t") == "unavailable"
        provider.does = None
        provider.advance(2)
        assert provider.ask("t") == ALICE

    def test_all_waiters_for_a_hanging_provider_are_answered(self) -> None:
        provider = Provider()
        provider.does = HELD
        runs = [provider.begin("t") for _ in range(50)]
        provider.advance(9.9)
        assert provider.left == (50, 1)
        provider.advance(0.2)
        assert [result_of(run) for run in runs] == ["unavailable"] * 50
        assert len(provider.asked) == 1

    @pytest.mark.parametrize(
        ("reply", "told"),
        [
            (NOT_CONNECTED, "can't connect: refused"),
            (Expired(Stage.CONNECTING), "can't connect within 10 s"),
            (Expired(Stage.SENT), "nothing within 10 s"),
            (answer(b"x" * 70_000), "expected at most 65536 bytes"),
        ],
    )
    def test_the_reason_of_a_failure_is_logged(self, reply: Any, told: str) -> None:
        provider = Provider()
        provider.does = reply
        provider.ask("t")
        ((_, text),) = provider.remarks
        assert told in text


# Callers arrive with one of two tokens, are closed, or are collected by another thread, while time passes.
MOVES = st.lists(
    st.tuples(st.sampled_from(["come", "come", "pass", "close", "lose"]), st.sampled_from("tu")), max_size=20
)


class TestClosing:
    @pytest.mark.parametrize("leave", [Driver.close, Driver.lose])
    @pytest.mark.parametrize("answers", [0, 1])
    def test_waiters_are_answered_if_the_leader_is_closed(self, leave: Any, answers: int) -> None:
        provider = Provider(endpoint=None)
        provider.seconds = 1.0
        first = provider.begin("t")
        others = [provider.begin("t") for _ in range(3)]
        provider.advance(answers + 0.5)
        leave(provider, first)
        provider.advance(5)
        assert [result_of(run) for run in others] == [ALICE] * 3
        assert len(provider.asked) == answers + 1
        assert provider.left == (0, 0)

    @pytest.mark.parametrize("leave", [Driver.close, Driver.lose])
    def test_a_lone_caller_that_is_closed_leaves_nothing_behind(self, leave: Any) -> None:
        provider = Provider(endpoint=None)
        provider.seconds = 1.0
        for seconds in (0.0, 0.5, 1.5):
            run = provider.begin("t")
            provider.advance(seconds)
            leave(provider, run)
            provider.advance(0)
            assert provider.left == (0, 0)
        assert provider.ask("t") == ALICE

    @pytest.mark.parametrize("leave", [Driver.close, Driver.lose])
    def test_a_waiter_may_be_closed_too(self, leave: Any) -> None:
        provider = Provider()
        provider.seconds = 1.0
        first, second = provider.begin("t"), provider.begin("t")
        leave(provider, second)
        provider.advance(1)
        assert (result_of(first), provider.left) == (ALICE, (0, 0))

    @given(MOVES)
    def test_any_arrivals_and_closes_leave_nothing_behind(self, moves: list[Any]) -> None:
        provider = Provider(endpoint=None)
        provider.tokens |= {"u": {}}
        stayed: list[Run[Any]] = []
        for move, token in moves:
            if move == "come":
                stayed.append(provider.begin(token))
            elif move == "pass":
                provider.seconds = 0.7
                provider.advance(0.5)
            elif waiting := [run for run in stayed if run.effect is not None]:
                stayed.remove(waiting[0])
                (Driver.close if move == "close" else Driver.lose)(provider, waiting[0])
                provider.advance(0)
            asking = [run.effect.body for run in provider.runs if isinstance(run.effect, Fetch)]
            assert len([body for body in asking if body is not None]) == len(set(asking) - {None})
        provider.advance(60)
        assert {result_of(run) for run in stayed} <= {ALICE, "unavailable"}
        assert provider.left == (0, 0)
        assert provider.ask("t") == ALICE
