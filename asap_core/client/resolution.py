"""Finding an agent by its URN: what is asked in which order, and why each candidate is taken or refused.

    CheckRevoked ─▶ ReadRegistry (each, in order of precedence) ─▶ Browse (the local network) ─▶ Unresolved
                        └─▶ FetchManifest ◀────────────────────────┘  └─▶ Resolved

Linked states: the driver does what the state says and calls the one method that fits what came of it. Nothing is
passed over silently: every question and its outcome stands in `trace`, also where the agent was found.
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
# Anybody on the link may announce any number of agents under this name, or under none.
MAX_ON_LINK: Final = 16
# Of one registry, under one id: a move, a mirror; more is a mistake.
MAX_LISTED: Final = 4


class TraceVerdict(Enum):
    """What came of asking."""

    TAKEN = "taken"
    REFUSED = "refused"
    """There was an answer, and it isn't the agent wanted."""
    ABSENT = "not there"
    FAILED = "failed"
    """There was no usable answer."""


@frozen
class TraceEntry:
    """One question: where it was asked (a URL without credentials, a file, the local network), and what came of it."""

    where: str
    verdict: TraceVerdict
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


@frozen(kw_only=True)
class Wanted:
    """What an agent must be: this id, able to do this, speaking at least this version of ASAP. None is any.

    Versions are compared as PEP 440 orders them, by the manifest's `capabilities.asap_version` as the reference does,
    or any of its `supported_versions`.
    """

    urn: str | None = field(default=None, validator=validators.optional(URN))
    skill: str | None = None
    least_version: str | None = field(default=None)

    @least_version.validator
    def _readable(self, _attribute: object, value: str | None) -> None:
        if value is not None and not is_version(value):
            raise ValueError("expected as least version one such as 2.1")

    def judge(self, manifest: Manifest, url: str) -> WrongAgent | Unsuitable | None:
        """What is wrong with the manifest that came from `url`; None where it's the agent wanted."""
        if self.urn is not None and manifest.id != self.urn:
            return WrongAgent(without_credentials(url), self.urn, manifest.id)
        if self.skill is not None and manifest.skill(self.skill) is None:
            return Unsuitable(without_credentials(url), manifest.id, f"the skill {self.skill}")
        if self.least_version is not None:
            spoken = (manifest.capabilities.asap_version, *(manifest.supported_versions or ()))
            if all(_order(version) < _order(self.least_version) for version in spoken):
                return Unsuitable(without_credentials(url), manifest.id, f"ASAP {self.least_version} or later")
        return None


# PEP 440, as far as versions of a protocol go: numbers, then perhaps a pre-release.
_VERSION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9}){0,3})(?:[-.]?(dev|a|alpha|b|beta|rc)\.?(\d{0,9}))?", re.ASCII)
_PHASES: Final = {"dev": 0, "a": 1, "alpha": 1, "b": 2, "beta": 2, "rc": 3, None: 4}
_LONGEST: Final = 4


def is_version(text: str) -> bool:
    """Whether versions can be compared with this one."""
    return _VERSION.fullmatch(text) is not None


def _order(text: str) -> tuple[tuple[int, ...], int, int]:
    """A key by which versions sort; what isn't one comes before all."""
    match = _VERSION.fullmatch(text)
    if match is None:
        return (), 0, 0
    numbers = tuple(map(int, match[1].split(".")))
    return numbers + (0,) * (_LONGEST - len(numbers)), _PHASES[match[2]], int(match[3] or 0)


@frozen(kw_only=True)
class _Search:
    """What all states carry: what is wanted, what is still to be asked, and what came of the rest."""

    wanted: Wanted
    registries: tuple[str, ...]
    browse: bool
    trace: tuple[TraceEntry, ...] = ()
    listed: tuple[RegistryEntry, ...] = ()
    """Entries for the agent that are still to be looked at, of the registry `listed_in`."""
    listed_in: str = ""
    named: NamedKeys | None = None
    """The agent's keys, of the first registry that named any: they hold for all that is looked at from then on."""
    on_link: int = 0
    """How many candidates of the local network have been looked at."""

    def noting(self, where: str, verdict: TraceVerdict, why: str) -> "_Search":
        return evolve(self, trace=(*self.trace, TraceEntry(where, verdict, why)))

    def onward(self) -> "ResolutionState":
        if self.listed:
            return _candidate(evolve(self, listed=self.listed[1:]), self.listed[0])
        if self.registries:
            return ReadRegistry(evolve(self, registries=self.registries[1:]), self.registries[0])
        return Browse(self) if self.browse else Unresolved(self)


@frozen
class _State:
    _search: _Search

    @property
    def wanted(self) -> Wanted:
        """What is looked for."""
        return self._search.wanted

    @property
    def trace(self) -> tuple[TraceEntry, ...]:
        """What has been asked, and what came of it."""
        return self._search.trace


