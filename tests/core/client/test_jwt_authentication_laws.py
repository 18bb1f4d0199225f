"""The laws of verifying tokens by an issuer's keys, for any outcomes in any order, closed or collected at any yield.

(a) When nobody waits any longer, no flight, waiter, wake or undo is left.
(b) There's one live fetch for each document. A token is accepted only by a key of the last set, within its time; it's
    refused for an unknown key only if the provider has answered within the cool-down; it's undecided only after a
    failure.
(f) Nothing is fetched that the outbound policy refuses. The provider isn't asked more often than allowed: neither
    the tokens that arrive nor callers that leave change that.
(g) The same script gives the same effects.
"""

from typing import Any
from urllib.parse import urlsplit

import pytest
from attrs import frozen
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from asap_core.auth.claims import Accepted
from asap_core.auth.jwks import OkpKey, VerificationKey, public_jwk
from asap_core.auth.jwt import JwtVerifier, VerifySignature
from asap_core.auth.keyring import KeyRing, NoFetch
from asap_core.auth.principal import Authenticated, Credential
from asap_core.client.jwt_authentication import JwtAuthentication, ProviderUnavailable
from asap_core.client.programs import Fetch, Returned
from asap_core.client.requests import Requests
from asap_core.clock import Instant
from asap_core.net.outbound import OutboundPolicy
from tests.core.auth.tokens import ALICE, GOOD, ISSUER, WALL, policy, token as jwt
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
from tests.core.client.scripted import Answer, Reply, Run

FRESH, STALE, COOL_DOWN, MOST_KNOWN = 60.0, 100.0, 10.0, 2
# Unusable metadata is cached, too. Then the longest pause after its failures, with jitter, and one of the key ring.
LONGEST_PAUSE = FRESH + 30.0 * 1.1 + COOL_DOWN
# The first two are published at first.
KEYS = tuple(OkpKey(f"k{number}", bytes([number]) * 32) for number in range(1, 7))
HOSTS = ("id.example", "keys.example")
METADATA = {
    "metadata": f"{ISSUER}/keys", "keys elsewhere": "https://keys.example/keys",
    "keys inside": "https://169.254.169.254/keys", "keys in plain text": "http://keys.example/keys", "no keys": None,
}  # fmt: skip
KEY_SETS = ("keys", "keys not to be stored", "not modified", "moved")
TOLERANCE = 1e-6


@frozen
class Shown:
    """A token. `key`: the number of the key that it names. `forged`: another one signed it."""

    key: int
    forged: bool
    again: bool

    @property
    def text(self) -> str:
        key = KEYS[self.key]
        claims = {**GOOD, "exp": WALL + 1_000_000, "jti": self.again}
        return jwt(claims, signature=bytes(64) if self.forged else key.x + bytes(32), kid=key.kid)


def verify(key: VerificationKey, _signed: bytes, signature: bytes) -> bool:
    return isinstance(key, OkpKey) and signature == key.x + bytes(32)


