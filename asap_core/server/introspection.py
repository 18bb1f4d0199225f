"""Tokens that only their provider can read (RFC 7662): asked about once for all who show them, believed for a while.

    lookup ─▶ Judged                      what is kept says so, or nothing may be asked now
           ─▶ Ask ─▶ settle ─▶ Judged     this one asks the provider, for all who show the same token meanwhile
           ─▶ ()                          somebody asks already

Rule of this module: a token is good because the provider said so not long ago, and for no other reason. Tokens are kept
by keyed digests, never as themselves (fault 29).
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from enum import Enum
from hashlib import blake2b
from typing import Any, Final, Generic, TypeVar, assert_never

from attrs import field, frozen, validators

from asap_core.bearer import is_scope, is_token
from asap_core.clock import Instant, WallTime
from asap_core.jsontext import NotJson, read_json
from asap_core.server.claims import Accepted, ByClaim, BySubject, Rejected, agent_of, is_date
from asap_core.server.identity import Authenticated, Insufficient

__all__ = [
    "Answer",
    "Ask",
    "Inactive",
    "IntrospectionPolicy",
    "Introspector",
    "Judged",
    "Question",
    "Trouble",
    "Unanswered",
    "Verdict",
    "judge_answer",
    "read_answer",
]

W = TypeVar("W", bound=Hashable)

# 128 bits under a secret key: nobody finds a second token with the digest of a known one.
_DIGEST: Final = 16
_MAX_DEPTH: Final = 16
_OK: Final = 200
# As long as a host that failed is left alone at first, and at most.
_FIRST_PAUSE: Final = 1.0
_DOUBLINGS: Final = 5


def _names(values: Iterable[str] | None) -> frozenset[str] | None:
    return None if values is None else frozenset([values] if isinstance(values, str) else values)


def _some(_policy: object, _attribute: object, values: frozenset[str] | None) -> None:
    if values is not None and not values:
        raise ValueError("audience: expected whom tokens are for, or None where the provider answers for ours alone")


def _scopes(values: Iterable[str]) -> frozenset[str]:
    found = frozenset([values] if isinstance(values, str) else values)
    if not all(map(is_scope, found)):
        raise ValueError("scopes: expected words of visible ASCII characters without quotes (RFC 6749 §3.3)")
    return found


@frozen(kw_only=True)
class IntrospectionPolicy:
    """Which answers let a bearer in, and for how long they're believed. Seconds throughout."""

    audience: frozenset[str] | None = field(converter=_names, validator=_some)
    """Whom tokens must be for: one of these. None is to leave it to the provider, where it answers for ours alone."""
    agent: ByClaim | BySubject
    """How an answer says which agent the bearer is."""
    issuer: str | None = None
    """Compared character by character, where the answer says who issued the token."""
    scopes: frozenset[str] = field(default=frozenset(), converter=_scopes)
    """What a token must allow, all of it; for want of it a request is answered 403."""
    leeway: float = field(default=30.0, validator=[validators.ge(0), validators.le(300)])
    """How far clocks may differ: the tolerance that envelopes have."""
    most: float = field(default=60.0, validator=validators.gt(0))
    """How long a good answer is believed: a token that's taken back is out after so long. RFC 7662 §4 warns of more."""
    most_refused: float = field(default=10.0, validator=validators.gt(0))
    """How long "not active" is: a token that's new to one half of a provider is known to the other soon."""
    max_kept: int = field(default=10_000, validator=validators.gt(0))
    """Good answers kept, some 500 bytes each; of bad ones as many, so that nobody's guesses push them out."""
    max_asked: int = field(default=100, validator=validators.gt(0))
    """Questions under way at once. Tokens that need one more are told to come again (503)."""


class Trouble(Enum):
    """It can't be told now whether the token is good."""

    PROVIDER = "provider"
    """The provider can't be reached, or doesn't answer as it should; it's asked again later."""
    CROWDED = "crowded"
    """Too many other tokens are being asked about."""


Verdict = Accepted | Insufficient | Rejected | Trouble


# --- what the provider says ------------------------------------------------------------------------------------------


@frozen
class Answer:
    """What the provider says of a token that's active."""

    claims: dict[str, Any] = field(repr=False)


@frozen
class Inactive:
    """The provider doesn't know the token, or it's over, or taken back."""


@frozen
class Unanswered:
    """There's no answer; `expected` says what one would be."""

    expected: str


