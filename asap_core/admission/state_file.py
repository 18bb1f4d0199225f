"""A state file as values: what an agent must find again after it ended, in order or not.

The file is a line that names it, then batches, each with its length and checksum, each written and synced as one:

    identity   whose it is, and the secret key of its digests; the first record
    lease      nothing dated after this was accepted: written ahead, before anything later is
    reserved   work under an idempotency key has begun: written before it begins
    snapshot   all that was remembered, at an orderly end; the last record, and gone as soon as the next process has it

Rule: what was admitted is on disk before the caller can know. So whatever is found, nothing is admitted twice: after an
orderly end the snapshot tells what was; after any other the lease tells up to when all counts as accepted, and every
reserved key as done or not, nobody knows. A batch that's cut off at the end of the file was never acted upon.
"""

import struct
import zlib
from collections.abc import Iterable
from typing import Any, Final

from attrs import evolve, field, frozen

from asap_core.admission.idempotency import SavedKey
from asap_core.clock import WallTime
from asap_core.errors import BadState
from asap_core.refusals import KINDS, Refusal
from asap_core.wire.handler_reply import Replied
from asap_core.wire.json import MAX_DEPTH, read_json, write_json

_MAGIC: Final = b"asap-sansio state 1\n"
_FRAME: Final = struct.Struct(">III")  # length, CRC-32 of the length, CRC-32 of what follows
_LENGTH: Final = struct.Struct(">I")
_RECORD: Final = struct.Struct(">cI")  # kind and length
_LEASE: Final = struct.Struct(">d")
_RESERVED: Final = struct.Struct(">16s16s")
_IDENTITY_KIND, _LEASE_KIND, _RESERVED_KIND, _SNAPSHOT_KIND = b"I", b"L", b"R", b"S"


@frozen
class StateOwner:
    """Whose state it is: another agent's, or that of another window, is of no use."""

    agent_id: str
    key: bytes = field(repr=False)
    max_age: float
    skew: float


@frozen
class SavedState:
    """What a state file says.

    `guard` is the snapshot of the replay guard, there after an orderly end only; `kept` the keys and answers with it,
    or the keys that were reserved. `leased` is the latest date that may have been accepted, None if nothing was.
    """

    owner: StateOwner
    leased: WallTime | None
    guard: bytes | None
    kept: tuple[SavedKey, ...]


# --- writing ---------------------------------------------------------------------------------------------------------


def write_state(records: Iterable[bytes]) -> bytes:
    """A whole file of these records."""
    return _MAGIC + write_batch(records)


def write_batch(records: Iterable[bytes]) -> bytes:
    """Records to be appended as one: all of them are found again, or none."""
    data = b"".join(records)
    return _FRAME.pack(len(data), zlib.crc32(_LENGTH.pack(len(data))), zlib.crc32(data)) + data


def _record(kind: bytes, data: bytes) -> bytes:
    return _RECORD.pack(kind, len(data)) + data


def identity_record(owner: StateOwner) -> bytes:
    """Say whose the file is."""
    facts = {"agent": owner.agent_id, "key": owner.key.hex(), "max_age": owner.max_age, "skew": owner.skew}
    return _record(_IDENTITY_KIND, write_json(facts))


def lease_record(until: WallTime) -> bytes:
    """Nothing dated after `until` is accepted before there's another lease."""
    return _record(_LEASE_KIND, _LEASE.pack(until))


def reservation_record(key: bytes, digest: bytes) -> bytes:
    """Work under this key begins."""
    return _record(_RESERVED_KIND, _RESERVED.pack(key, digest))


def snapshot_record(guard: bytes, kept: Iterable[SavedKey]) -> bytes:
    """All that's remembered, at an orderly end."""
    kept = tuple(kept)
    try:
        text = write_json([_key_to_json(one) for one in kept])
    except Exception:  # noqa: BLE001 - one answer that can't be written mustn't cost the others
        text = write_json([_key_to_json(one if _is_writable(one) else _without_answer(one)) for one in kept])
    return _record(_SNAPSHOT_KIND, len(text).to_bytes(4, "big") + text + guard)


def _is_writable(kept: SavedKey) -> bool:
    try:
        write_json(_key_to_json(kept), max_depth=MAX_DEPTH - 1)
    except Exception:  # noqa: BLE001 - as above
        return False
    return True


def _without_answer(kept: SavedKey) -> SavedKey:
    """Its key alone: the work isn't done again, and nobody knows what came of it."""
    return evolve(kept, answer=None, size=0, answered=False)


