"""The laws of sending many messages at once, for any outcomes in any order, closed or collected at any yield.

(a) When nobody waits any longer, no flight, waiter, wake or undo is left.
(c) Every permit of a breaker is given back.
(d) A token goes to no origin that wasn't meant.
(e) A message is sent again only if that is safe: it wasn't carried out, or the peer knows its key.
(g) The same script gives the same effects.
"""

import gzip
import json
import random
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from attrs import define, evolve
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from asap_core.auth.authorization import ClientCredentials
from asap_core.auth.client_credentials import ClientSecret
from asap_core.auth.token_cache import TokenCache, TokenKey
from asap_core.client import sending
from asap_core.client.breaker import BreakerPolicy, Breakers, Permit, RequestOutcome
from asap_core.client.delivery import Attempt, RetryPolicy, next_step
from asap_core.client.programs import (
    Barred,
    Completed,
    Expired,
    Fetch,
    Program,
    Returned,
    Sleep,
    Stage,
    Unanswered,
    Wait,
)
from asap_core.client.requests import Requests
from asap_core.client.runtime import Runtime
from asap_core.client.tokens import Authorizer, MessageCredentials
from asap_core.clock import WallTime
from asap_core.errors import Advice, RemoteError
from asap_core.refusals import TIMESTAMP
from asap_core.wire.envelope import utc
from tests.core.client.peers import AGENT, METADATA, Peers, answer, credentials
from tests.core.client.scripted import HELD, Answer, Reply, Run

# --- the world -------------------------------------------------------------------------------------------------------

OTHER, STATIC, PLAIN, LAN = "https://b.example", "https://static.example", "https://plain.example", "http://lan.example"
# The first one more often than the others.
AGENTS = (AGENT, AGENT, AGENT, OTHER, STATIC, PLAIN, LAN)
PROVIDERS = {"id.example": AGENT, "idp.example": OTHER}
RETRIES = 2


