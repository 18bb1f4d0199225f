"""Admission and limits that processes share in Redis or Valkey: questions as commands, replies as answers.

Pure: this module says what to send and what a reply means; a driver that owns the connection sends it. The decisions
are made by scripts in the server (`asap_core.admission.redis_scripts`), under its clock.

    begin ──▶ begun     first on each connection, and again after each answer `Begin`
    ask ────▶ answer    on the connection on which `begun` was called last
    record, lose, give_back     at any time
    take ───▶ taken
"""

import re
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final

from attrs import frozen

from asap_core.admission.admission import (
    ASK_AGAIN,
    AdmissionAnswer,
    AdmissionQuestion,
    Admitted,
    AnswerGone,
    Future,
    Mismatch,
    OutcomeUnknown,
    Reservation,
    Running,
    Stale,
    Stored,
    key_hash,
    scoped_key,
)
from asap_core.admission.idempotency import GRACE
from asap_core.admission.policy import Policy
from asap_core.admission.ratelimit import Granted, Left, Limit, Limited
from asap_core.admission.redis_scripts import ADMIT, BEGIN, CLAIM, FINISH, SETTLE, TAKE, Script
from asap_core.admission.replay import Floored, Replayed, Saturated
from asap_core.admission.state_file import outcome_to_json, read_outcome
from asap_core.clock import WallTime
from asap_core.errors import BadStore
from asap_core.wire.json import read_json, write_json

# The shortest `retry_after`, in seconds: it covers differences between the server's clock and the processes'.
_LEAST_WAIT: Final = 1.0
# Bytes. An epoch and a sender need to be told apart, 64 bits; nonces and keys mustn't collide, 128 bits.
_SECRET: Final = 32
_EPOCH: Final = 8
_SENDER: Final = 8
_NONCE: Final = 16
_KEY: Final = 16
# The names of the keys in Redis: `asap_core.admission.redis_scripts` says what each holds. CLAIM needs the first three.
_ADMISSION_KEYS: Final = ("meta", "nonces", "live", "ends", "work", "answers", "finished")
_CLAIM_KEYS: Final = 3
_LIMIT_KEYS: Final = ("shares", "whole")
# Stands for all anonymous senders, whose names prove nothing.
_ANYBODY: Final = bytes(_SENDER)
# A date of the year 5138 has 17 digits.
_NUMBER: Final = re.compile(rb"-?[0-9]{1,18}").fullmatch


@frozen
class Command:
    """A script to run, with its keys and arguments."""

    script: Script
    keys: tuple[bytes, ...]
    arguments: tuple[bytes, ...]


@frozen
class Begin:
    """The server has no memory of this epoch: begin again, then ask again."""


