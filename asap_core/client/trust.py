"""Decides whether a manifest is accepted: what the agent must be, which keys must have signed it, who was seen first.

The trusted keys of an agent are those pinned to its URN, or else those named by a registry: by the first registry, in
order of precedence, that names any. They apply to the URN, whichever URL its manifest comes from. The document's own
statements about trust are ignored. Keys are checked before a manifest is cached, and before a caller gets it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from attrs import evolve, field, frozen, validators

from asap_core.errors import AgentChanged, Unsuitable, Unverified, WrongAgent
from asap_core.lru import Lru
from asap_core.net.urls import normal, without_credentials
from asap_core.wire.codec import decode_manifest, read_as
from asap_core.wire.manifest import Manifest, is_wrapper
from asap_core.wire.registry import RegistryEntry, manifest_url
from asap_core.wire.rules import URN
from asap_core.wire.signing import Ed25519Verifier, PublicKey, Verified, judge, read_keys, why_not

# --- the wanted agent -------------------------------------------------------------------------------------------------


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


# --- its keys ---------------------------------------------------------------------------------------------------------

# The key of a registry entry that holds an agent's keys. The wrapper of a signed manifest has a key of this name too.
_ENTRY_KEY: Final = "public_key"
# In bytes. A manifest is a few kilobytes. Verifying 64 KiB (300 skills with schemas) blocks the loop for some 20 ms; a
# megabyte, which an unsigned manifest may have, would block it for most of a second.
MAX_SIGNED: Final = 65_536


@frozen
class ReceivedManifest:
    """A manifest as it's cached.

    size: of the received document, in bytes.
    wrapper: the document, if the manifest is signed.
    key: the trusted key that verified it, if it was verified.
    """

    manifest: Manifest
    size: int
    wrapper: Mapping[str, Any] | None = None
    key: PublicKey | None = None


def read_received(data: bytes) -> ReceivedManifest:
    """Read a manifest, signed or not, without verifying it. Raises `InvalidDocument`, and nothing else."""
    return read_as(
        data,
        lambda value: ReceivedManifest(decode_manifest(value), len(data), value if is_wrapper(value) else None),
        "manifest",
    )


@frozen(kw_only=True)
class NamedKeys:
    """The keys that a registry names for an agent.

    problem: why they can't be read. Then no manifest is accepted, since "no keys" would accept any.
    """

    agent_id: str
    keys: tuple[PublicKey, ...] = ()
    problem: str = ""


def keys_in(entries: Iterable[RegistryEntry]) -> NamedKeys | None:
    """Return the keys in the first of an agent's entries that has any (`public_key`), or None."""
    entry = next((entry for entry in entries if entry.extra.get(_ENTRY_KEY) is not None), None)
    if entry is None:
        return None
    try:
        return NamedKeys(agent_id=entry.id, keys=read_keys(entry.extra[_ENTRY_KEY]))
    except ValueError as error:
        return NamedKeys(agent_id=entry.id, problem=f"the registry names no usable key: {error}")


@frozen
class _RegistryKeys:
    """A registry's keys for an agent, the registry's rank, and the URLs that it named with them."""

    named: NamedKeys
    rank: int
    urls: frozenset[str]


# Some 500 bytes each; as many as `FirstSeen` remembers. The agent that was named longest ago is forgotten first.
_MAX_NAMED: Final = 10_000


