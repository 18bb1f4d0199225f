"""The laws of judging tokens by their provider, for any outcomes in any order, closed or collected at any yield.

(a) When nobody waits any longer, no flight, waiter, wake or undo is left. Caches and back-offs keep to their bounds.
(b) There's one live question for each token, and one verdict for all who show it. A verdict is what the provider said
    last, and only for so long as it may be kept, by either clock. Guesses evict no verdict on a good token.
(c) A failure delays questions about its token alone, unless no token can be the reason: then it delays all. Tokens that
    nobody knows leave a fifth of the places free.
(d) A token goes to the provider only, over TLS, and into no log.
(f) Nothing is fetched that the outbound policy refuses.
(g) The same script gives the same effects.
"""

from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from attrs import frozen
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from asap_core.auth import introspection
from asap_core.auth.claims import Accepted, BySubject
from asap_core.auth.client_credentials import ClientSecret
from asap_core.auth.introspection import Introspector, NoVerdict
from asap_core.auth.introspection_response import IntrospectionPolicy
from asap_core.auth.principal import Authenticated, Credential, InsufficientScope
from asap_core.client.programs import Fetch, Returned, Wait
from asap_core.client.provider import Provider
from asap_core.client.requests import Requests
from asap_core.client.token_introspection import IntrospectionUnavailable, TokenIntrospection
from asap_core.clock import WallTime
from asap_core.flights import BackOff
from asap_core.net.outbound import Allowed, OutboundPolicy
from tests.core.client.laws import (
    FAILURES,
    NUMBERS,
    REQUEST_DEFECTS,
    TABLE_DEFECTS,
    Defects,
    ProgramMachine,
    World,
    is_caught,
    keeps_its_laws,
    leads_outside,
)
from tests.core.client.peers import answer
from tests.core.client.scripted import Reply, Run

ISSUER, ALICE = "https://id.example", "urn:asap:agent:alice"
ENDPOINT = f"{ISSUER}/introspect"
TOKENS = tuple(f"s3cret-{number}" for number in range(7))
KEPT, REFUSED, LIFE = 20.0, 5.0, 7.0
MOST_KEPT, MOST_ASKED, MOST_STRANGERS = 3, 5, 4
LONGEST = 32.0
ACTIVE: dict[str, object] = {"active": True, "sub": "7"}
# What the provider may say, and the verdict.
SAYS: dict[str, tuple[Reply, str]] = {
    "active": (answer({**ACTIVE, "scope": "call"}), "alice"),
    "active for some seconds": (answer(b"made when it's sent"), "alice"),
    "without the scope": (answer(ACTIVE), "lacks"),
    "another's": (answer({**ACTIVE, "scope": "call", "sub": "8"}), "refused"),
    "inactive": (answer({"active": False}), "refused"),
}
# What may be the reason of a failure: the token, the provider, or (`either`) it can't be told.
FAILS: dict[str, tuple[Reply, str]] = {
    **{name: (reply, "either") for name, reply in FAILURES.items()},
    "no connection free": (FAILURES["no connection free"], "either"),
    "not connected": (FAILURES["not connected"], "provider"),
    "expired before": (FAILURES["expired before"], "provider"),
    "barred": (FAILURES["barred"], "provider"),
    "invalid": (FAILURES["invalid"], "token"),
    "not yes or no": (answer({"active": "true"}), "token"),
    "malformed": (answer({"error": "invalid_request"}, 400), "token"),
    "unauthorized": (answer({"error": "invalid_token"}, 401), "either"),
    "unknown client": (answer({"error": "invalid_client"}, 401), "provider"),
}
METADATA: dict[str, str | None] = {
    "metadata": ENDPOINT, "endpoint inside": "https://169.254.169.254/", "endpoint in plain text": "http://id.example/",
    "no endpoint": None,
}  # fmt: skip


@frozen
class Kept:
    """A verdict, and until when it counts, by each clock."""

    verdict: str
    until: float
    ends: float


