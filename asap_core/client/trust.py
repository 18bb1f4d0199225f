"""Whose manifests must be signed, and by which keys: asked before one enters the cache, and before anybody gets it.

What counts for an agent are the keys pinned to its URN, or else those that the registry's entry names by which it was
found. What the document says of its own trust isn't asked.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from attrs import evolve, frozen

from asap_core.client.outbound import without_credentials
from asap_core.client.provenance import remember
from asap_core.codec import decode_manifest, read_as
from asap_core.errors import Unverified
from asap_core.model.manifest import Manifest, is_wrapper
from asap_core.model.registry import RegistryEntry
from asap_core.model.rules import URN
from asap_core.signing import PublicKey, Verified, Verifier, judge, read_keys, why_not

__all__ = ["MAX_SIGNED", "Published", "TrustedKeys", "named_keys", "read_published"]

# The key of an entry under which a registry names an agent's keys; the wrapper of a signed manifest has it too.
_ENTRY_KEY: Final = "public_key"
# In bytes. A manifest is a few kilobytes; of 64 KiB, 300 skills with schemas, the judgement takes some 20 ms, in which
# nothing else runs. Of the megabyte that a manifest without signature may have it would take most of a second.
MAX_SIGNED: Final = 65_536


@frozen
class Published:
    """A manifest as it's kept: with its wrapper where it came in one, and the key it was verified by, if it was.

    `size` is that of the document it came as, in bytes.
    """

    manifest: Manifest
    size: int
    wrapper: Mapping[str, Any] | None = None
    key: PublicKey | None = None


def read_published(data: bytes) -> Published:
    """Read a manifest, signed or not; nothing is verified yet. Raises `InvalidDocument`, whatever the bytes."""
    return read_as(
        data,
        lambda value: Published(decode_manifest(value), len(data), value if is_wrapper(value) else None),
        "manifest",
    )


def named_keys(entry: RegistryEntry) -> tuple[PublicKey, ...]:
    """The keys that a registry's entry names for its agent (`public_key`: one, or several). Raises ValueError."""
    given = entry.extra.get(_ENTRY_KEY)
    return () if given is None else read_keys(given)


class TrustedKeys:
    """The keys that count, by agent. Keys that a registry names are remembered by the URL it names with them."""

    def __init__(
        self,
        pinned: Mapping[str, str | Iterable[str]],
        *,
        require_signed: bool,
        verify: Verifier,
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
        self._named: dict[str, tuple[str, tuple[PublicKey, ...]]] = {}

    def name(self, url: str, agent_id: str, keys: tuple[PublicKey, ...]) -> None:
        """A registry says where the agent is, and which keys it has; perhaps none. Its last word counts."""
        remember(self._named, url, (agent_id, keys))

    def forget(self, url: str) -> None:
        """Forget what registries said of this URL."""
        self._named.pop(url, None)

    def clear(self) -> None:
        """Forget what registries said."""
        self._named.clear()

    def admit(self, url: str, published: Published) -> Published:
        """The manifest at this URL, as it may be kept and given out.

        That is: what was signed, where keys count for its agent. Raises `Unverified`, and `InvalidDocument` where what
        was signed is no manifest.
        """
        agent_id = published.manifest.id
        keys = self._keys(url, agent_id)
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

    def _keys(self, url: str, agent_id: str) -> tuple[PublicKey, ...]:
        pinned = self._pinned.get(agent_id)
        if pinned is not None:
            return pinned
        named_id, keys = self._named.get(url, ("", ()))
        return keys if named_id == agent_id else ()