def _names(agent_id: str, kinds: Sequence[str]) -> tuple[bytes, ...]:
    # The braces are a hash tag: a server that distributes keys over nodes keeps those of one agent together.
    scope = blake2b(agent_id.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    return tuple(f"asap:{{{scope}}}:{kind}".encode("ascii") for kind in kinds)


def _micros(seconds: float) -> bytes:
    return b"%d" % round(seconds * 1e6)


def _seconds(micros: object) -> float:
    if not isinstance(micros, bytes) or not _NUMBER(micros):
        raise BadStore("expected a number of microseconds; what came is something else")
    return int(micros) / 1e6


_PLAIN: Final[dict[bytes, AdmissionAnswer | Begin]] = {
    b"begin": Begin(),
    b"replayed": Replayed(),
    b"mismatch": Mismatch(),
    b"gone": AnswerGone(),
    b"lost": OutcomeUnknown(),
}
_TIMED: Final[dict[bytes, Callable[[float], AdmissionAnswer]]] = {
    b"running": lambda left: Running(min(left, ASK_AGAIN)),
    b"saturated": lambda left: Saturated(max(left, _LEAST_WAIT)),
    b"floored": lambda left: Floored(max(left, 0.0) + _LEAST_WAIT),
    b"stale": lambda wall: Stale(WallTime(wall)),
    b"future": lambda wall: Future(WallTime(wall)),
}
# The positions of the key and the token among the arguments of `ask`.
_KEY_AT: Final = 8
_TOKEN_AT: Final = 10


class SharedAdmission:
    """Admission of one agent, shared by all processes that serve it.

    secret: 32 random bytes, a proposal: the secret of the first process that begins becomes that of all.

    Send each question on the connection on which `begun` was called last: which server is at its other end can't
    change while the connection lives.
    """

    def __init__(self, agent_id: str, policy: Policy, *, secret: bytes) -> None:
        if len(secret) != _SECRET:
            raise ValueError(f"expected a secret of {_SECRET} random bytes")
        self.keys = _names(agent_id, _ADMISSION_KEYS)
        """The names of the keys in Redis that hold what was admitted."""
        self._policy = policy
        self._secret = secret
        self._epoch = _epoch(secret)
        self._server = b""  # no server: a question before `begun` is answered with `Begin`
        self._window = _micros(policy.max_age), _micros(policy.skew)

    # --- begin -------------------------------------------------------------------------------------------------------

    def begin(self) -> Command:
        """Return the command that sets up this agent's memory in the server, or joins the processes that did.

        If the server restarted or was replaced, the script raises the floor as `Policy.start` says.
        """
        policy = self._policy
        arguments = (self._secret, self._epoch, policy.start.value.encode("ascii"), *self._window)
        return Command(BEGIN, self.keys[:1], arguments)

    def begun(self, reply: object) -> None:
        """Take over the server's reply to `begin`. Raises `BadStore` if the server can't be used."""
        match reply:
            case [b"begun", bytes(server), bytes(secret), bytes(epoch)] if _epoch(secret) == epoch:
                self._server, self._secret, self._epoch = server, secret, epoch
            case [b"evicts"]:
                raise BadStore("expected maxmemory-policy noeviction: a server that evicts forgets what was accepted")
            case [b"window", bytes(max_age), bytes(skew)]:
                raise BadStore(
                    f"expected a policy with max_age={_seconds(max_age):g}, skew={_seconds(skew):g}, as the other "
                    "processes of this agent have"
                )
            case _:
                raise BadStore("expected the memory of an agent; what's there is something else")

    # --- a question --------------------------------------------------------------------------------------------------

    def ask(self, question: AdmissionQuestion, *, token: bytes) -> Command:
        """Return the command that decides, and claims what is new.

        token: 8 random bytes that identify the reservation, if one is made.
        """
        policy, key = self._policy, question.idempotency_key
        most = policy.nonces_per_sender if question.authenticated else max(policy.nonce_capacity // 2, 1)
        claim = (
            self._server,
            self._epoch,
            _micros(question.issued),
            b"" if question.nonce is None else self._sender(question) + self._nonce(question, question.nonce),
            b"%d" % most,
            b"%d" % policy.nonce_capacity,
            *self._window,
        )
        if key is None:
            return Command(CLAIM, self.keys[:_CLAIM_KEYS], claim)
        return Command(
            ADMIT,
            self.keys,
            (
                *claim,
                scoped_key(question, key, key_hash(self._secret)),
                question.digest,
                token,
                _micros(question.deadline + GRACE),
                _micros(policy.idempotency_ttl),
                b"%d" % policy.idempotency_entries,
            ),
        )

    def answer(self, reply: object, command: Command) -> AdmissionAnswer | Begin:
        """Read the server's reply to `command`, which `ask` returned. Raises `BadStore` if it isn't an answer."""
        match reply:
            case [b"admitted"]:
                return Admitted(self.reservation_of(command))
            case [bytes(word)] if word in _PLAIN:
                return _PLAIN[word]
            case [b"stored", bytes(text)]:
                return Stored(_read_outcome(text))
            case [bytes(word), bytes(number)] if word in _TIMED:
                return _TIMED[word](_seconds(number))
            case _:
                raise BadStore("expected an answer of admission; what came is something else")

    def _nonce(self, question: AdmissionQuestion, nonce: str) -> bytes:
        text = f"{question.authenticated:d}{len(question.sender)}:{question.sender}{nonce}"
        return blake2b(text.encode("utf-8", "surrogatepass"), key=self._secret, digest_size=_NONCE).digest()

    def _sender(self, question: AdmissionQuestion) -> bytes:
        if not question.authenticated:
            return _ANYBODY
        text = question.sender.encode("utf-8", "surrogatepass")
        return blake2b(text, key=self._secret, digest_size=_SENDER, person=b"sender").digest()

    # --- a reservation's end -----------------------------------------------------------------------------------------

    def record(self, reservation: Reservation, outcome: object) -> Command:
        """Return the command that keeps the outcome for retries."""
        policy = self._policy
        answer = write_json(outcome_to_json(outcome))
        limits = _micros(policy.idempotency_ttl), b"%d" % policy.idempotency_bytes
        return Command(FINISH, self.keys, (*_split(reservation), answer, *limits))

    def lose(self, reservation: Reservation) -> Command:
        """Return the command that notes that the handler was cut off."""
        return self._settle(reservation, b"lost")

    def give_back(self, reservation: Reservation) -> Command:
        """Return the command that frees the key, since the handler never ran."""
        return self._settle(reservation, b"free")

    def _settle(self, reservation: Reservation, how: bytes) -> Command:
        ttl = _micros(self._policy.idempotency_ttl)
        return Command(SETTLE, self.keys, (*_split(reservation), how, ttl))

    def reservation_of(self, command: Command) -> Reservation | None:
        """Return what `command`, which `ask` returned, reserves if it's admitted; None if it has no key.

        Give it back if the reply to `command` was lost.
        """
        if command.script is not ADMIT:
            return None
        return Reservation(command.arguments[_KEY_AT] + command.arguments[_TOKEN_AT])


def _epoch(secret: bytes) -> bytes:
    return blake2b(secret, digest_size=_EPOCH, person=b"epoch").digest()


def _split(reservation: Reservation) -> tuple[bytes, bytes]:
    return reservation.key[:_KEY], reservation.key[_KEY:]


def _read_outcome(text: bytes) -> object:
    try:
        return read_outcome(read_json(text))
    except (ValueError, KeyError, TypeError):
        raise BadStore("expected an answer that this version wrote; what's stored is something else") from None


# --- limits ----------------------------------------------------------------------------------------------------------


class SharedLimits:
    """Rate limits shared by all processes that serve an agent.

    scope: names the purpose, "peer" or "principal", so that both can limit the same key.
    capacity: the largest number of keys remembered.
    """

    def __init__(self, agent_id: str, scope: str, limits: tuple[Limit, ...], *, capacity: int) -> None:
        self._keys = _names(agent_id, [f"{scope}-{kind}" for kind in _LIMIT_KEYS])
        self._limits = limits
        self._capacity = b"%d" % capacity
        self._rates = tuple(part for limit in limits for part in (_micros(limit.per), b"%d" % limit.amount))

    def take(self, key: str, *, cost: int, partial: bool) -> Command:
        """Return the command that takes `cost` of the share of `key`, or nothing; if `partial`, as much as is left."""
        name = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=_KEY).digest()
        return Command(TAKE, self._keys, (name, b"%d" % cost, b"%d" % partial, self._capacity, *self._rates))

    def taken(self, reply: object) -> Granted | Limited:
        """Read the server's reply to `take`. Raises `BadStore` if it isn't an answer."""
        match reply:
            case [b"limited", bytes(wait), bytes(which)] if which.isdigit() and int(which) < len(self._limits):
                return Limited(_seconds(wait), str(self._limits[int(which)]))
            case [b"taken", bytes(granted), *owed] if granted.isdigit() and len(owed) == len(self._limits):
                return Granted(int(granted), tuple(map(_left, self._limits, map(_seconds, owed))))
            case _:
                raise BadStore("expected an answer of a limiter; what came is something else")


# Times are whole microseconds: a tolerance, in units of a limit's amount, for what rounding takes away.
_ROUNDING: Final = 1e-3


def _left(limit: Limit, owed: float) -> Left:
    owed = max(owed, 0.0)
    return Left(limit, max(int((limit.per - owed) * limit.amount / limit.per + _ROUNDING), 0), owed)
