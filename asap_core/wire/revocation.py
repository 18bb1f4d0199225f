"""The revocation list: which agents are revoked, and why (docs/wire.md §8).

    {"revoked": [{"urn": "urn:asap:agent:a", "reason": "key stolen", "revoked_at": "2026-01-01T00:00:00Z"}],
     "version": "1.0"}

Read strictly, unlike the documents that agents publish: an unreadable entry may be the agent in question, so one such
entry makes the whole list invalid. The caller gets an error, never "not revoked". Keys that a later version adds to the
root or to an entry are ignored.
"""

from collections.abc import Mapping
from typing import Final

from attrs import frozen

from asap_core.errors import InvalidDocument, Problem
from asap_core.wire.codec import MAX_PROBLEMS, read_as
from asap_core.wire.rules import URN

# A sentence or two: people read it.
_MAX_REASON: Final = 1_000
_MAX_VERSION: Final = 64
# The major version of this format. Another one may give the same keys another meaning.
_MAJOR: Final = "1"


@frozen
class RevocationList:
    """The revoked agents, each with the reason, which may be empty."""

    _reasons: Mapping[str, str]

    def __len__(self) -> int:
        """Return how many agents are revoked."""
        return len(self._reasons)

    def why(self, urn: str) -> str | None:
        """Return why the agent with this URN is revoked, "" if no reason is given. Returns None if it isn't revoked."""
        return self._reasons.get(urn)


def read_revocations(data: bytes) -> RevocationList:
    """Read a revocation list from bytes. Raises `InvalidDocument` if any part of it is invalid, whatever the bytes."""
    return read_as(data, _decode, "revocation list")


def _decode(value: object) -> RevocationList:
    if type(value) is not dict:
        raise _invalid(Problem((), "an object"))
    version, entries = value.get("version"), value.get("revoked")
    problems: list[Problem] = []
    if type(version) is not str or len(version) > _MAX_VERSION or version.split(".")[0] != _MAJOR:
        problems.append(Problem(("version",), f"version {_MAJOR} of the format, such as {_MAJOR}.0"))
    if type(entries) is not list:
        raise _invalid(*problems, Problem(("revoked",), "an array of entries"))
    reasons: dict[str, str] = {}
    for index, entry in enumerate(entries):
        found = _unfit(entry)
        if found is not None:
            problems.append(Problem(("revoked", index, *found[0]), found[1]))
            if len(problems) >= MAX_PROBLEMS:
                break
        else:
            reasons.setdefault(entry["urn"], entry.get("reason") or "")
    if problems:
        raise _invalid(*problems)
    return RevocationList(reasons)


def _unfit(entry: object) -> tuple[tuple[str, ...], str] | None:
    """Return the path and rule that an entry breaks, or None.

    `revoked_at` isn't checked: it's for people, and the agent is revoked whatever it says.
    """
    if type(entry) is not dict:
        return (), "an object with urn and reason"
    if not URN.fits(entry.get("urn")):
        return ("urn",), URN.expected
    reason = entry.get("reason")
    if reason is not None and (type(reason) is not str or len(reason) > _MAX_REASON):
        return ("reason",), f"a text of at most {_MAX_REASON} characters, or null"
    return None


def _invalid(*problems: Problem) -> InvalidDocument:
    return InvalidDocument("revocation list", problems)