class TrustedKeys:
    """The trusted keys of one client, by agent."""

    def __init__(
        self,
        pinned: Mapping[str, str | Iterable[str]],
        *,
        require_signed: bool,
        verify: Ed25519Verifier | None,
    ) -> None:
        """Read the pinned keys.

        pinned: for each URN, one key in base64 or several.
        require_signed: refuse manifests of agents without trusted keys.
        verify: checks Ed25519 signatures. If None, manifests of agents with trusted keys are refused.
        Raises: ValueError for an invalid URN or key, and if signatures are required that can't be checked.
        """
        for urn in pinned:
            if not URN.fits(urn):
                raise ValueError(f"expected in trusted_keys, for each key or keys, {URN.expected}")
        self._pinned = {
            urn: read_keys(given if isinstance(given, str) else tuple(given)) for urn, given in pinned.items()
        }
        if verify is None and (self._pinned or require_signed):
            raise ValueError("expected verify, which checks the signatures that trusted_keys or require_signed require")
        self._require_signed = require_signed
        self._verify = verify
        self._registry_keys: Lru[str, _RegistryKeys] = Lru(_MAX_NAMED)

    def learn(self, agent_id: str, entries: Sequence[RegistryEntry], *, rank: int) -> None:
        """Learn the keys that a registry names for an agent.

        entries: the registry's entries for the agent.
        rank: its place in the order of precedence. Keys of a registry with a lower rank stay in force until that one
        says otherwise.
        """
        before, named = self._registry_keys.peek(agent_id), keys_in(entries)
        if before is not None and (before.rank < rank or (before.rank > rank and not entries)):
            return
        self._registry_keys.pop(agent_id)
        if named is not None:
            urls = frozenset(normal(url) for entry in entries if (url := manifest_url(entry)) is not None)
            self._registry_keys.put(agent_id, _RegistryKeys(named, rank, urls))

    def forget(self, url: str) -> None:
        """Forget this URL, and the keys of agents that registries named with no other URL."""
        for agent_id, known in [item for item in self._registry_keys.items() if url in item[1].urls]:
            left = evolve(known, urls=known.urls - {url})
            if left.urls:
                self._registry_keys.put(agent_id, left)
            else:
                self._registry_keys.pop(agent_id)

    def clear(self) -> None:
        """Forget all keys named by registries."""
        self._registry_keys.clear()

    def admit(self, url: str, received: ReceivedManifest, named: NamedKeys | None = None) -> ReceivedManifest:
        """Verify a manifest. Returns it as it may be cached: the signed form, if its agent has trusted keys.

        named: the keys that a registry named in this search, which replace those learned before.
        Raises: Unverified; InvalidDocument if the signed document isn't a manifest.
        """
        agent_id = received.manifest.id
        keys = self._keys(url, agent_id, named)
        if received.key in keys:  # it was verified before
            return received
        if not keys:
            if self._require_signed:
                reason = "no key is known for this agent; pin its key in trusted_keys"
                raise Unverified(without_credentials(url), agent_id, reason)
            return received
        if received.size > MAX_SIGNED:
            reason = f"it's longer than the {MAX_SIGNED} bytes that are verified"
            raise Unverified(without_credentials(url), agent_id, reason)
        if self._verify is None:
            raise Unverified(without_credentials(url), agent_id, "nothing here checks Ed25519 signatures")
        judgement = judge(received.wrapper, keys, self._verify)
        if isinstance(judgement, Verified):
            return evolve(received, manifest=judgement.manifest, key=judgement.key)
        raise Unverified(without_credentials(url), agent_id, why_not(judgement) or "")

    def _keys(self, url: str, agent_id: str, named: NamedKeys | None) -> tuple[PublicKey, ...]:
        pinned = self._pinned.get(agent_id)
        if pinned is not None:
            return pinned
        if named is None or named.agent_id != agent_id:
            known = self._registry_keys.peek(agent_id)
            named = None if known is None else known.named
        if named is not None and named.problem:
            raise Unverified(without_credentials(url), agent_id, named.problem)
        return () if named is None else named.keys


# Some 300 bytes each, ten times as many as cached manifests. The least recently seen is forgotten first.
_MAX_URLS: Final = 10_000


class FirstSeen:
    """The agents at one client's URLs, remembered for as long as the client lives: longer than their manifests."""

    def __init__(self, *, max_urls: int = _MAX_URLS) -> None:
        self._agents: Lru[str, str] = Lru(max_urls)

    def __len__(self) -> int:
        """Return how many URLs are remembered."""
        return len(self._agents)

    def check(self, url: str, agent_id: str) -> AgentChanged | None:
        """Note that `agent_id` is at `url` now.

        Returns the error to raise if another agent was there before. That agent stays the expected one. Returns None if
        it's the same, or the first.
        """
        before = self._agents.peek(url) or agent_id
        self._agents.put(url, before)
        return None if before == agent_id else AgentChanged(without_credentials(url), before, agent_id)

    def forget(self, url: str) -> None:
        """Accept whichever agent answers at `url` next."""
        self._agents.pop(url)

    def clear(self) -> None:
        """Forget all URLs."""
        self._agents.clear()
