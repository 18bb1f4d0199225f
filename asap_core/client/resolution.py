"""Finds an agent by its URN: decides what is asked in which order, and why each candidate is accepted or refused.

    CheckRevoked ─▶ ReadRegistry (each, in order of precedence) ─▶ Browse (the local network) ─▶ Unresolved
                        └─▶ FetchManifest ◀────────────────────────┘  └─▶ Resolved

Linked states: the driver does what a state says, then calls the method for the result. Every question and its result is
in `trace`, also if the agent was found.
"""

import re
from collections.abc import Sequence
from enum import Enum
from typing import Final

from attrs import evolve, field, frozen, validators

from asap_core.client.trust import NamedKeys, keys_in
from asap_core.errors import AsapError, Unsuitable, WrongAgent
from asap_core.mdns.dnssd import Announcement
from asap_core.net.urls import without_credentials
from asap_core.wire.manifest import Manifest
from asap_core.wire.registry import RegistryEntry, manifest_url
from asap_core.wire.registry_index import RegistryIndex
from asap_core.wire.rules import URN

LOCAL_NETWORK: Final = "the local network"
# Anybody on the link may announce any number of agents, with the wanted URN or without one. Each costs a request for
# its manifest: 16 are more than the agents of one URN on a link, and few enough to ask within a search.
MAX_ON_LINK: Final = 16
# The most entries of one registry for one agent: it may have moved, or have a mirror.
MAX_LISTED: Final = 4


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


@frozen(kw_only=True)
class Wanted:
    """What an agent must be. None means any.

    urn: its id.
    skill: the id of a skill that it must have.
    least_version: the earliest version of ASAP that it must speak, as PEP 440 orders versions. The manifest's
    `capabilities.asap_version` or one of its `supported_versions` must be at least this.
    """

    urn: str | None = field(default=None, validator=validators.optional(URN))
    skill: str | None = None
    least_version: str | None = field(default=None)

    @least_version.validator
    def _readable(self, _attribute: object, value: str | None) -> None:
        if value is not None and not is_version(value):
            raise ValueError("expected as least version one such as 2.1")

    def judge(self, manifest: Manifest, url: str) -> WrongAgent | Unsuitable | None:
        """Return the error if the manifest from `url` isn't the wanted agent's, else None."""
        if self.urn is not None and manifest.id != self.urn:
            return WrongAgent(without_credentials(url), self.urn, manifest.id)
        if self.skill is not None and manifest.skill(self.skill) is None:
            return Unsuitable(without_credentials(url), manifest.id, f"the skill {self.skill}")
        if self.least_version is not None:
            spoken = (manifest.capabilities.asap_version, *(manifest.supported_versions or ()))
            if all(_order(version) < _order(self.least_version) for version in spoken):
                return Unsuitable(without_credentials(url), manifest.id, f"ASAP {self.least_version} or later")
        return None


# The part of PEP 440 that protocol versions use: numbers, optionally a pre-release.
_VERSION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9}){0,3})(?:[-.]?(dev|a|alpha|b|beta|rc)\.?(\d{0,9}))?", re.ASCII)
_PHASES: Final = {"dev": 0, "a": 1, "alpha": 1, "b": 2, "beta": 2, "rc": 3, None: 4}
_LONGEST: Final = 4


def is_version(text: str) -> bool:
    """Return whether `text` is a version that can be compared."""
    return _VERSION.fullmatch(text) is not None


def _order(text: str) -> tuple[tuple[int, ...], int, int]:
    """Return the sort key of a version. Text that isn't a version sorts first."""
    match = _VERSION.fullmatch(text)
    if match is None:
        return (), 0, 0
    numbers = tuple(map(int, match[1].split(".")))
    return numbers + (0,) * (_LONGEST - len(numbers)), _PHASES[match[2]], int(match[3] or 0)


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


@frozen(kw_only=True)
class _Search:
    """The data that all states share: what is wanted, what is still to be asked, and the results so far."""

    wanted: Wanted
    registries: tuple[str, ...]
    browse: bool
    trace: tuple[TraceEntry, ...] = ()
    listed: tuple[RegistryEntry, ...] = ()
    """The agent's entries in the registry `listed_in` whose manifests haven't been fetched yet."""
    listed_in: str = ""
    named: NamedKeys | None = None
    """The agent's keys, from the first registry that named any. All later candidates must be signed by one of them."""
    on_link: int = 0
    """How many candidates on the local network were tried."""

    def noting(self, where: str, verdict: TraceVerdict, why: str) -> "_Search":
        return evolve(self, trace=(*self.trace, TraceEntry(where, verdict, why)))

    def onward(self) -> "ResolutionState":
        if self.listed:
            return _candidate(evolve(self, listed=self.listed[1:]), self.listed[0])
        if self.registries:
            return ReadRegistry(evolve(self, registries=self.registries[1:]), self.registries[0])
        return Browse(self) if self.browse else self.unresolved()

    def unresolved(self) -> Unresolved:
        return Unresolved(self.wanted, self.trace)


@frozen
class _State:
    _search: _Search

    @property
    def wanted(self) -> Wanted:
        """The agent to find."""
        return self._search.wanted

    @property
    def trace(self) -> tuple[TraceEntry, ...]:
        """Every question so far, with its result."""
        return self._search.trace


@frozen
class CheckRevoked(_State):
    """Ask the revocation list at `location` about the agent.

    Leads to ReadRegistry or Browse by `clear`, to Unresolved by `revoked` or `failed`.
    """

    location: str

    def clear(self) -> "ResolutionState":
        """The agent isn't revoked."""
        why = "not revoked"
        return self._search.noting(_shown(self.location), TraceVerdict.TAKEN, why).onward()

    def revoked(self, why: str) -> "Unresolved":
        """The agent is revoked: the search ends.

        why: the list's reason; may be empty.
        """
        return self._search.noting(_shown(self.location), TraceVerdict.REFUSED, f"revoked{_reason(why)}").unresolved()

    def failed(self, error: Exception) -> "Unresolved":
        """The list can't be read. The agent may be revoked, so the search ends."""
        return self._search.noting(_shown(self.location), TraceVerdict.FAILED, str(error)).unresolved()