def read_answer(status: int, body: bytes) -> Answer | Inactive | Unanswered:
    """Read what an introspection endpoint answered (RFC 7662 §2.2). Never raises, whatever the bytes.

    Any other status than 200 is about us, not about the token (§2.3).
    """
    if status != _OK:
        return Unanswered(f"an answer with HTTP 200, not HTTP {status}")
    try:
        value = read_json(body, max_depth=_MAX_DEPTH)
    except NotJson as error:
        return Unanswered(f"an answer in JSON: {error.expected}")
    active = value.get("active") if isinstance(value, dict) else None
    # §2.2: a boolean. What else is true to a language is nobody's permission.
    if type(active) is not bool:
        return Unanswered("an object with active, true or false")
    return Answer(value) if active else Inactive()


def judge_answer(answer: Answer, policy: IntrospectionPolicy, *, wall: WallTime) -> Accepted | Insufficient | Rejected:
    """Judge what the provider says of an active token: `until` is policy's end, or the token's. Never raises."""
    claims = answer.claims
    wrong = _wrong_origin(claims, policy) or _wrong_time(claims, policy, wall=wall)
    if wrong is not None:
        return Rejected(wrong)
    urn = agent_of(claims, policy.agent)
    if urn is None:
        return Rejected("a token of an agent that may call")
    scope = claims.get("scope", "")
    if not isinstance(scope, str):
        return Rejected("a scope that is text")
    held = frozenset(scope.split(" ")) - {""}
    if not policy.scopes <= held:
        return Insufficient(policy.scopes)
    until = wall + policy.most
    if "exp" in claims:
        until = min(until, claims["exp"] + policy.leeway)
    return Accepted(Authenticated(urn, held), WallTime(until))


def _wrong_origin(claims: dict[str, Any], policy: IntrospectionPolicy) -> str | None:
    if policy.issuer is not None and claims.get("iss", policy.issuer) != policy.issuer:
        return "iss, if there, to be the issuer"
    if policy.audience is not None:
        audience = claims.get("aud")
        named = audience if isinstance(audience, list) else [audience]
        if not all(isinstance(each, str) for each in named) or policy.audience.isdisjoint(named):
            return "aud to name this agent"
    kind = claims.get("token_type", "bearer")
    # RFC 7662 §4: an endpoint may answer for other kinds of token too, which nobody may call with.
    if not isinstance(kind, str) or kind.lower() != "bearer":
        return "a bearer token"
    # RFC 7800 §3.1: it's good only for who holds a key, and a bearer's request shows none.
    return "a bearer token, without cnf" if "cnf" in claims else None


def _wrong_time(claims: dict[str, Any], policy: IntrospectionPolicy, *, wall: WallTime) -> str | None:
    # Without one it's good for as long as an answer is believed: the provider is asked again then.
    if "exp" in claims and (not is_date(claims["exp"]) or claims["exp"] + policy.leeway <= wall):
        return "exp, if there, in the future"
    for name in ("nbf", "iat"):
        if name in claims and (not is_date(claims[name]) or claims[name] - policy.leeway > wall):
            return f"{name}, if there, in the past"
    return None


# --- who asks, and what is kept --------------------------------------------------------------------------------------


@frozen(eq=False)
class Question(Generic[W]):
    """One question under way. Compared by identity: a second one about the same token is another."""

    digest: bytes = field(repr=False)
    waiters: dict[W, None] = field(factory=dict, repr=False)


@frozen
class Judged(Generic[W]):
    """Tell this waiter what comes of its token."""

    waiter: W
    verdict: Verdict


@frozen
class Ask(Generic[W]):
    """This waiter asks the provider about its token, and settles the question."""

    waiter: W
    question: Question[W]


Effect = Judged[W] | Ask[W]


@frozen
class _Kept:
    verdict: Accepted | Insufficient | Rejected
    until: Instant
    ends: WallTime


