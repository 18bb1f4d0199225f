"""All laws, by group."""

from collections.abc import Collection
from typing import Final

from asap_core.testing.laws.batch import BATCH
from asap_core.testing.laws.bodies import BODIES
from asap_core.testing.laws.compression import COMPRESSION
from asap_core.testing.laws.connections import CONNECTIONS
from asap_core.testing.laws.discovery import DISCOVERY
from asap_core.testing.laws.envelope import ENVELOPE
from asap_core.testing.laws.errors import ERRORS
from asap_core.testing.laws.failures import FAILURES
from asap_core.testing.laws.heads import HEADS
from asap_core.testing.laws.http import HTTP
from asap_core.testing.laws.idempotency import IDEMPOTENCY
from asap_core.testing.laws.identity import IDENTITY
from asap_core.testing.laws.json_text import JSON_TEXT
from asap_core.testing.laws.jsonrpc import JSONRPC
from asap_core.testing.laws.law import Law, LawGroup, by_id
from asap_core.testing.laws.limits import LIMITS
from asap_core.testing.laws.replay import REPLAY
from asap_core.testing.laws.replies import REPLIES
from asap_core.testing.laws.time import TIME
from asap_core.testing.laws.verdicts import Need
from asap_core.testing.laws.versions import VERSIONS

GROUPS: Final[tuple[LawGroup, ...]] = (
    DISCOVERY, HTTP, HEADS, BODIES, CONNECTIONS, JSON_TEXT, JSONRPC, ENVELOPE, REPLIES, IDENTITY, REPLAY, TIME,
    IDEMPOTENCY, BATCH, LIMITS, COMPRESSION, VERSIONS, ERRORS, FAILURES,
)  # fmt: skip
LAWS: Final[tuple[Law, ...]] = tuple(by_id(law for group in GROUPS for law in group.laws).values())


def chosen(*, strict: bool = True, only: Collection[str] = (), excluded: Collection[str] = ()) -> list[Law]:
    """Return the laws that a user asks for, in the order of the catalogue; those that start the agent again come last.

    strict: also those that the reference implementation doesn't promise.
    only: ids and groups; empty: all. excluded: ids and groups that are left out.

    Raises: ValueError if there's no law or group of a name.
    """
    known = {law.id for law in LAWS} | {law.group for law in LAWS}
    for name in (*only, *excluded):
        if name not in known:
            raise ValueError(f"no law or group is named {name}")
    laws = [
        law
        for law in LAWS
        if (strict or not law.strict)
        and (not only or {law.id, law.group} & {*only})
        and not {law.id, law.group} & {*excluded}
    ]
    return sorted(laws, key=starts_the_agent_again)


def expected_failures(text: str) -> frozenset[str]:
    """Read the ids of laws that fail for a known reason: one a line, with comments after `#`.

    Raises: ValueError if no law has such an id.
    """
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    found = frozenset(line for line in lines if line)
    unknown = sorted(found - {law.id for law in LAWS})
    if unknown:
        raise ValueError(f"no law has the id {unknown[0]}")
    return found


def starts_the_agent_again(law: Law) -> bool:
    """Say whether a law starts the agent again. Such laws come last: then it refuses old dates for a while."""
    return Need.RESET in law.needs