def _key_to_json(kept: SavedKey) -> list[Any]:
    return [kept.key.hex(), kept.digest.hex(), outcome_to_json(kept.answer), kept.size, kept.seconds, kept.answered]


def outcome_to_json(outcome: Any) -> Any:
    """An outcome as plain values; None where there's none."""
    if outcome is None:
        return None
    if isinstance(outcome, Refusal):
        return {"refused": outcome.kind.taxonomy, "note": outcome.note, "details": dict(outcome.details)}
    return {"type": outcome.payload_type, "payload": outcome.payload}


# --- reading ---------------------------------------------------------------------------------------------------------


def read_state(data: bytes) -> SavedState:
    """Read a whole file. Raises `BadState` where it's not one, or damaged anywhere but at its cut-off end."""
    if not data.startswith(_MAGIC):
        raise BadState("expected a state file of asap-sansio, version 1; it isn't one, or of another version")
    try:
        return _saved_state(list(_records(data)))
    except (ValueError, KeyError, TypeError, struct.error):
        raise BadState("expected the records of a state file; what's in it is something else") from None


def _records(data: bytes) -> Iterable[tuple[bytes, bytes]]:
    at = len(_MAGIC)
    while at < len(data):
        body = _batch_at(data, at)
        if body is None:
            if at == len(_MAGIC):
                raise BadState("expected a whole first record: it's written before the file has its name")
            return  # the last batch, cut off while it was written: nobody has acted upon it
        yield from _in_batch(body)
        at += _FRAME.size + len(body)


def _batch_at(data: bytes, at: int) -> bytes | None:
    """What's in the batch at `at`, or None where it was cut off. Raises BadState where it's damaged."""
    start = at + _FRAME.size
    if start > len(data):
        return None
    length, of_length, of_body = _FRAME.unpack_from(data, at)
    # The length has a checksum of its own: a wrong one in the middle would pass for a batch that was cut off.
    if zlib.crc32(_LENGTH.pack(length)) != of_length:
        if data[start:].strip(b"\0"):
            raise BadState(f"expected whole records; at byte {at} it's damaged")
        return None  # a file system made room for what it didn't write
    body = data[start : start + length]
    if len(body) < length or (zlib.crc32(body) != of_body and start + length == len(data)):
        return None
    if zlib.crc32(body) != of_body:
        raise BadState(f"expected whole records; at byte {at} it's damaged")
    return body


def _in_batch(body: bytes) -> Iterable[tuple[bytes, bytes]]:
    at = 0
    while at < len(body):
        kind, length = _RECORD.unpack_from(body, at)
        at += _RECORD.size
        yield kind, body[at : at + length]
        at += length


def _saved_state(records: list[tuple[bytes, bytes]]) -> SavedState:
    if not records or records[0][0] != _IDENTITY_KIND:
        raise BadState("expected a state file that says whose it is")
    leased: WallTime | None = None
    guard: bytes | None = None
    kept: dict[bytes, SavedKey] = {}
    for kind, body in records[1:]:
        guard = None  # a snapshot counts only as the last record
        if kind == _LEASE_KIND:
            leased = WallTime(max(_LEASE.unpack(body)[0], float("-inf") if leased is None else leased))
        elif kind == _RESERVED_KIND:
            key, digest = _RESERVED.unpack(body)
            kept[key] = SavedKey(key, digest, None, 0, 0.0, answered=False)
        elif kind == _SNAPSHOT_KIND:
            size = int.from_bytes(body[:4], "big")
            kept |= {one.key: one for one in map(_read_key, read_json(body[4 : 4 + size]))}
            guard = body[4 + size :]
        else:
            raise BadState("expected records that this version knows")
    return SavedState(_read_owner(records[0][1]), leased, guard, tuple(kept.values()))


def _read_owner(body: bytes) -> StateOwner:
    facts = read_json(body)
    return StateOwner(facts["agent"], bytes.fromhex(facts["key"]), float(facts["max_age"]), float(facts["skew"]))


def _read_key(value: list[Any]) -> SavedKey:
    key, digest, answer, size, seconds, answered = value
    return SavedKey(
        bytes.fromhex(key), bytes.fromhex(digest), read_outcome(answer), size, float(seconds), answered is True
    )


_KIND_OF: Final = {kind.taxonomy: kind for kind in KINDS}


def read_outcome(value: Any) -> Any:
    """Read what `outcome_to_json` wrote. Raises KeyError or TypeError where it's something else."""
    if value is None:
        return None
    if "refused" in value:
        return Refusal(kind=_KIND_OF[value["refused"]], note=value["note"], details=value["details"])
    return Replied(value["type"], value["payload"])