class Introspections(World):
    """A server whose callers show tokens, and a model of what is known of each."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = Requests(self.runtime, policy=OutboundPolicy(redirects=2))
        self.introspection = self.made(ENDPOINT)
        self.names_endpoint = True
        # Those who wait for a verdict, by token; the first one asks. What those were told who haven't taken it yet.
        self.groups: dict[str, list[Run[Any]]] = {}
        self.told: dict[Run[Any], str] = {}
        self.token_of: dict[Run[Any], str] = {}
        # What the next request is answered with; the reason why the metadata was of no use.
        self.said, self.useless = "expired", "provider"
        # The model: the verdicts that are kept and the tokens that were good, the last one used at the end; failures
        # in a row with the end of the pause, of tokens and of the provider; what happened since its last answer.
        self.good: dict[str, Kept] = {}
        self.refused: dict[str, Kept] = {}
        self.known: list[str] = []
        self.failures: dict[str, tuple[int, float]] = {}
        self.provider: tuple[int, float] = 0, 0.0
        self.answered = False
        self.doubted: set[str] = set()

    def made(self, endpoint: str | None) -> TokenIntrospection:
        policy = IntrospectionPolicy(
            audience=None, agent=BySubject({"7": ALICE}), issuer=ISSUER, scopes=["call"], leeway=0, most=KEPT,
            most_refused=REFUSED, max_kept=MOST_KEPT, max_asked=MOST_ASKED,
        )  # fmt: skip
        return TokenIntrospection(
            self.runtime, self.requests, policy, ClientSecret("rs", "pa55"), secret=b"s" * 32, endpoint=endpoint
        )

    @property
    def tables(self) -> tuple[int, ...]:
        provider = self.introspection._provider
        waiting = 0 if isinstance(provider, str) else provider._documents.waiting
        return self.introspection.waiting, self.introspection._introspector.asking, waiting

    # --- commands ----------------------------------------------------------------------------------------------------

    def endpoint_is_in_the_metadata(self) -> None:
        self.introspection, self.names_endpoint = self.made(None), False

    def show(self, token: str) -> None:
        expected, joins = self.at_once(token), token in self.groups
        run = self.start(self.introspection.verify(Credential(token)))
        if expected is not None:
            assert run.effect is None, "it waits for what is known"
            assert verdict_of(run) == expected, "another verdict than the one that is kept"
            self.note_end(run)
        elif run.effect is None:
            assert not self.names_endpoint, "a verdict without an answer"
            assert not joins, "a verdict before the answer"
            assert verdict_of(run) == "undecided", "a verdict without a question"
            self.fail(token, self.useless)
            self.note_end(run)
        else:
            assert not joins or isinstance(run.effect, Wait), "a second question about one token"
            self.token_of[run] = token
            self.groups.setdefault(token, []).append(run)
            self.look(run)

    def tell(self, which: int, said: str, metadata: str) -> None:
        """Answer a request: what is said about a token, or in the metadata."""
        run = self.chosen(which, Fetch)
        if run is None:
            return
        assert isinstance(run.effect, Fetch)
        self.said = said if is_question(run) else metadata
        if not is_question(run):
            reply = self.metadata(metadata)
        elif said == "active for some seconds":
            reply = answer({**ACTIVE, "scope": "call", "exp": self.clock.wall() + LIFE})
        else:
            reply = {**SAYS, **FAILS}[said][0]
        self.answer(run, reply)
        self.said = "expired"

    def tell_all(self, said: str) -> None:
        """Answer the questions under way, and those that follow, like this."""
        for _ in range(2):
            for _ in range(len(self.requested())):
                self.tell(0, said, "metadata")
            self.settle()

    def asker_leaves(self, token: str, lost: bool) -> None:
        if token in self.groups:
            self.leave(self.runs.index(self.groups[token][0]), lost)

    def set_clock(self, seconds: float) -> None:
        self.clock.step_wall(seconds)

    def metadata(self, name: str) -> Reply:
        if name in METADATA:
            return answer({"issuer": ISSUER, "introspection_endpoint": METADATA[name]})
        return FAILURES[name] if name in FAILURES else answer(status=307, location="/moved")

    # --- the model: the documented rules, as lists -------------------------------------------------------------------

    def at_once(self, token: str) -> str | None:
        """The verdict that is given without a question."""
        now, wall = self.clock.monotonic(), self.clock.wall()
        for table in (self.good, self.refused):
            kept = table.pop(token, None)
            if kept is not None and now < kept.until and wall < kept.ends:
                table[token] = kept
                return kept.verdict
        if token in self.groups:
            return None
        paused = now < self.provider[1] or now < self.failures.get(token, (0, 0.0))[1]
        strangers = [each for each in self.groups if each not in self.known]
        crowded = len(self.groups) == MOST_ASKED or (token not in self.known and len(strangers) >= MOST_STRANGERS)
        return "undecided" if paused or crowded else None

    def land(self, token: str) -> None:
        """The provider said something about a token."""
        name = self.said
        if name in SAYS:
            told = SAYS[name][1]
            self.keep(token, name, told)
        else:
            told = "undecided"
            self.fail(token, FAILS[name][1])
        self.tell_group(token, told)

    def tell_group(self, token: str, told: str) -> None:
        self.told.update((run, told) for run in self.groups.pop(token, []) if run in self.runs)

    def keep(self, token: str, name: str, verdict: str) -> None:
        self.answered, self.provider = True, (0, 0.0)
        self.doubted.clear()
        self.failures.pop(token, None)
        self.known = [each for each in self.known if each != token]
        seconds = {"alice": KEPT, "lacks": REFUSED, "refused": REFUSED}[verdict]
        seconds = LIFE if name == "active for some seconds" else seconds
        kept = Kept(verdict, self.clock.monotonic() + seconds, self.clock.wall() + seconds)
        if verdict == "refused":
            self.refused = last({**self.refused, token: kept})
        else:
            self.good = last({**self.good, token: kept})
            self.known = [*self.known, token][-MOST_KEPT:]

    def fail(self, token: str, cause: str) -> None:
        now = self.clock.monotonic()
        if cause != "provider" and token in self.known:
            self.doubted.add(token)
        if (
            cause == "provider"
            or (token in self.known and len(self.doubted) > 1)
            or (cause == "either" and not self.answered)
        ):
            # Questions that were under way together count as one failure.
            if now >= self.provider[1]:
                self.provider = again(self.provider, now)
        else:
            before = self.failures.pop(token, (0, 0.0))
            self.failures = last({**self.failures, token: again(before, now)})

    # --- what happens ------------------------------------------------------------------------------------------------

    def left(self, run: Run[Any]) -> None:
        self.told.pop(run, None)

    def _wake(self) -> None:
        super()._wake()
        # Now those are out of the tables who were collected.
        groups = {token: [run for run in group if run in self.runs] for token, group in self.groups.items()}
        self.groups = {token: group for token, group in groups.items() if group}
        for remark in self.runtime.take_remarks():
            assert "s3cret" not in remark.text, "a token is logged"
            assert "pa55" not in remark.text, "the secret is logged"

    def answer(self, run: Run[Any], reply: Reply) -> None:
        token = self.token_of[run]
        asks = run in self.groups.get(token, [])[:1]
        if is_question(run):
            assert asks, "it asks, and isn't the first who waits"
            self.land(token)
        elif isinstance(run.effect, Fetch):
            self.useless = "either" if self.said == "no connection free" else "provider"
        super().answer(run, reply)
        if run.effect is None and run not in self.told:
            # It was to ask, and doesn't know where.
            assert asks, "a verdict before the answer"
            assert not self.names_endpoint, "a verdict without an answer"
            self.fail(token, self.useless)
            self.told[run] = "undecided"
            self.tell_group(token, "undecided")
        self.look(run)

    def look(self, run: Run[Any]) -> None:
        token = self.token_of[run]
        if isinstance(run.effect, Fetch):
            leads_outside(run.effect, ["id.example"])
            if is_question(run):
                assert dict(parse_qsl((run.effect.body or b"").decode()))["token"] == token
            assert "s3cret" not in f"{run.effect} {run.effect.url}", "a token can be seen"
        elif run.effect is None:
            assert verdict_of(run) == self.told.pop(run), "another verdict than the provider's"
            self.note_end(run)


def is_question(run: Run[Any]) -> bool:
    return isinstance(run.effect, Fetch) and run.effect.method == "POST"


def verdict_of(run: Run[Any]) -> str:
    match run.end:
        case Returned(Authenticated(urn)):
            assert urn == ALICE
            return "alice"
        case Returned(InsufficientScope()):
            return "lacks"
        case Returned(None):
            return "refused"
        case IntrospectionUnavailable():
            return "undecided"
        case other:
            raise AssertionError(f"another end: {other!r}")


def last(table: dict[str, Any]) -> dict[str, Any]:
    return dict(list(table.items())[-MOST_KEPT:])


def again(before: tuple[int, float], now: float) -> tuple[int, float]:
    """One more failure in a row: a pause twice as long."""
    return before[0] + 1, now + min(2.0 ** before[0], LONGEST)


# --- the laws --------------------------------------------------------------------------------------------------------

# The first two more often.
SHOWN = st.sampled_from([*TOKENS[:2], *TOKENS[:2], *TOKENS])
SAID = st.sampled_from([*SAYS, *SAYS, *SAYS, *FAILS])
TOLD_OF_ITSELF = st.sampled_from(["metadata", "metadata", *METADATA, *FAILURES, "moved"])


class IntrospectionLaws(ProgramMachine):
    world_of: Any = staticmethod(Introspections)

    @initialize(
        metadata=st.sampled_from([None, *METADATA, "moved away", "not connected"]),
        said=st.sampled_from(["", "active", "inactive"]),
    )
    def some_were_shown_before(self, metadata: str | None, said: str) -> None:
        if metadata is not None:
            self.do("endpoint_is_in_the_metadata")
            self.do("show", TOKENS[0])
            self.do("tell", 0, said, metadata)
        if said:
            for token in TOKENS[:2]:
                self.do("show", token)
            self.do("tell_all", said)
            self.do("advance", KEPT)

    @rule(token=SHOWN)
    def show(self, token: str) -> None:
        self.do("show", token)

    @rule(tokens=st.permutations(TOKENS), number=st.sampled_from([2, 6, 7]))
    def show_several(self, tokens: list[str], number: int) -> None:
        for token in tokens[:number]:
            self.do("show", token)

    @rule(token=SHOWN, lost=st.booleans())
    def show_and_leave(self, token: str, lost: bool) -> None:
        self.do("show", token)
        self.do("leave", -1, lost)

    @rule(token=SHOWN, lost=st.booleans())
    def the_one_who_asks_leaves(self, token: str, lost: bool) -> None:
        self.do("show", token)
        self.do("show", token)
        self.do("asker_leaves", token, lost)
        self.all_who_can_go_on_do()

    @rule(which=NUMBERS, said=SAID, metadata=TOLD_OF_ITSELF)
    def tell(self, which: int, said: str, metadata: str) -> None:
        self.do("tell", which, said, metadata)

    @rule(said=SAID)
    def tell_all(self, said: str) -> None:
        self.do("tell_all", said)

    @rule(tokens=st.permutations(TOKENS[:4]), said=SAID, seconds=st.sampled_from([0.0, 1.0, REFUSED]))
    def some_are_asked_about_in_turn(self, tokens: list[str], said: str, seconds: float) -> None:
        for token in tokens[:3]:
            self.do("show", token)
            self.do("tell_all", said)
            self.do("advance", seconds)

    @rule(token=SHOWN, several=st.lists(SAID, min_size=2, max_size=4))
    def one_is_asked_about_now_and_then(self, token: str, several: list[str]) -> None:
        for said in several:
            self.do("show", token)
            self.do("tell_all", said)
            self.do("advance", 1.0)
            self.do("show", token)
            self.do("advance", KEPT)

    @rule(token=SHOWN, said=st.sampled_from(sorted(SAYS)), seconds=st.sampled_from([-KEPT, -1.0, LIFE, KEPT]))
    def the_clock_is_set(self, token: str, said: str, seconds: float) -> None:
        self.do("show", token)
        self.do("tell_all", said)
        self.do("set_clock", seconds)
        self.do("show", token)

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, REFUSED, LIFE, KEPT, LONGEST]))
    def time_passes(self, seconds: float) -> None:
        self.do("advance", seconds)

    @rule()
    def all_who_can_go_on_do(self) -> None:
        self.do("settle")
        assert not self.world.told, "somebody isn't told what came"
        metadata = [run for run in self.world.runs if isinstance(run.effect, Fetch) and not is_question(run)]
        for first, *_ in self.world.groups.values():
            assert isinstance(first.effect, Fetch) or metadata, "all wait, and nobody asks"

    @invariant()
    def there_is_one_live_question_about_each_token(self) -> None:
        asked = [self.world.token_of[run] for run in self.world.runs if is_question(run)]
        assert len(asked) == len(set(asked)), "a second question about one token"
        others = [fetch.url for fetch in self.world.requested() if fetch.method == "GET"]
        assert len(others) == len(set(others)), "a second fetch of the metadata"

    @invariant()
    def the_tables_are_bounded(self) -> None:
        table = self.world.introspection._introspector
        assert len(table) <= 2 * MOST_KEPT
        assert max(len(table._known), len(table._failed)) <= MOST_KEPT
        assert (len(table._provider_failed), len(table._doubted)) <= (1, 2)
        if not self.world.runtime._undone:
            waiting = sum(map(len, self.world.groups.values()))
            assert (table.waiting, table.asking) == (waiting, len(self.world.groups)), "who left still waits"
            assert table.asking <= MOST_ASKED


def test_introspection_keeps_its_laws() -> None:
    keeps_its_laws(IntrospectionLaws)


# --- planted defects -------------------------------------------------------------------------------------------------


def keeps_for_ever(self, digest, *, at):
    del at
    return next((kept.verdict for table in (self._good, self._refused) if (kept := table.peek(digest))), None)


def forgets_the_wall_clock(self, digest, verdict, *, at):
    keep(self, digest, verdict, at=at)
    for table in (self._good, self._refused):
        if (kept := table.peek(digest)) is not None:
            table.put(digest, introspection._Kept(kept.verdict, kept.until, WallTime(at.wall + 1e9)))


def keeps_all_in_one_table(self, policy, *, secret):
    init(self, policy, secret=secret)
    self._refused = self._good


def takes_what_is_inactive(self, digest, answer, *, at):
    verdict = judge_token(self, digest, answer, at=at)
    return verdict if isinstance(verdict, NoVerdict) else Accepted(Authenticated(ALICE), WallTime(at.wall + 1))


def asks_the_next_in_line_too(self, waiter):
    effects = abandon(self, waiter)
    return effects[:0]


def keeps_counting(self, digest, answer, *, at):
    failed = self._failed.last(digest)
    verdict = judge_token(self, digest, answer, at=at)
    if failed is not None and not isinstance(verdict, NoVerdict):
        self._failed._failures.put(digest, failed)
    return verdict


def forgets_which_were_good(self, digest, *, now):
    self._known.clear()
    return may_not_ask(self, digest, now=now)


def reserves_nothing(self, digest, *, now):
    found = may_not_ask(self, digest, now=now)
    return None if found is NoVerdict.CROWDED else found


def logs_the_token(self, token):
    self._runtime.inform("asap.introspection", f"asks about {token}")
    return (yield from ask(self, token))


def judges_no_endpoint(self, name):
    url = getattr((yield from self.metadata()), name) or ENDPOINT
    return Allowed(url, url, urlsplit(url).hostname or "", encrypted=True)


keep, init, judge_token = Introspector._keep, Introspector.__init__, Introspector._judge
abandon, may_not_ask, ask = Introspector.abandon, Introspector._may_not_ask, TokenIntrospection._ask
DEFECTS: Defects = {
    **TABLE_DEFECTS,
    **{name: each for name, each in REQUEST_DEFECTS.items() if name != "nothing is judged"},
    "the endpoint isn't judged": (Provider, "endpoint", judges_no_endpoint),
    "verdicts are kept for ever": (Introspector, "_recall", keeps_for_ever),
    "the wall clock doesn't count": (Introspector, "_keep", forgets_the_wall_clock),
    "guesses evict good tokens": (Introspector, "__init__", keeps_all_in_one_table),
    "inactive tokens are taken": (Introspector, "_judge", takes_what_is_inactive),
    "one verdict for all tokens": (Introspector, "_digest", lambda _self, _token: b""),
    "who leaves stays in the table": (Introspector, "abandon", lambda _self, _waiter: ()),
    "nobody takes over": (Introspector, "abandon", asks_the_next_in_line_too),
    "failures cause no pause": (BackOff, "current", lambda _self, _key, **_: None),
    "an answer doesn't end the failures": (Introspector, "_judge", keeps_counting),
    "each failure is the provider's": (Introspector, "_provider_is_to_blame", lambda *_: True),
    "no failure is the provider's": (Introspector, "_provider_is_to_blame", lambda *_: False),
    "good tokens are strangers": (Introspector, "_may_not_ask", forgets_which_were_good),
    "no place is reserved": (Introspector, "_may_not_ask", reserves_nothing),
    "tokens are logged": (TokenIntrospection, "_ask", logs_the_token),
}


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_caught(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*DEFECTS[defect])
    is_caught(IntrospectionLaws)
