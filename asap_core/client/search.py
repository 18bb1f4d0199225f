"""Finds an agent by its URN, as a program: what is asked in which order, and why each candidate is accepted or refused.

    the revocation list ─▶ the registries, in order of precedence ─▶ the local network ─▶ Unresolved
                             └─▶ the manifests they name               └─▶ the announced manifests
                                   └─▶ Resolved                              └─▶ Resolved

Every question and its result is in the `trace`, also if the agent was found.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Final, Protocol, assert_never

from attrs import define, field, frozen

from asap_core.client.documents import LocatedDocument
from asap_core.client.programs import (
    LATE,
    Expired,
    Heard,
    Late,
    LocalNetwork,
    Next,
    Program,
    Unavailable,
    within,
)
from asap_core.client.registry_cache import CachedCopy
from asap_core.client.trust import NamedKeys, Wanted, keys_in
from asap_core.clock import Clock, Instant
from asap_core.errors import AsapError, TimedOut
from asap_core.mdns.dnssd import Added, Announcement, Updated
from asap_core.net.urls import without_credentials
from asap_core.wire.manifest import Manifest
from asap_core.wire.registry import RegistryEntry, manifest_url
from asap_core.wire.registry_index import RegistryIndex
from asap_core.wire.revocation import RevocationList

LOCAL_NETWORK: Final = "the local network"


class TraceVerdict(Enum):
    """The result of one question."""

    TAKEN = "taken"
    REFUSED = "refused"
    """There was an answer, but not the wanted agent's."""
    ABSENT = "not there"
    FAILED = "failed"
    """There was no usable answer."""


@frozen
class TraceEntry:
    """One question and its result.

    where: a URL without credentials, a file, or the local network.
    why: the reason, for people.
    """

    where: str
    verdict: TraceVerdict
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


@frozen
class Resolved:
    """The agent was found.

    trace: every question, with its result.
    url: where the manifest is.
    source: who named the URL: a registry's location, or LOCAL_NETWORK.
    """

    wanted: Wanted
    trace: tuple[TraceEntry, ...]
    manifest: Manifest
    url: str
    source: str


@frozen
class Unresolved:
    """The agent wasn't found. `trace` says why."""

    wanted: Wanted
    trace: tuple[TraceEntry, ...]


# The most entries of one registry for one agent: it may have moved, or have a mirror.
MAX_LISTED: Final = 4
# Anybody on the link may announce any number of agents, with the wanted URN or without one. Each costs a request for
# its manifest: 16 are more than the agents of one URN on a link, and few enough to ask within a search.
MAX_ON_LINK: Final = 16
# A candidate is fetched whoever it is; then the search checks it, so that the trace shows the reason of a refusal.
_ANYONE: Final = Wanted()


class Sources(Protocol):
    """What a search asks: `Discovery`. The programs raise an `AsapError`, or OSError for a file."""

    def revocations(self, location: str) -> Program[RevocationList]:
        """Read the revocation list at a URL or in a file."""
        ...

    def registry(self, location: str) -> Program[RegistryIndex | CachedCopy]:
        """Read the registry at a URL or in a file."""
        ...

    def learn(self, urn: str, entries: Sequence[RegistryEntry], *, rank: int) -> None:
        """Learn the keys that the registry of this rank names for an agent."""
        ...

    def find(
        self, url: str, wanted: Wanted, *, named: NamedKeys | None, named_by: str
    ) -> Program[LocatedDocument[Manifest]]:
        """Fetch the manifest at a URL that the registry `named_by` names."""
        ...

    def follow(
        self, announcement: Announcement, wanted: Wanted, *, named: NamedKeys | None
    ) -> Program[LocatedDocument[Manifest]]:
        """Fetch the manifest of an announced agent."""
        ...


def resolve(
    wanted: Wanted,
    *,
    sources: Sources,
    clock: Clock,
    registries: Sequence[str] = (),
    revoked: str | None = None,
    wait: float,
) -> Program[Resolved | Unresolved]:
    """Search for an agent.

    registries: URLs and files, in order of precedence.
    revoked: the URL or file of the revocation list.
    wait: for how many seconds to watch the local network if no registry leads to the agent. 0: not at all.
    Raises: ValueError if `wanted` has no URN, at once.
    """
    if wanted.urn is None:
        raise ValueError("expected the URN of the agent to look for")
    return _Search(wanted, wanted.urn, sources, clock).run(registries, revoked, wait)


