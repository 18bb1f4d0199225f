"""What the agent remembers: nonces, so that nothing is accepted twice, and answers by their idempotency keys.

A nonce is kept for the whole window by the monotonic clock. When it's forgotten, its sender's floor rises to its date:
what is dated at or before the floor is refused, so that no step of the wall clock makes it acceptable again.
"""

import unicodedata
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from asap_core.testing.planted.messages import PlantedOptions
from asap_core.testing.planted.refusals import CallFault
from asap_core.testing.planted.switches import Breaks

Seen = tuple[str, ...]


# With these a forgotten nonce leaves no floor behind.
_FORGETFUL: Final = (
    "replay.forgotten_after_a_minute",
    "replay.forgotten_after_max_age",
    "replay.forgotten_early",
    "replay.by_the_wall_clock",
    "replay.no_floor",
)


@dataclass
class Nonces:
    """The nonces of each sender."""

    options: PlantedOptions
    broken: Breaks
    seen: dict[Seen, tuple[float, float]] = field(default_factory=dict)
    """For each nonce when it was claimed by the monotonic clock, and its date."""
    floors: dict[str, float] = field(default_factory=dict)
    started: float = float("-inf")
    """The date of the last start, if there was one before it."""

    def claim(self, envelope: dict[str, Any], issued: float, *, now: float, wall: float) -> None:
        """Claim the nonce of an envelope. Raises CallFault if it was seen before or can't be remembered."""
        self._forget(now, wall)
        sender = envelope["sender"]
        key = self._key(envelope)
        if key in self.seen and not self.broken("replay.accepted"):
            if self.broken("replay.third_time"):
                del self.seen[key]
            raise CallFault("replayed", note="Invalid envelope nonce", details=self._named(envelope))
        start = float("-inf") if self.broken("replay.forgotten_at_a_start") else self.started
        floor = max(self.floors.get(sender, start), start)
        if issued <= floor:
            raise CallFault("restarted", retry_after=max(floor - wall, 0.0) + 1.0)
        of_sender = [other for other in self.seen if other[0] == sender] if self._is_nearly_full() else []
        if len(of_sender) >= self.options.nonces_per_sender:
            if not self.broken("replay.evicted_at_the_bound"):
                raise CallFault("saturated", retry_after=1.0)
            del self.seen[of_sender[0]]
        if self.broken("replay.last_hundred_only") and len(self.seen) >= 100:
            del self.seen[next(iter(self.seen))]
        if self.broken("replay.last_thousand_only") and len(self.seen) >= 1_000:
            del self.seen[next(iter(self.seen))]
        if not self._is_id_lost(envelope, key):
            self.seen[key] = (wall if self.broken("replay.by_the_wall_clock") else now, issued)

    def _is_id_lost(self, envelope: dict[str, Any], key: Seen) -> bool:
        if key[1] != "id":
            return False
        some = envelope["extensions"] is not None and self.broken("replay.id_of_some_not_remembered")
        return some or self.broken("replay.id_not_remembered")

    def knows(self, envelope: dict[str, Any]) -> bool:
        """Whether the nonce of an envelope is remembered."""
        return self._key(envelope) in self.seen

    def forget(self, envelope: dict[str, Any]) -> None:
        """Forget the nonce of an envelope. Only a broken agent does."""
        self.seen.pop(self._key(envelope), None)

    def _is_nearly_full(self) -> bool:
        return len(self.seen) >= self.options.nonces_per_sender

    def _named(self, envelope: dict[str, Any]) -> dict[str, object]:
        return {"nonce": (envelope["extensions"] or {}).get("nonce")} if self.broken("errors.echo_nonce") else {}

    def _key(self, envelope: dict[str, Any]) -> Seen:
        sender, nonce = envelope["sender"], (envelope["extensions"] or {}).get("nonce")
        if nonce is None or self.broken("replay.by_envelope_id"):
            return sender, "id", envelope["id"]
        if self.broken("replay.nonce_and_id_are_one"):
            return sender, "id", nonce
        if self.broken("replay.shared_by_senders"):
            return "", "nonce", nonce
        if self.broken("replay.nonce_case"):
            nonce = nonce.lower()
        if self.broken("replay.nonce_trimmed"):
            nonce = nonce.strip()
        if self.broken("replay.nonce_normalised"):
            nonce = unicodedata.normalize("NFC", nonce)
        if self.broken("replay.nonce_cut"):
            nonce = nonce[:8]
        if self.broken("replay.nonce_cut_late"):
            nonce = nonce[:1_000]
        if self.broken("replay.same_nonce_other_id"):
            return sender, "nonce", nonce, envelope["id"]
        if self.broken("replay.same_nonce_other_timestamp"):
            return sender, "nonce", nonce, str(envelope["timestamp"])
        if self.broken("replay.same_nonce_other_payload"):
            return sender, "nonce", nonce, str(envelope["payload"])
        if self.broken("replay.same_nonce_other_type_spelling"):
            return sender, "nonce", nonce, envelope["payload_type"]
        return sender, "nonce", nonce

    def _forget(self, now: float, wall: float) -> None:
        keep = self.options.max_age + self.options.skew
        if self.broken("replay.forgotten_after_a_minute"):
            keep = 60.0
        if self.broken("replay.forgotten_after_max_age"):
            keep = self.options.max_age
        if self.broken("replay.forgotten_early"):
            keep = self.options.max_age + self.options.skew / 2
        clock = wall if self.broken("replay.by_the_wall_clock") else now
        loose = any(map(self.broken, _FORGETFUL))
        old = []
        for key, (claimed, issued) in self.seen.items():
            # In the order in which they came: the first that is young enough ends it.
            if clock - claimed < keep:
                break
            # A wall clock that was set back makes an old date fresh: it's kept for as long as that lasts.
            if loose or wall > issued + self.options.max_age:
                old.append((key, issued))
        for key, issued in old:
            del self.seen[key]
            if not loose:
                self.floors[key[0]] = max(issued, self.floors.get(key[0], issued))


