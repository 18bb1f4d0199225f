"""What a wanted agent must be, and the result of a search for it: the agent or none, with a trace of every question."""

import re
from enum import Enum
from typing import Final

from attrs import field, frozen, validators

from asap_core.errors import Unsuitable, WrongAgent
from asap_core.net.urls import without_credentials
from asap_core.wire.manifest import Manifest
from asap_core.wire.rules import URN

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