@define(eq=False)
class _Search:
    wanted: Wanted
    urn: str
    sources: Sources
    clock: Clock
    trace: list[TraceEntry] = field(factory=list)
    named: NamedKeys | None = None
    """The agent's keys, from the first registry that named any. All later candidates must be signed by one of them."""

    def run(self, registries: Sequence[str], revoked: str | None, wait: float) -> Program[Resolved | Unresolved]:
        if revoked is not None and not (yield from self.is_clear(revoked)):
            return self.unresolved()
        for rank, location in enumerate(registries):
            for entry in (yield from self.entries(location, rank)):
                found = yield from self.listed(entry, location)
                if found is not None:
                    return found
        found = (yield from self.on_link(wait)) if wait > 0.0 else None
        return self.unresolved() if found is None else found

    def is_clear(self, location: str) -> Program[bool]:
        """Ask the revocation list. If it can't be read, the agent may be revoked, so the search ends."""
        shown = _shown(location)
        try:
            revoked = yield from self.sources.revocations(location)
        except (AsapError, OSError) as error:
            self.note(shown, TraceVerdict.FAILED, _reason(error))
            return False
        why = revoked.why(self.urn)
        if why is None:
            self.note(shown, TraceVerdict.TAKEN, "not revoked")
            return True
        self.note(shown, TraceVerdict.REFUSED, f"revoked: {why}" if why else "revoked")
        return False

    def entries(self, location: str, rank: int) -> Program[Sequence[RegistryEntry]]:
        """Return the agent's entries in a registry, in order: the reference uses the first; others if that fails."""
        shown = _shown(location)
        try:
            read = yield from self.sources.registry(location)
        except (AsapError, OSError) as error:
            self.note(shown, TraceVerdict.FAILED, _reason(error))
            return ()
        index, aside = (read, "") if isinstance(read, RegistryIndex) else (read.index, f", in {read.words}")
        listed = index.of_agent(self.urn)
        first = tuple(listed[:MAX_LISTED])
        self.sources.learn(self.urn, first, rank=rank)
        self.named = self.named or keys_in(first)
        if not first:
            skipped = f"; {len(index.skipped)} of its entries can't be read" if index.skipped else ""
            self.note(shown, TraceVerdict.ABSENT, f"not listed among {len(index)}{skipped}{aside}")
        else:
            times = "listed" if len(listed) == 1 else f"listed {len(listed)} times"
            self.note(shown, TraceVerdict.TAKEN, f"{times}{aside}")
        return first

    def listed(self, entry: RegistryEntry, location: str) -> Program[Resolved | None]:
        """Fetch the manifest that a registry's entry names."""
        url = manifest_url(entry)
        if url is None:
            self.note(_shown(location), TraceVerdict.REFUSED, "the entry has no URL")
            return None
        fetch = self.sources.find(url, _ANYONE, named=self.named, named_by=location)
        return (yield from self.candidate(url, location, fetch))

    def on_link(self, wait: float) -> Program[Resolved | None]:
        """Watch the local network, and fetch the manifest of each announced agent that may be the wanted one."""
        network, end, tried = LocalNetwork(), Instant(self.clock.monotonic() + wait), 0
        # The clock ends it, too: neighbours may change their announcements faster than they can be looked at.
        while (left := end - self.clock.monotonic()) > 0.0:
            outcome = yield from Next(network, left)
            match outcome:
                case Heard(Added(announcement) | Updated(announcement)):
                    if tried < MAX_ON_LINK and self.may_be(announcement):
                        tried += 1
                        found = yield from self.announced(announcement, end, wait)
                        if found is LATE:
                            break
                        if found is not None:
                            return found
                case Heard():
                    pass
                case Unavailable():
                    self.note(LOCAL_NETWORK, TraceVerdict.FAILED, outcome.reason)
                    return None
                case Expired():
                    break
                case _:
                    assert_never(outcome)
        what = "nobody else is announced" if tried else "not announced"
        self.note(LOCAL_NETWORK, TraceVerdict.ABSENT, f"{what} within {wait:g} s")
        return None

    def may_be(self, announcement: Announcement) -> bool:
        """Return whether it may be the wanted agent. If it has no id, as from the reference, its manifest tells."""
        return announcement.agent_id in (None, self.urn)

    def announced(self, announcement: Announcement, end: Instant, wait: float) -> Program[Resolved | Late | None]:
        """Fetch the manifest of an announced agent, until `end`."""
        url = announcement.manifest_url
        fetch = self.candidate(url, LOCAL_NETWORK, self.sources.follow(announcement, _ANYONE, named=self.named))
        found = yield from within(end - self.clock.monotonic(), fetch, self.clock)
        if found is LATE:
            late = TimedOut(without_credentials(url), f"no manifest within {wait:g} s")
            self.refuse(url, TraceVerdict.FAILED, late)
        return found

    def candidate(self, url: str, source: str, fetch: Program[LocatedDocument[Manifest]]) -> Program[Resolved | None]:
        """Fetch a manifest, and return the agent if it's the wanted one."""
        try:
            manifest = (yield from fetch).document
        except AsapError as error:
            self.refuse(url, TraceVerdict.FAILED, error)
            return None
        wrong = self.wanted.judge(manifest, url)
        if wrong is not None:
            self.refuse(url, TraceVerdict.REFUSED, wrong)
            return None
        self.note(without_credentials(url), TraceVerdict.TAKEN, "the agent wanted")
        return Resolved(self.wanted, tuple(self.trace), manifest, url, source)

    def refuse(self, url: str, verdict: TraceVerdict, error: AsapError) -> None:
        shown = without_credentials(url)
        # Most errors begin with the URL, and so does what is noted.
        self.note(shown, verdict, str(error).removeprefix(f"{shown} "))

    def note(self, where: str, verdict: TraceVerdict, why: str) -> None:
        self.trace.append(TraceEntry(where, verdict, why))

    def unresolved(self) -> Unresolved:
        return Unresolved(self.wanted, tuple(self.trace))


def _shown(location: str) -> str:
    return without_credentials(location) if "://" in location else location


def _reason(error: AsapError | OSError) -> str:
    # Without the number and the name of a file: the trace names the location already.
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