class Keys(World):
    """A provider that rotates its keys, and a server that accepts its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = Requests(self.runtime, policy=OutboundPolicy(redirects=2))
        rules = policy(fresh_for=FRESH, stale_for=STALE, cool_down=COOL_DOWN, max_known=MOST_KNOWN)
        self.tokens = JwtAuthentication(
            self.runtime, self.requests, rules, verify_signature=verify, verify_proof=verify, secret=b"s" * 32
        )
        self.shown: dict[Run[Any], Shown] = {}
        self.version = 0
        # The keys that the provider sent or confirmed last, and when; when it was asked first, and failed, for the
        # last time.
        self.known: frozenset[int] = frozenset()
        self.told = self.begun = self.failure = -1e9

    @property
    def tables(self) -> tuple[int, ...]:
        return self.tokens.waiting, *self.documents

    @property
    def documents(self) -> tuple[int, int]:
        return self.tokens._keys.waiting, self.tokens._provider._documents.waiting

    @property
    def age(self) -> float:
        return self.clock.monotonic() - self.told

    @property
    def usable(self) -> bool:
        return self.age < FRESH + STALE

    # --- commands ----------------------------------------------------------------------------------------------------

    def show(self, token: Shown) -> None:
        alone, now = not self.runs, self.clock.monotonic()
        run = self.start(self.tokens.verify(Credential(token.text)))
        self.shown[run] = token
        if alone and isinstance(run.effect, Fetch):
            pause = COOL_DOWN if self.usable else 1.0
            assert now >= self.begun + pause - TOLERANCE, "the provider is asked again and again"
            self.begun = now
        self.look(run)

    def rotate(self, times: int) -> None:
        self.version += times

    def tell(self, which: int, metadata: str, keys: str) -> None:
        """Answer a request, for metadata or for keys."""
        run = self.chosen(which, Fetch)
        if run is not None:
            assert isinstance(run.effect, Fetch)
            self.answer(run, self.made(run.effect, metadata if is_metadata(run.effect) else keys))

    def tell_all(self, name: str) -> None:
        """Answer the requests under way, and those that follow, like this."""
        for _ in range(2):
            for run in [each for each in self.runs if isinstance(each.effect, Fetch)]:
                assert isinstance(run.effect, Fetch)
                self.answer(run, self.made(run.effect, "metadata" if is_metadata(run.effect) else name))
        self.settle()

    def made(self, fetch: Fetch, name: str) -> Reply:
        if name == "moved":
            return answer(status=307, location=f"{urlsplit(fetch.url).path}/moved")
        if is_metadata(fetch):
            if name in FAILURES:
                return FAILURES[name]
            return answer({"issuer": ISSUER, "jwks_uri": METADATA.get(name, METADATA["metadata"])})
        if name in FAILURES:
            return FAILURES[name]
        if name == "not modified":
            return answer(b"", 304, etag=dict(fetch.headers).get("if-none-match", '"0"'))
        published = [{**public_jwk(KEYS[each]), "kid": KEYS[each].kid} for each in sorted(self.published)]
        control = "no-store" if name == "keys not to be stored" else "max-age=1000"
        return answer({"keys": published}, etag=f'"{self.version}"', cache_control=control)

    @property
    def published(self) -> frozenset[int]:
        return keys_of(self.version)

    # --- the model ---------------------------------------------------------------------------------------------------

    def left(self, run: Run[Any]) -> None:
        # The last one who leaves counts as a failure: it may have left only so that the next one asks.
        self.failure = self.clock.monotonic()
        del self.shown[run]

    def answer(self, run: Run[Any], reply: Reply) -> None:
        if isinstance(run.effect, Fetch):
            self.note(run.effect, reply)
        super().answer(run, reply)
        self.look(run)

    def note(self, fetch: Fetch, reply: Reply) -> None:
        """What is known, once this reply is there."""
        now, keys = self.clock.monotonic(), None
        if isinstance(reply, Answer) and reply.failure is None and not is_metadata(fetch):
            asked = dict(fetch.headers).get("if-none-match")
            if reply.status == 200 and reply.body != b"!":
                keys = self.published
            elif reply.status == 304 and asked is not None:
                keys = keys_of(int(asked.strip('"')))
        if keys is not None:
            self.known, self.told = keys, now
        else:
            self.failure = now

    def look(self, run: Run[Any]) -> None:
        if isinstance(run.effect, Fetch):
            leads_outside(run.effect, HOSTS)
        elif run.effect is None:
            self.judge(self.shown.pop(run), run.end)
            self.note_end(run)

    def judge(self, token: Shown, end: object) -> None:
        """Judge the end of a program by what the provider said last."""
        now = self.clock.monotonic()
        match end:
            case Returned(Authenticated(urn)):
                assert urn == ALICE
                assert not token.forged, "a forged token is accepted"
                assert token.key in self.known, "a key is used that the provider doesn't have"
                assert self.usable, "keys are used that are too old"
            case Returned(None) if token.forged and token.key in self.known and self.usable:
                pass
            case Returned(None):
                assert token.key not in self.known, "a good token is refused"
                assert self.age <= COOL_DOWN + TOLERANCE, "refused, though the provider may have another key by now"
            case ProviderUnavailable():
                assert not (token.key in self.known and self.usable), "undecided, with its key at hand"
                assert self.failure >= self.told, "undecided, though the provider hasn't failed"
                assert now - self.failure <= LONGEST_PAUSE + TOLERANCE, "the provider is left alone for too long"
            case _:
                raise AssertionError(f"another end: {end!r}")


def is_metadata(fetch: Fetch) -> bool:
    return "/.well-known/" in fetch.url


def keys_of(version: int) -> frozenset[int]:
    """Two at a time, each in two sets."""
    return frozenset({version % len(KEYS), (version + 1) % len(KEYS)})


# --- the laws --------------------------------------------------------------------------------------------------------

TOKENS = st.builds(
    Shown, st.sampled_from([0, 0, 1, 1, *range(len(KEYS))]), st.sampled_from([False, False, True]), st.booleans()
)
METADATA_REPLIES = st.sampled_from([*METADATA, *METADATA, *FAILURES, "moved"])
KEY_REPLIES = st.sampled_from([*KEY_SETS, *KEY_SETS, *FAILURES])


class KeyLaws(ProgramMachine):
    world_of: Any = staticmethod(Keys)

    @initialize(known=st.booleans())
    def the_keys_were_fetched(self, known: bool) -> None:
        if known:
            self.do("show", Shown(0, forged=False, again=False))
            self.do("tell_all", "keys")
            self.do("advance", COOL_DOWN)

    @rule(token=TOKENS)
    def show(self, token: Shown) -> None:
        self.do("show", token)

    @rule(tokens=st.lists(TOKENS, min_size=2, max_size=4))
    def show_several(self, tokens: list[Shown]) -> None:
        for token in tokens:
            self.do("show", token)

    @rule()
    def rotate(self) -> None:
        self.do("rotate", 1)

    @rule(token=TOKENS, lost=st.booleans())
    def show_and_leave(self, token: Shown, lost: bool) -> None:
        self.do("show", token)
        self.do("leave", -1, lost)

    @rule(token=TOKENS, times=st.integers(0, 2), seconds=st.sampled_from([COOL_DOWN, FRESH]))
    def the_keys_are_fetched_again(self, token: Shown, times: int, seconds: float) -> None:
        self.do("rotate", times)
        self.do("advance", seconds)
        self.do("show", token)
        self.do("tell_all", "keys")

    @rule(which=NUMBERS, metadata=METADATA_REPLIES, keys=KEY_REPLIES)
    def tell(self, which: int, metadata: str, keys: str) -> None:
        self.do("tell", which, metadata, keys)

    @rule(token=TOKENS, seconds=st.sampled_from([1.0, COOL_DOWN]), metadata=METADATA_REPLIES, keys=KEY_REPLIES)
    def the_provider_is_asked(self, token: Shown, seconds: float, metadata: str, keys: str) -> None:
        self.do("advance", seconds)
        self.do("show", token)
        self.do("tell", 0, metadata, keys)

    @rule(reply=st.sampled_from([*KEY_SETS[:3], "not connected", "down"]))
    def tell_all(self, reply: str) -> None:
        self.do("tell_all", reply)

    @rule(seconds=st.sampled_from([0.5, 1.0, COOL_DOWN, COOL_DOWN + 1.0, FRESH, STALE]))
    def time_passes(self, seconds: float) -> None:
        self.do("advance", seconds)

    @rule()
    def all_who_can_go_on_do(self) -> None:
        self.do("settle")
        assert sum(self.world.documents) == len(self.world.runs), "somebody isn't told what came"
        assert bool(self.world.requested()) == bool(self.world.runs), "all wait, and nobody fetches"

    @invariant()
    def there_is_one_live_fetch_for_each_document(self) -> None:
        urls = [fetch.url for fetch in self.world.requested()]
        assert len(urls) == len(set(urls)), "a second fetch of one document"

    @invariant()
    def the_tables_are_bounded(self) -> None:
        assert len(self.world.tokens._verifier) <= MOST_KNOWN
        if not self.world.runtime._undone:
            assert self.world.tokens.waiting <= len(self.world.runs), "who left still waits"


def test_verifying_tokens_keeps_its_laws() -> None:
    keeps_its_laws(KeyLaws)


# --- planted defects -------------------------------------------------------------------------------------------------


def leaves_without_a_pause(self, fetch, *, now):
    self._flights.leave(fetch)


def counts_any_answer(self, fetch, keys, *, age, now):
    self._land(fetch)
    self.keys, self._vouched = keys, max(self._vouched, Instant(now - age))
    self._failures.forget(None)


def believes_any_key_set_to_be_new(self, fetch, keys, *, age, now):
    fetched(self, fetch, keys, age=0.0, now=now)


def fetches_for_each_unknown_key(self, *, now):
    self._next_again = now
    return due(self, now=now)


def refuses_during_an_outage(self, *, now):
    found = missing(self, now=now)
    return NoFetch.UNKNOWN if isinstance(found, NoFetch) else found


def keeps_what_a_withdrawn_key_signed(self, digest, _keys, *, at):
    known = self._known.peek(digest)
    return None if known is None else known.accepted


def takes_bad_signatures(self):
    return Accepted(Authenticated(ALICE), WALL + 100)


fetched, missing, due = KeyRing.fetched, KeyRing.missing, KeyRing.due
DEFECTS: Defects = {
    **TABLE_DEFECTS,
    **REQUEST_DEFECTS,
    "who leaves stays in the table": (KeyRing, "abandoned", lambda _self, _fetch, **_: None),
    "who leaves causes another fetch": (KeyRing, "abandoned", leaves_without_a_pause),
    "a cached set answers for an unknown key": (KeyRing, "fetched", believes_any_key_set_to_be_new),
    "the cool-down doesn't begin with the answer": (KeyRing, "fetched", counts_any_answer),
    "failures cause no pause": (KeyRing, "_fail", lambda _self, **_: None),
    "each unknown key is fetched": (KeyRing, "due", fetches_for_each_unknown_key),
    "unknown keys are refused during an outage": (KeyRing, "missing", refuses_during_an_outage),
    "keys are used for ever": (KeyRing, "usable", lambda self, **_: self.keys),
    "tokens outlive their key": (JwtVerifier, "_recall", keeps_what_a_withdrawn_key_signed),
    "bad signatures are taken": (VerifySignature, "bad", takes_bad_signatures),
}


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_caught(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*DEFECTS[defect])
    is_caught(KeyLaws)