@frozen
class CheckRevoked(_State):
    """Ask the revocation list at `location` whether the agent is on it."""

    location: str

    def clear(self) -> "ResolutionState":
        """It isn't."""
        why = "not revoked"
        return self._search.noting(_shown(self.location), TraceVerdict.TAKEN, why).onward()

    def revoked(self, why: str) -> "Unresolved":
        """It is: nobody else is asked."""
        return Unresolved(self._search.noting(_shown(self.location), TraceVerdict.REFUSED, f"revoked{_reason(why)}"))

    def failed(self, error: Exception) -> "Unresolved":
        """It can't be said; then it may be, and nobody else is asked."""
        return Unresolved(self._search.noting(_shown(self.location), TraceVerdict.FAILED, str(error)))


@frozen
class ReadRegistry(_State):
    """Read the registry at `location`, a URL or a file."""

    location: str

    def read(self, catalog: RegistryIndex, *, copied: str = "") -> "ResolutionState":
        """This is what it says; `copied` is how old it is and why, where it's a copy that stands in for it."""
        shown, aside = _shown(self.location), copied and f", in {copied}"
        entries = catalog.of_agent(self.wanted.urn or "")
        if not entries:
            skipped = f"; {len(catalog.skipped)} of its entries can't be read" if catalog.skipped else ""
            return self._search.noting(
                shown, TraceVerdict.ABSENT, f"not listed among {len(catalog)}{skipped}{aside}"
            ).onward()
        listed = "listed" if len(entries) == 1 else f"listed {len(entries)} times"
        # In order: the first counts, as the reference finds it, and those after it where it can't be taken.
        first = tuple(entries[:MAX_LISTED])
        named = self._search.named or keys_in(first)
        search = evolve(self._search, listed=first, listed_in=self.location, named=named)
        return search.noting(shown, TraceVerdict.TAKEN, f"{listed}{aside}").onward()

    def failed(self, error: Exception) -> "ResolutionState":
        """It can't be had."""
        return self._search.noting(_shown(self.location), TraceVerdict.FAILED, str(error)).onward()


@frozen
class FetchManifest(_State):
    """Fetch the manifest at `url`, which `source` names: a registry, with the entry, or the local network."""

    url: str
    source: str
    named_by: RegistryEntry | Announcement

    @property
    def keys(self) -> NamedKeys | None:
        """The keys that a registry named for the agent in this search: one of them must have signed the manifest."""
        return self._search.named

    def fetched(self, manifest: Manifest) -> "ResolutionState":
        """This came; whether it's the agent wanted is judged here."""
        wrong = self.wanted.judge(manifest, self.url)
        if wrong is not None:
            return self._noting(TraceVerdict.REFUSED, wrong).onward()
        found = self._search.noting(without_credentials(self.url), TraceVerdict.TAKEN, "the agent wanted")
        return Resolved(found, manifest, self.url, self.source)

    def failed(self, error: AsapError) -> "ResolutionState":
        """It didn't come, or mustn't be asked for."""
        return self._noting(TraceVerdict.FAILED, error).onward()

    def _noting(self, verdict: TraceVerdict, error: AsapError) -> _Search:
        shown = without_credentials(self.url)
        # Most errors begin with the URL, and so does what is noted.
        return self._search.noting(shown, verdict, str(error).removeprefix(f"{shown} "))


@frozen
class Browse(_State):
    """Listen to the local network, for as long as the driver will; tell of each announcement."""

    def announced(self, announcement: Announcement) -> "Browse | FetchManifest":
        """An agent is there, or has changed: look at it, where it may be the one wanted.

        One that doesn't say who it is (the reference's don't) may be: its manifest says.
        """
        if announcement.agent_id not in (None, self.wanted.urn) or self._search.on_link >= MAX_ON_LINK:
            return self
        search = evolve(self._search, on_link=self._search.on_link + 1)
        return FetchManifest(search, announcement.manifest_url, LOCAL_NETWORK, announcement)

    def ended(self, seconds: float) -> "Unresolved":
        """It was listened to for so long, and the agent isn't there."""
        what = "nobody else is announced" if self._search.on_link else "not announced"
        return Unresolved(self._search.noting(LOCAL_NETWORK, TraceVerdict.ABSENT, f"{what} within {seconds:g} s"))

    def failed(self, error: Exception) -> "Unresolved":
        """It can't be listened to."""
        return Unresolved(self._search.noting(LOCAL_NETWORK, TraceVerdict.FAILED, str(error)))


@frozen
class Resolved(_State):
    """Found: the manifest, where it is, and who named that place (a registry's location, or the local network)."""

    manifest: Manifest
    url: str
    source: str


@frozen
class Unresolved(_State):
    """Not found; `trace` says what was asked."""


ResolutionState = CheckRevoked | ReadRegistry | FetchManifest | Browse | Resolved | Unresolved


def resolve(
    wanted: Wanted, *, registries: Sequence[str] = (), revoked: str | None = None, browse: bool = True
) -> ResolutionState:
    """Begin to look for an agent. `registries` are in order of precedence; `revoked` is where the revocation list is.

    Raises ValueError where `wanted` has no URN.
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
