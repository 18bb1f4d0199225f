"""Options of a client, in groups: which agents it trusts, where it looks for them, how it makes requests."""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from attrs import field, frozen

from asap_core.arguments import ArgumentRule, is_dict_of, is_instance, is_list_of, is_or_none
from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.net.urls import is_web_url
from asap_core.wire.rules import number


class FilePath(Protocol):
    """A file's path, such as a `pathlib.Path`."""

    def __fspath__(self) -> str:
        """Return the path as text."""
        ...


Location = str | FilePath
"""A URL, or the path of a file."""


def is_location(value: object) -> bool:
    """Return whether a value is a URL or a path."""
    return value != "" and (isinstance(value, str) or hasattr(value, "__fspath__"))


def as_text(location: Location) -> str:
    """Return a location as text."""
    return location if isinstance(location, str) else location.__fspath__()


def _is_source(value: object) -> bool:
    """Return whether a value is a path, or a URL of http or https."""
    is_path = not isinstance(value, str) or "://" not in value
    return is_location(value) if is_path else is_web_url(value)


_is_text = is_instance(str)
FLAG: Final = ArgumentRule("True or False", is_instance(bool))
_KEYS: Final = ArgumentRule(
    "a dict of agents with a key or a list of keys for each, such as {'urn:asap:agent:a': 'base64…'}",
    is_dict_of(lambda value: _is_text(value) or is_list_of(_is_text)(value)),
)
_LOCATIONS: Final = ArgumentRule(
    "a list of URLs and files, such as ['https://agents.example/registry.json']", is_list_of(_is_source)
)
_REVOCATIONS: Final = ArgumentRule(
    "the URL or file of a revocation list, as text or Path, or None", is_or_none(_is_source)
)
_DIRECTORY: Final = ArgumentRule("a directory, as text or Path, or None", is_or_none(is_location))
_CACHE: Final = ArgumentRule("a DocumentCachePolicy", is_instance(DocumentCachePolicy))
_SECONDS: Final = ArgumentRule(
    "seconds above 0, such as 60.0", lambda value: number(least=0).fits(value) and bool(value)
)


@frozen(kw_only=True)
class TrustPolicy:
    """Which agents a client trusts. Raises ValueError if an option is invalid."""

    trusted_keys: Mapping[str, str | Sequence[str]] = field(factory=dict, validator=_KEYS)
    """Public keys in base64 by URN: one, or up to 8 while keys change. The manifest of such an agent must be signed by
    one of them. Otherwise it's `Unverified` and isn't cached. The same holds for an agent found by a registry's entry
    with a `public_key`. Signed manifests have at most 64 KiB, and need the extra `keys`."""
    require_signed: bool = field(default=False, validator=FLAG)
    """Require a signed manifest of every agent."""
    allow_changed_agents: bool = field(default=False, validator=FLAG)
    """Accept that another agent answers at a URL. Otherwise `AgentChanged` is raised."""


@frozen(kw_only=True)
class DiscoveryOptions:
    """Where a client looks for agents, and for how long it keeps what it found. Raises ValueError as `TrustPolicy`."""

    registries: Sequence[Location] = field(default=(), validator=_LOCATIONS)
    """URLs or files that `resolve` reads, in order of precedence."""
    revocations: Location | None = field(default=None, validator=_REVOCATIONS)
    """The URL or file of a revocation list. If the list is unavailable, `resolve` fails."""
    registry_cache: Location | None = field(default=None, validator=_DIRECTORY)
    """A directory for the last good copy of each registry, used up to a week if it's unreachable."""
    cache: DocumentCachePolicy = field(factory=DocumentCachePolicy, validator=_CACHE)
    """How many documents are cached, and for how long."""


@frozen(kw_only=True)
class RequestOptions:
    """How a client makes requests. Raises ValueError as `TrustPolicy`."""

    timeout: float = field(default=60.0, validator=_SECONDS)
    """Seconds for a whole request."""
    compress: bool = field(default=True, validator=FLAG)
    """Send large bodies gzipped."""