@dataclass
class KeptAnswer:
    """An idempotency key: what was asked under it and, when that is done, its outcome and when to forget it."""

    asked: str
    outcome: Any = None
    until: float = float("inf")


def compared_key(key: str, broken: Breaks) -> str:
    """Return an idempotency key as it's compared: whole, unless the agent is broken."""
    if broken("idempotency.key_case"):
        key = key.lower()
    if broken("idempotency.key_cut"):
        key = key[:16]
    if broken("idempotency.key_cut_late"):
        key = key[:128]
    if broken("idempotency.key_cut_at_255"):
        key = key[:255]
    if broken("idempotency.key_normalised"):
        key = unicodedata.normalize("NFC", key)
    if broken("idempotency.key_trimmed"):
        key = key.strip()
    return key


def with_numbers(value: Any) -> Any:
    """Return a value with 1 in place of true, and 0 in place of false, as `==` has it."""
    match value:
        case dict():
            return {key: with_numbers(value[key]) for key in sorted(value)}
        case list():
            return [with_numbers(each) for each in value]
        case bool():
            return int(value)
    return value


@dataclass
class Keys:
    """Idempotency keys, each within its caller's scope."""

    options: PlantedOptions
    broken: Breaks
    kept: dict[Seen, KeptAnswer] = field(default_factory=dict)
    # Finished ones in the order in which they'll be forgotten.
    finished: deque[tuple[float, Seen]] = field(default_factory=deque)

    def begin(self, scope: Seen, asked: str, *, now: float) -> KeptAnswer:
        """Return what is kept under a key, or the new record of one that is unknown. Raises CallFault."""
        while self.finished and self.finished[0][0] <= now:
            until, old = self.finished.popleft()
            if old in self.kept and self.kept[old].until == until:
                del self.kept[old]
        known = self.kept.get(scope)
        if known is None:
            if self.broken("idempotency.last_hundred_only") and len(self.kept) >= 100:
                del self.kept[next(iter(self.kept))]
            if self.broken("idempotency.last_thousand_only") and len(self.kept) >= 1_000:
                del self.kept[next(iter(self.kept))]
            return self.kept.setdefault(scope, KeptAnswer(asked))
        if known.asked != asked and not self.broken("idempotency.other_request"):
            raise CallFault("key")
        if known.outcome is None:
            raise CallFault("running", retry_after=0.5)
        return known

    def finish(self, scope: Seen, outcome: Any, *, now: float) -> None:
        """Keep the outcome of the work under a key."""
        keep = 60.0 if self.broken("idempotency.forgotten_after_a_minute") else self.options.keys_kept
        kept = self.kept[scope]
        kept.outcome, kept.until = outcome, now + keep
        self.finished.append((kept.until, scope))

    def free(self, scope: Seen) -> None:
        """Forget a key under which nothing was run."""
        del self.kept[scope]