@frozen
class ReadRegistry(_State):
    """Read the registry at `location`, a URL or a file.

    Leads to FetchManifest if the agent is listed; else to the next ReadRegistry, Browse or Unresolved.
    """

    location: str

    def read(self, index: RegistryIndex, *, copied: str = "") -> "ResolutionState":
        """The registry was read.

        copied: describes the copy's age, if a cached copy was used.
        """
        shown, aside = _shown(self.location), copied and f", in {copied}"
        entries = index.of_agent(self.wanted.urn or "")
        if not entries:
            skipped = f"; {len(index.skipped)} of its entries can't be read" if index.skipped else ""
            return self._search.noting(
                shown, TraceVerdict.ABSENT, f"not listed among {len(index)}{skipped}{aside}"
            ).onward()
        listed = "listed" if len(entries) == 1 else f"listed {len(entries)} times"
        # In order: the reference uses the first; the others are tried if it can't be used.
        first = tuple(entries[:MAX_LISTED])
        named = self._search.named or keys_in(first)
        search = evolve(self._search, listed=first, listed_in=self.location, named=named)
        return search.noting(shown, TraceVerdict.TAKEN, f"{listed}{aside}").onward()

    def failed(self, error: Exception) -> "ResolutionState":
        """The registry can't be read."""
        return self._search.noting(_shown(self.location), TraceVerdict.FAILED, str(error)).onward()


@frozen
class FetchManifest(_State):
    """Fetch the manifest at `url`.

    source: who named the URL: a registry's location, or LOCAL_NETWORK.
    named_by: the registry's entry, or the announcement.
    Leads to Resolved if it's the wanted agent; else to the next candidate, or to Unresolved.
    """

    url: str
    source: str
    named_by: RegistryEntry | Announcement

    @property
    def keys(self) -> NamedKeys | None:
        """The keys that a registry named for the agent in this search. One of them must have signed the manifest."""
        return self._search.named

    def fetched(self, manifest: Manifest) -> "ResolutionState":
        """The manifest was fetched; this checks whether it's the wanted agent's."""
        wrong = self.wanted.judge(manifest, self.url)
        if wrong is not None:
            return self._noting(TraceVerdict.REFUSED, wrong).onward()
        found = self._search.noting(without_credentials(self.url), TraceVerdict.TAKEN, "the agent wanted")
        return Resolved(self.wanted, found.trace, manifest, self.url, self.source)

    def failed(self, error: AsapError) -> "ResolutionState":
        """The manifest can't be fetched, or the URL isn't allowed."""
        return self._noting(TraceVerdict.FAILED, error).onward()

    def _noting(self, verdict: TraceVerdict, error: AsapError) -> _Search:
        shown = without_credentials(self.url)
        # Most errors begin with the URL, and so does what is noted.
        return self._search.noting(shown, verdict, str(error).removeprefix(f"{shown} "))


@frozen
class Browse(_State):
    """Watch the local network for as long as the driver decides, and report each announcement.

    Leads to FetchManifest by `announced`, to Unresolved by `ended` or `failed`.
    """

    def announced(self, announcement: Announcement) -> "Browse | FetchManifest":
        """An agent was announced, or its announcement changed. Fetch its manifest if it may be the wanted one.

        An announcement without an id, as the reference sends, may be: its manifest has the id.
        """
        if announcement.agent_id not in (None, self.wanted.urn) or self._search.on_link >= MAX_ON_LINK:
            return self
        search = evolve(self._search, on_link=self._search.on_link + 1)
        return FetchManifest(search, announcement.manifest_url, LOCAL_NETWORK, announcement)

    def ended(self, seconds: float) -> "Unresolved":
        """The agent wasn't announced within `seconds`."""
        what = "nobody else is announced" if self._search.on_link else "not announced"
        return self._search.noting(LOCAL_NETWORK, TraceVerdict.ABSENT, f"{what} within {seconds:g} s").unresolved()

    def failed(self, error: Exception) -> "Unresolved":
        """The local network can't be watched."""
        return self._search.noting(LOCAL_NETWORK, TraceVerdict.FAILED, str(error)).unresolved()


ResolutionState = CheckRevoked | ReadRegistry | FetchManifest | Browse | Resolved | Unresolved


def resolve(
    wanted: Wanted, *, registries: Sequence[str] = (), revoked: str | None = None, browse: bool = True
) -> ResolutionState:
    """Begin to search for an agent.

    registries: URLs and files, in order of precedence.
    revoked: the URL or file of the revocation list.
    browse: whether to watch the local network if no registry lists the agent.
    Raises: ValueError if `wanted` has no URN.
    """
    if wanted.urn is None:
        raise ValueError("expected the URN of the agent to look for")
    search = _Search(wanted=wanted, registries=tuple(registries), browse=browse)
    return search.onward() if revoked is None else CheckRevoked(search, revoked)


def _candidate(search: _Search, entry: RegistryEntry) -> "ResolutionState":
    url = manifest_url(entry)
    if url is None:
        return search.noting(_shown(search.listed_in), TraceVerdict.REFUSED, "the entry has no URL").onward()
    return FetchManifest(search, url, search.listed_in, entry)


def _shown(location: str) -> str:
    return without_credentials(location) if "://" in location else location


def _reason(why: str) -> str:
    return f": {why}" if why else ""
