"""Whose manifests must be signed, and by which keys: asked before one enters the cache, and before anybody gets it.

What counts for an agent are the keys pinned to its URN, or else those that a registry names for it: the first registry
in order of precedence that names any. They are bound to the URN, wherever a manifest of the agent comes from, and to
the search in which they were named. What the document says of its own trust isn't asked.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from attrs import evolve, frozen

from asap_core.errors import Unverified
from asap_core.lru import Lru
from asap_core.net.urls import normal, without_credentials
from asap_core.wire.codec import decode_manifest, read_as
from asap_core.wire.manifest import Manifest, is_wrapper
from asap_core.wire.registry import RegistryEntry, manifest_url
from asap_core.wire.rules import URN
from asap_core.wire.signing import Ed25519Verifier, PublicKey, Verified, judge, read_keys, why_not

# The key of an entry under which a registry names an agent's keys; the wrapper of a signed manifest has it too.
_ENTRY_KEY: Final = "public_key"
# In bytes. A manifest is a few kilobytes; of 64 KiB, 300 skills with schemas, the judgement takes some 20 ms, in which
# nothing else runs. Of the megabyte that a manifest without signature may have it would take most of a second.
MAX_SIGNED: Final = 65_536


@frozen
class ReceivedManifest:
    """A manifest as it's kept: with its wrapper where it came in one, and the key it was verified by, if it was.

    `size` is that of the document it came as, in bytes.
    """

    manifest: Manifest
    size: int
    wrapper: Mapping[str, Any] | None = None
    key: PublicKey | None = None


def read_received(data: bytes) -> ReceivedManifest:
    """Read a manifest, signed or not; nothing is verified yet. Raises `InvalidDocument`, whatever the bytes."""
    return read_as(
        data,
        lambda value: ReceivedManifest(decode_manifest(value), len(data), value if is_wrapper(value) else None),
        "manifest",
    )


@frozen(kw_only=True)
class NamedKeys:
    """The keys that a registry names for an agent.

    None of them can be read if there's a `problem`. That isn't "no keys", which would let anybody in.
    """

    agent_id: str
    keys: tuple[PublicKey, ...] = ()
    problem: str = ""


def keys_in(entries: Iterable[RegistryEntry]) -> NamedKeys | None:
    """The keys (`public_key`: one, or several) in the first of an agent's entries that has any; None if none has."""
    entry = next((entry for entry in entries if entry.extra.get(_ENTRY_KEY) is not None), None)
    if entry is None:
        return None
    try:
        return NamedKeys(agent_id=entry.id, keys=read_keys(entry.extra[_ENTRY_KEY]))
    except ValueError as error:
        return NamedKeys(agent_id=entry.id, problem=f"the registry names no usable key: {error}")


@frozen
class _Word:
    """What a registry said of an agent's keys, and the URLs that it named with them."""

    named: NamedKeys
    rank: int
    urls: frozenset[str]


# Agents, some 500 bytes each: as many as are remembered by URL. Past it the one named longest ago is forgotten.
_MAX_NAMED: Final = 10_000


class TrustedKeys:
    """The keys that count, by agent, for one client."""

    def __init__(
        self,
        pinned: Mapping[str, str | Iterable[str]],
        *,
        require_signed: bool,
        verify: Ed25519Verifier,
    ) -> None:
        """Take the keys pinned to URNs, in base64. Raises ValueError for what isn't a URN or a key."""
        for urn in pinned:
            if not URN.fits(urn):
                raise ValueError(f"expected in trusted_keys, for each key or keys, {URN.expected}")
        self._pinned = {
            urn: read_keys(given if isinstance(given, str) else tuple(given)) for urn, given in pinned.items()
        }
        self._require_signed = require_signed
        self._verify = verify
        self._words: Lru[str, _Word] = Lru(_MAX_NAMED)

    def hear(self, agent_id: str, entries: Sequence[RegistryEntry], *, rank: int) -> None:
        """A registry was read: these are its entries for the agent. `rank` is its place in the order of precedence.

        Its last word counts, unless a registry before it names keys: those hold until that one says otherwise.
        """
        before, named = self._words.peek(agent_id), keys_in(entries)
        if before is not None and (before.rank < rank or (before.rank > rank and not entries)):
            return
        self._words.pop(agent_id)
        if named is not None:
            urls = frozenset(normal(url) for entry in entries if (url := manifest_url(entry)) is not None)
            self._words.put(agent_id, _Word(named, rank, urls))

    def forget(self, url: str) -> None:
        """Forget the keys of agents that registries named with this URL, and with no other that's remembered."""
        for agent_id, word in [item for item in self._words.items() if url in item[1].urls]:
            left = evolve(word, urls=word.urls - {url})
            if left.urls:
                self._words.put(agent_id, left)
            else:
                self._words.pop(agent_id)

    def clear(self) -> None:
        """Forget what registries said."""
        self._words.clear()

    def admit(self, url: str, published: ReceivedManifest, named: NamedKeys | None = None) -> ReceivedManifest:
        """The manifest at this URL, as it may be kept and given out.

        That is: what was signed, where keys count for its agent. `named` are the keys named in this search, if it's
        one, for the agent that is looked for. Raises `Unverified`, and `InvalidDocument` where what was signed is no
        manifest.
        """
        agent_id = published.manifest.id
        keys = self._keys(url, agent_id, named)
        if published.key is not None and published.key in keys:
            return published
        if not keys:
            if self._require_signed:
                reason = "no key is known for this agent; pin its key in trusted_keys"
                raise Unverified(without_credentials(url), agent_id, reason)
            return published
        if published.size > MAX_SIGNED:
            reason = f"it's longer than the {MAX_SIGNED} bytes that are verified"
            raise Unverified(without_credentials(url), agent_id, reason)
        judgement = judge(published.wrapper, keys, self._verify)
        if isinstance(judgement, Verified):
            return evolve(published, manifest=judgement.manifest, key=judgement.key)
        raise Unverified(without_credentials(url), agent_id, why_not(judgement) or "")

    def _keys(self, url: str, agent_id: str, named: NamedKeys | None) -> tuple[PublicKey, ...]:
        pinned = self._pinned.get(agent_id)
        if pinned is not None:
            return pinned
        if named is None or named.agent_id != agent_id:
            word = self._words.peek(agent_id)
            named = None if word is None else word.named
        if named is not None and named.problem:
            raise Unverified(without_credentials(url), agent_id, named.problem)
        return () if named is None else named.keys