class Introspector(Generic[W]):
    """Judges tokens by one provider's word. One event loop owns it; its methods return at once.

    `secret` is 32 random bytes for the digests that tokens are kept by; no token is kept in clear.
    """

    def __init__(self, policy: IntrospectionPolicy, *, secret: bytes) -> None:
        self.policy = policy
        self._secret = secret
        self._good: OrderedDict[bytes, _Kept] = OrderedDict()
        self._refused: OrderedDict[bytes, _Kept] = OrderedDict()
        self._questions: dict[bytes, Question[W]] = {}
        self._asking: dict[W, Question[W]] = {}
        self._failures = 0
        self._next_try = Instant(float("-inf"))

    def __len__(self) -> int:
        """How many answers are kept."""
        return len(self._good) + len(self._refused)

    @property
    def waiting(self) -> int:
        """How many wait for an answer, those who ask included."""
        return len(self._asking)

    @property
    def asking(self) -> int:
        """How many questions are under way."""
        return len(self._questions)

    def lookup(self, token: str, waiter: W, *, now: Instant, wall: WallTime) -> tuple[Effect[W], ...]:
        """Judge a token: at once, by asking, or (nothing) with the answer that's awaited. Never raises on any text.

        A waiter waits for one token at a time.
        """
        if not is_token(token):
            return (Judged(waiter, Rejected("a token of visible ASCII characters")),)
        digest = blake2b(token.encode("ascii"), key=self._secret, digest_size=_DIGEST).digest()
        kept = self._recall(digest, now=now, wall=wall)
        if kept is not None:
            return (Judged(waiter, kept),)
        question = self._questions.get(digest)
        if question is not None:
            question.waiters[waiter] = None
            self._asking[waiter] = question
            return ()
        if now < self._next_try:
            return (Judged(waiter, Trouble.PROVIDER),)
        if len(self._questions) >= self.policy.max_asked:
            return (Judged(waiter, Trouble.CROWDED),)
        return (self._lead(digest, {waiter: None}),)

    def settle(
        self, question: Question[W], answer: Answer | Inactive | Unanswered, *, now: Instant, wall: WallTime
    ) -> tuple[Effect[W], ...]:
        """The provider answered: one verdict for all who wait. A question that's over already changes nothing."""
        if self._questions.get(question.digest) is not question:
            return ()
        del self._questions[question.digest]
        verdict = self._judge(question.digest, answer, now=now, wall=wall)
        for waiter in question.waiters:
            del self._asking[waiter]
        return tuple(Judged(waiter, verdict) for waiter in question.waiters)

    def abandon(self, waiter: W) -> tuple[Effect[W], ...]:
        """`waiter` was cancelled; idempotent. Where it asked, the next in line asks."""
        question = self._asking.pop(waiter, None)
        if question is None:
            return ()
        asks = next(iter(question.waiters)) == waiter
        del question.waiters[waiter]
        if question.waiters:
            # A new question, so that what the first one may still bring is late.
            return (self._lead(question.digest, question.waiters),) if asks else ()
        del self._questions[question.digest]
        return ()

    def _lead(self, digest: bytes, waiters: dict[W, None]) -> Ask[W]:
        question = self._questions[digest] = Question(digest, dict(waiters))
        for waiter in question.waiters:
            self._asking[waiter] = question
        return Ask(next(iter(question.waiters)), question)

    def _judge(self, digest: bytes, answer: Answer | Inactive | Unanswered, *, now: Instant, wall: WallTime) -> Verdict:
        if isinstance(answer, Unanswered):
            # Those that were asked together failed together.
            if now >= self._next_try:
                self._failures += 1
                self._next_try = Instant(now + _FIRST_PAUSE * 2.0 ** min(self._failures - 1, _DOUBLINGS))
            return Trouble.PROVIDER
        self._failures, self._next_try = 0, Instant(float("-inf"))
        if isinstance(answer, Answer):
            verdict = judge_answer(answer, self.policy, wall=wall)
        else:
            verdict = Rejected("a token that's active")
        self._keep(digest, verdict, now=now, wall=wall)
        return verdict

    def _recall(self, digest: bytes, *, now: Instant, wall: WallTime) -> Verdict | None:
        for table in (self._good, self._refused):
            kept = table.get(digest)
            if kept is not None:
                # Its end counts on both clocks, whichever is there first.
                if now < kept.until and wall < kept.ends:
                    table.move_to_end(digest)
                    return kept.verdict
                del table[digest]
        return None

    def _keep(
        self, digest: bytes, verdict: Accepted | Insufficient | Rejected, *, now: Instant, wall: WallTime
    ) -> None:
        match verdict:
            case Accepted(_, until):
                table, ends = self._good, until
            case Insufficient():
                table, ends = self._good, WallTime(wall + self.policy.most_refused)
            case Rejected():
                table, ends = self._refused, WallTime(wall + self.policy.most_refused)
            case _:
                assert_never(verdict)
        table[digest] = _Kept(verdict, Instant(now + (ends - wall)), ends)
        if len(table) > self.policy.max_kept:
            table.popitem(last=False)
