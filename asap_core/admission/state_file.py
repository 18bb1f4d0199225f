"""The format of a state file: what an agent must find again after its process ended, in order or by a crash.

The file is one line that identifies the format, then batches of records. Each batch has a length and checksums, and is
written and synced as one:

    identity   the agent whose state it is, and the secret key of its digests; the first record
    lease      nothing dated after this was accepted; written before anything later is accepted
    reserved   work under an idempotency key has begun; written before it begins
    snapshot   everything that was remembered at an orderly shutdown; the last record, dropped by the next process

Rule 1: what was admitted is on disk before its caller can know, so nothing is admitted twice.

Rule 2: after an orderly shutdown the snapshot says what was accepted. After a crash everything dated up to the end of
the lease counts as accepted, and the outcome of every reserved key as unknown.

Rule 3: a batch that is cut off at the end of the file was never acted upon, so it's ignored. Damage anywhere else makes
the file unusable.
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
    """The agent and window that a file belongs to. The state of another agent or window can't be used."""

    agent_id: str
    key: bytes = field(repr=False)
    max_age: float
    skew: float


@frozen
class SavedState:
    """The content of a state file.

    leased: the latest timestamp that may have been accepted; None if nothing was.
    guard: the snapshot of the replay guard; None unless the shutdown was orderly.
    kept: the keys and answers of the snapshot or, without one, the reserved keys.
    """

    owner: StateOwner
    leased: WallTime | None
    guard: bytes | None
    kept: tuple[SavedKey, ...]


# --- writing ---------------------------------------------------------------------------------------------------------


def write_state(records: Iterable[bytes]) -> bytes:
    """Return a whole file of these records."""
    return _MAGIC + write_batch(records)


def write_batch(records: Iterable[bytes]) -> bytes:
    """Return records as one batch: a reader finds all of them, or none."""
    data = b"".join(records)
    return _FRAME.pack(len(data), zlib.crc32(_LENGTH.pack(len(data))), zlib.crc32(data)) + data


def _record(kind: bytes, data: bytes) -> bytes:
    return _RECORD.pack(kind, len(data)) + data


def identity_record(owner: StateOwner) -> bytes:
    """Return the record that says whose state it is."""
    facts = {"agent": owner.agent_id, "key": owner.key.hex(), "max_age": owner.max_age, "skew": owner.skew}
    return _record(_IDENTITY_KIND, write_json(facts))


def lease_record(until: WallTime) -> bytes:
    """Return the record of a lease: nothing dated after `until` is accepted before there's another."""
    return _record(_LEASE_KIND, _LEASE.pack(until))


def reservation_record(key: bytes, digest: bytes) -> bytes:
    """Return the record that work under this key begins."""
    return _record(_RESERVED_KIND, _RESERVED.pack(key, digest))


def snapshot_record(guard: bytes, kept: Iterable[SavedKey]) -> bytes:
    """Return the record of an orderly shutdown. A key whose answer can't be written is saved without it."""
    kept = tuple(kept)
    try:
        text = write_json([_key_to_json(one) for one in kept])
    except Exception:  # noqa: BLE001 - one answer that can't be written mustn't lose the others
        text = write_json([_key_to_json(one if _is_writable(one) else _without_answer(one)) for one in kept])
    return _record(_SNAPSHOT_KIND, len(text).to_bytes(4, "big") + text + guard)


def _is_writable(kept: SavedKey) -> bool:
    try:
        write_json(_key_to_json(kept), max_depth=MAX_DEPTH - 1)
    except Exception:  # noqa: BLE001 - as above
        return False
    return True


def _without_answer(kept: SavedKey) -> SavedKey:
    """Return the key with an unknown outcome, which still keeps the work from being done again."""
    return evolve(kept, answer=None, size=0, answered=False)


def _key_to_json(kept: SavedKey) -> list[object]:
    return [kept.key.hex(), kept.digest.hex(), outcome_to_json(kept.answer), kept.size, kept.seconds, kept.answered]


def outcome_to_json(outcome: Any) -> dict[str, object] | None:
    """Return an outcome as JSON values; None stays None."""
    if outcome is None:
        return None
    if isinstance(outcome, Refusal):
        return {"refused": outcome.kind.taxonomy, "note": outcome.note, "details": dict(outcome.details)}
    return {"type": outcome.payload_type, "payload": outcome.payload}


# --- reading ---------------------------------------------------------------------------------------------------------


def read_state(data: bytes) -> SavedState:
    """Read a whole file. Raises `BadState` if it isn't a state file, or is damaged anywhere but at its cut-off end."""
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
            return  # rule 3
        yield from _in_batch(body)
        at += _FRAME.size + len(body)


def _batch_at(data: bytes, at: int) -> bytes | None:
    """Return the body of the batch at `at`, or None if it was cut off. Raises BadState if it's damaged."""
    start = at + _FRAME.size
    if start > len(data):
        return None
    length, of_length, of_body = _FRAME.unpack_from(data, at)
    # The length has a checksum of its own; otherwise a damaged length would look like a batch that was cut off.
    if zlib.crc32(_LENGTH.pack(length)) != of_length:
        if data[start:].strip(b"\0"):
            raise BadState(f"expected whole records; at byte {at} it's damaged")
        return None  # only zeros follow: the file system extended the file, and the data didn't arrive
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
            keys: Any = read_json(body[4 : 4 + size])
            kept |= {one.key: one for one in map(_read_key, keys)}
            guard = body[4 + size :]
        else:
            raise BadState("expected records that this version knows")
    return SavedState(_read_owner(records[0][1]), leased, guard, tuple(kept.values()))


def _read_owner(body: bytes) -> StateOwner:
    facts: Any = read_json(body)
    return StateOwner(facts["agent"], bytes.fromhex(facts["key"]), float(facts["max_age"]), float(facts["skew"]))


def _read_key(value: Any) -> SavedKey:
    key, digest, answer, size, seconds, answered = value
    return SavedKey(
        bytes.fromhex(key), bytes.fromhex(digest), read_outcome(answer), size, float(seconds), answered is True
    )


_KIND_OF: Final = {kind.taxonomy: kind for kind in KINDS}


def read_outcome(value: Any) -> Replied | Refusal | None:
    """Read what `outcome_to_json` wrote. Raises KeyError or TypeError if it's something else."""
    if value is None:
        return None
    if "refused" in value:
        return Refusal(kind=_KIND_OF[value["refused"]], note=value["note"], details=value["details"])
    return Replied(value["type"], value["payload"])