def refusal(**data: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": None, "error": {"code": -32062, "message": "no", "data": data}}


# What came of a request to an agent, and when the message may be sent again then: `always`, `keyed` (if the peer knows
# its key), `token` (at once, once, with another token), `clock` (at once, once, with the right time), or `never`.
AGENT_REPLIES: dict[str, tuple[Reply, str]] = {
    "done": (Answer(), "never"),
    "refused": (answer(refusal(recoverable=False)), "never"),
    "nonsense": (answer(b"nonsense"), "never"),
    "broken": (answer(b"", 500), "never"),
    "too large": (answer(b"x" * 20_000_000), "never"),
    "moved": (Answer(307, (("location", "https://evil.example/"),)), "never"),
    "barred": (Barred("it's inside", Advice("allow it")), "never"),
    "recoverable": (answer(refusal(recoverable=True)), "always"),
    "in a while": (answer(refusal(recoverable=True, retry_after_ms=5_000)), "always"),
    "limited": (answer(b"", 429), "always"),
    "not connected": (Unanswered(Stage.CONNECTING, "can't connect: refused"), "always"),
    "expired before": (Expired(Stage.QUEUED), "always"),
    "bad gateway": (answer(b"", 502), "keyed"),
    "gateway is late": (answer(b"", 504), "keyed"),
    "lost": (Unanswered(Stage.SENT, "the connection broke"), "keyed"),
    "cut off": (Answer(failure=Unanswered(Stage.ANSWERED, "the connection broke")), "keyed"),
    "expired": (Expired(), "keyed"),
    "unauthorized": (answer({"detail": "bad token"}, 401), "token"),
    "another time": (Answer(), "clock"),
}
PROVIDER_REPLIES = ("issued", "issued shortly", "refused", "broken", "not connected", "expired")


@define(eq=False)
class Sending:
    """What is known of one message, or batch, beside its program."""

    to: str
    keyed: bool
    # How the last attempt ended; None before the first one.
    ended: str | None = None
    slept: bool = False
    retries: int = 0
    replaced: bool = False
    corrected: bool = False
    shown: str | None = None
    identity: object = None


class Recording(Breakers):
    """Breakers that note the permits they gave."""

    def __init__(self, policy: BreakerPolicy) -> None:
        super().__init__(policy)
        self.permits: list[Permit] = []

    def ask(self, origin, *, now):
        permit = super().ask(origin, now=now)
        if isinstance(permit, Permit):
            self.permits.append(permit)
        return permit

    @property
    def out(self) -> int:
        return sum(not permit.given_back for permit in self.permits)


class World(Peers):
    """Providers and agents that are told by hand what to answer, watched beside a naive model."""

    breakers_of: type[Recording] = Recording

    def __init__(self) -> None:
        second = credentials(
            client=ClientSecret("me", "0ther"), issuer=None, token_endpoint="https://idp.example/token"
        )
        super().__init__(
            auth={AGENT: credentials(), LAN: credentials(), OTHER: second},
            static={STATIC: "st4tic"},
            retry=RetryPolicy(retries=RETRIES),
            breaker=BreakerPolicy(threshold=2, rest=10.0),
            allow_http=["lan.example"],
        )
        self.script = lambda _: HELD
        self.breakers = self.sender._breakers = self.breakers_of(BreakerPolicy(threshold=2, rest=10.0))
        self.messages: dict[Run[Any], Sending] = {}
        self.sent = 0
        # Each secret, and the origins that it's for.
        self.meant: dict[str, set[str]] = {"st4tic": {STATIC}}
        for secret, origin in (("s3cret", "https://id.example"), ("0ther", "https://idp.example")):
            self.meant[secret] = self.meant[b64encode(f"me:{secret}".encode()).decode()] = {origin}
        self.ends: list[str] = []

    # --- commands ----------------------------------------------------------------------------------------------------

    def deliver_to(self, base: str, keyed: bool) -> None:
        self.sent += 1
        envelope, key = self.envelope(self.sent), f"key-{self.sent}"
        to = self.destination(base)
        self.begin(Sending(base, keyed), self.sender.deliver(to, envelope, key, keyed=keyed, nonce=None))

    def batch_to(self, base: str) -> None:
        self.sent += 2
        envelopes = [self.envelope(self.sent - 1), self.envelope(self.sent)]
        self.begin(Sending(base, keyed=False), self.sender.batch(self.destination(base), envelopes))

    def agent_says(self, which: int, name: str) -> None:
        runs = [run for run in self.runs if self.is_post(run)]
        if runs:
            run = runs[which % len(runs)]
            reply, self.messages[run].ended = AGENT_REPLIES[name]
            assert isinstance(run.effect, Fetch)
            match name:
                case "done":
                    reply = self.done(run.effect)
                case "cut off":
                    reply = evolve(self.done(run.effect), failure=Unanswered(Stage.ANSWERED, "the connection broke"))
                case "another time":
                    told = {"server_time": utc(WallTime(self.runtime.wall() + 3_600.0)).isoformat()}
                    reply = answer(refusal(code=TIMESTAMP.taxonomy, recoverable=True, details=told))
            self.answer(run, reply)

    def provider_says(self, which: int, name: str) -> None:
        runs = [run for run in self.runs if isinstance(run.effect, Fetch) and not self.is_post(run)]
        if runs:
            run = runs[which % len(runs)]
            assert isinstance(run.effect, Fetch)
            self.answer(run, self.issued(run.effect, name))

    def wake_in_vain(self, which: int) -> None:
        runs = [run for run in self.runs if isinstance(run.effect, Wait)]
        if runs:
            self.answer(runs[which % len(runs)], Completed())

    def leave(self, which: int, lost: bool) -> None:
        if not self.runs:
            return
        run, before = self.runs[which % len(self.runs)], (self.source.waiting, self.breakers.out)
        if lost:
            self.lose(run)
            assert before == (self.source.waiting, self.breakers.out), "a table was changed without its owner"
        else:
            self.close(run)

    # --- what the peers answer ---------------------------------------------------------------------------------------

    def done(self, fetch: Fetch) -> Answer:
        document = document_of(fetch)
        replies = [self._reply(each) for each in (document if isinstance(document, list) else [document])]
        return answer(replies if isinstance(document, list) else replies[0])

    def issued(self, fetch: Fetch, name: str) -> Reply:
        match name:
            case "refused":
                return answer({"error": "invalid_client"}, 401)
            case "broken":
                return answer(b"", 503)
            case "not connected":
                return Unanswered(Stage.CONNECTING, "can't connect: refused")
            case "expired":
                return Expired()
        if fetch.method == "GET":
            return answer(METADATA)
        token = f"t0ken-{len(self.meant)}-"
        self.meant[token] = {PROVIDERS[str(urlsplit(fetch.url).hostname)]}
        life = 3_600 if name == "issued" else 8
        return answer({"access_token": token, "token_type": "Bearer", "expires_in": life})

    # --- the model ---------------------------------------------------------------------------------------------------

    def is_post(self, run: Run[Any]) -> bool:
        """Whether a message is being sent."""
        return isinstance(run.effect, Fetch) and urlsplit(run.effect.url).hostname not in PROVIDERS

    def begin(self, message: Sending, program: Program[Any]) -> None:
        run = self.start(program)
        self.messages[run] = message
        self.look(run)

    def answer(self, run: Run[Any], reply: Reply) -> None:
        if isinstance(run.effect, Fetch) and isinstance(reply, Expired) and self.is_post(run):
            self.messages[run].ended = "keyed" if reply.stage is Stage.SENT else "always"
        super().answer(run, reply)
        self.look(run)

    def look(self, run: Run[Any]) -> None:
        message = self.messages[run]
        match run.effect:
            case None:
                self.ends.append(str(run.end.value if isinstance(run.end, Returned) else run.end))
            case Sleep():
                message.slept = True
            case Fetch():
                self.shows_no_stranger_a_secret(run.effect)
                if self.is_post(run):
                    self.may_be_sent(message, run.effect)

    def shows_no_stranger_a_secret(self, fetch: Fetch) -> None:
        parts = urlsplit(fetch.url)
        told = f"{fetch.url} {fetch.headers} {document_of(fetch)}"
        for secret, origins in self.meant.items():
            assert secret not in told or f"{parts.scheme}://{parts.netloc}" in origins, "a secret for a stranger"

    def may_be_sent(self, message: Sending, fetch: Fetch) -> None:
        assert fetch.url == f"{message.to}/asap", "another agent than was named"
        document = document_of(fetch)
        calls = [each["params"] for each in (document if isinstance(document, list) else [document])]
        identity = [(call["envelope"]["id"], call["idempotency_key"]) for call in calls]
        assert message.identity in (None, identity), "a retry under another id or key"
        shown, ended = dict(fetch.headers).get("authorization"), message.ended
        if ended is None:
            pass  # for the first time; a token may have been asked for several times
        elif message.slept:
            message.retries += 1
            message.replaced = False
            assert message.retries <= RETRIES, "too many retries"
            assert ended in ("always", "token") or (ended == "keyed" and message.keyed), f"sent again: {ended}"
        elif ended == "token":
            assert not message.replaced, "a second other token"
            assert shown not in (None, message.shown), "the same token again"
            message.replaced = True
        else:
            assert ended == "clock", f"sent again at once: {ended}"
            assert not message.corrected, "a second time"
            message.corrected, message.replaced = True, False
        message.slept, message.shown, message.identity, message.ended = False, shown, identity, "unanswered"

    def is_empty(self) -> None:
        tokens, provider = self.source._tokens, self.source._provider("https://id.example")
        left = self.source.waiting, len(tokens._flights), provider._documents.waiting, len(self.runtime._undone)
        assert (*left, self.breakers.out, self.runtime.take_wakes()) == (0, 0, 0, 0, 0, ()), "something is left"

    def trace(self) -> Iterator[str]:
        for effect in self.effects:
            match effect:
                case Fetch():
                    yield f"{effect} {effect.headers} {document_of(effect)}"
                case Sleep():
                    yield str(effect)
                case _:
                    yield type(effect).__name__
        yield from self.ends


def document_of(fetch: Fetch) -> Any:
    """The JSON that is sent; a form as its text."""
    body = fetch.body or b""
    body = gzip.decompress(body) if ("content-encoding", "gzip") in fetch.headers else body
    return json.loads(body) if body[:1] in (b"{", b"[") else body.decode()


# --- the laws --------------------------------------------------------------------------------------------------------

NUMBERS = st.integers(0, 7)


class SendingLaws(RuleBasedStateMachine):
    world_of: Any = staticmethod(World)

    def __init__(self) -> None:
        super().__init__()
        self.world: World = self.world_of()
        self.commands: list[tuple[str, tuple[Any, ...]]] = []
        self.failed = False

    def do(self, command: str, *arguments: Any) -> None:
        self.commands.append((command, arguments))
        self.failed = True
        getattr(self.world, command)(*arguments)
        self.failed = False

    @initialize(keyed=st.booleans(), known=st.booleans())
    def one_has_sent(self, keyed: bool, known: bool) -> None:
        """And so has a token, perhaps."""
        self.do("deliver_to", AGENT, keyed)
        if known:
            self.do("provider_says", 0, "issued")
            self.do("provider_says", 0, "issued")

    @rule(base=st.sampled_from(AGENTS), keyed=st.booleans())
    def deliver(self, base: str, keyed: bool) -> None:
        self.do("deliver_to", base, keyed)

    @rule(base=st.sampled_from(AGENTS))
    def batch(self, base: str) -> None:
        self.do("batch_to", base)

    @rule(which=NUMBERS, reply=st.sampled_from(sorted(AGENT_REPLIES)), then=st.sampled_from([0.0, 1.0, 6.0]))
    def agent_says(self, which: int, reply: str, then: float) -> None:
        self.do("agent_says", which, reply)
        self.do("advance", then)

    @rule(which=NUMBERS, reply=st.sampled_from(["recoverable", "limited", "bad gateway"]))
    def agent_says_it_again_and_again(self, which: int, reply: str) -> None:
        for _ in range(RETRIES + 2):
            self.agent_says(which, reply, 6.0)

    @rule(which=NUMBERS)
    def agent_wants_another_token(self, which: int) -> None:
        self.do("agent_says", which, "unauthorized")
        self.do("provider_says", 0, "issued")

    @rule(which=NUMBERS, reply=st.sampled_from([*PROVIDER_REPLIES, "issued", "issued"]))
    def provider_says(self, which: int, reply: str) -> None:
        self.do("provider_says", which, reply)

    @rule(which=NUMBERS)
    def wake_in_vain(self, which: int) -> None:
        self.do("wake_in_vain", which)

    @rule(which=NUMBERS, lost=st.booleans())
    def leave(self, which: int, lost: bool) -> None:
        self.do("leave", which, lost)

    @rule(seconds=st.sampled_from([0.0, 0.0, 1.0, 3.0, 12.0]))
    def time_passes(self, seconds: float) -> None:
        self.do("advance", seconds)

    @invariant()
    def there_is_a_permit_for_each_request_and_no_other(self) -> None:
        if not self.world.runtime._undone:
            assert self.world.breakers.out == sum(map(self.world.is_post, self.world.runs)), "a permit is lost"

    def teardown(self) -> None:
        if self.failed:
            # What failed is to be reported, and not what comes of it.
            return
        for number in range(len(self.world.runs)):
            self.do("leave", number, number % 2 == 0)
        self.do("advance", 0.0)
        assert self.world.runs == []
        self.world.is_empty()
        again: World = self.world_of()
        for command, arguments in self.commands:
            getattr(again, command)(*arguments)
        assert list(again.trace()) == list(self.world.trace()), "the same script, and other effects"


LAWS = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_sending_keeps_its_laws() -> None:
    run_state_machine_as_test(SendingLaws, settings=settings(LAWS, max_examples=settings().max_examples))


# --- planted defects -------------------------------------------------------------------------------------------------


def keeps_permits_of_who_left(self, origin, permit, outcome, *, now):
    if outcome is not RequestOutcome.ABANDONED:
        Breakers.give_back(self, origin, permit, outcome, now=now)


def keeps_permits_of_what_went_well(self, origin, permit, outcome, *, now):
    if outcome is not RequestOutcome.OK:
        Breakers.give_back(self, origin, permit, outcome, now=now)


def the_first_credentials_for_all(self, to):
    return MessageCredentials(self, to, next(iter(self.credentials.values())), ())


def also_unencrypted(self, to):
    return MessageCredentials(self, to, self.credentials.get(to.allowed.origin), ())


def the_same_token_again(self, status, headers, *, refused):
    return refused and self._shown is not None


def believes_any_refusal(error, _allowed):
    return WallTime(2_000_000_000.0) if isinstance(error, RemoteError) else None


def steps(change: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """`next_step` of other circumstances."""

    def step(ended, **circumstances):
        changed = {"ended": ended, **circumstances, **change(ended)}
        return next_step(changed.pop("ended"), **changed)

    return step


def another_key_each_time(self, to, envelope, key):
    return once(self, to, envelope, f"{key}-{self._runtime.new_id()}")


def with_a_header_of_chance(self, allowed, document, headers, **options):
    return post(self, allowed, document, {**headers, "x-request-id": str(random.random())}, **options)


once, post = sending.Sender.once, Requests.post
DEFECTS: dict[str, tuple[Any, str, Any]] = {
    "nothing is undone": (Runtime, "undo_after", lambda _self, _error, _undo: None),
    "it's undone where it's closed": (Runtime, "undo_after", lambda _self, _error, undo: undo()),
    "who leaves stays in the table": (TokenCache, "abandon", lambda _self, _waiter: ()),
    "permits of who left are kept": (Recording, "give_back", keeps_permits_of_who_left),
    "permits of what went well are kept": (Recording, "give_back", keeps_permits_of_what_went_well),
    "one agent's credentials for all": (Authorizer, "credentials_for", the_first_credentials_for_all),
    "credentials in plain text": (Authorizer, "credentials_for", also_unencrypted),
    "one token for all": (ClientCredentials, "key", lambda _self, _scopes: TokenKey("https://id.example", "me")),
    "the static token for all": (Requests, "_credential", lambda _self, _to: {"authorization": "Bearer st4tic"}),
    "lost messages are sent again": (sending, "next_step", steps(lambda _: {"keyed": True})),
    "answered messages are sent again": (sending, "next_step", steps(lambda _: {"ended": Attempt.UNSENT})),
    "there's no last attempt": (sending, "next_step", steps(lambda _: {"attempts": 1})),
    "the same token is shown again": (MessageCredentials, "should_retry", the_same_token_again),
    "every refusal corrects the clock": (sending, "server_time_in", believes_any_refusal),
    "each attempt has another key": (sending.Sender, "once", another_key_each_time),
    "requests differ by chance": (Requests, "post", with_a_header_of_chance),
}
HUNT = settings(LAWS, max_examples=1_000, phases=[Phase.generate], derandomize=True, database=None)


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_caught(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*DEFECTS[defect])
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        run_state_machine_as_test(SendingLaws, settings=HUNT)
