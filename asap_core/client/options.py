"""What a client is given: its options in groups (trust, discovery, requests), and the rule of each argument."""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from attrs import field, frozen

from asap_core.arguments import ArgumentRule, has_methods, is_dict_of, is_instance, is_list_of, is_or_none
from asap_core.auth.authorization import ClientCredentials
from asap_core.client.breaker import BreakerPolicy
from asap_core.client.delivery import RetryPolicy
from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.client.runtime import Runtime
from asap_core.mdns.dnssd import Announcement
from asap_core.net.outbound import OutboundPolicy
from asap_core.net.urls import is_web_url
from asap_core.wire.envelope import Envelope
from asap_core.wire.manifest import Manifest
from asap_core.wire.rules import URN, number


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


# --- arguments of `Client` and its methods ----------------------------------------------------------------------------


def check(**given: object) -> None:
    """Raise ValueError for the first of these parameters that is invalid. Each of them has a rule."""
    for name, value in given.items():
        _RULES[name].check(name, value)


def _is_wait(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _is_codings(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(each, bytes) for each in value)


def _optional(kind: type, example: str) -> ArgumentRule:
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    return ArgumentRule(f"{article} {kind.__name__}, such as {example}, or None", is_or_none(is_instance(kind)))


_OPTIONAL_TEXT: Final = ArgumentRule("text, or None", is_or_none(_is_text))

_RULES: Final[Mapping[str, ArgumentRule]] = {
    # Of the client.
    "token": ArgumentRule("a token, as text", is_or_none(_is_text)),
    "auth": ArgumentRule(
        "a dict of origins with a token or ClientCredentials for each, such as {'https://agent.example': 'token'}",
        is_or_none(is_dict_of(is_instance(str, ClientCredentials))),
    ),
    "outbound": _optional(OutboundPolicy, "OutboundPolicy(allow_http=['agent.lan'])"),
    "trust": _optional(TrustPolicy, "TrustPolicy(require_signed=True)"),
    "discovery": _optional(DiscoveryOptions, "DiscoveryOptions(registries=['registry.json'])"),
    "http": _optional(RequestOptions, "RequestOptions(timeout=10.0)"),
    "retry": _optional(RetryPolicy, "RetryPolicy(retries=2)"),
    "breaker": _optional(BreakerPolicy, "BreakerPolicy()"),
    "clock": ArgumentRule("a clock with the methods monotonic and wall", has_methods("monotonic", "wall")),
    # Of `bind`.
    "runtime": ArgumentRule("a Runtime, such as Runtime(clock, new_id, new_token, fraction)", is_instance(Runtime)),
    "codings": ArgumentRule("a mapping with keys of bytes, such as {b'br': Brotli}", _is_codings),
    "links": ArgumentRule("a function (interface) -> (networks, scopes)", callable),
    "verify": ArgumentRule("a function (public_key, signature, message) -> bool, or None", is_or_none(callable)),
    # Of its methods.
    "base_url": ArgumentRule("the base URL of an agent, such as https://agent.example, as text", _is_text),
    "base_urls": ArgumentRule("a list of base URLs, such as ['https://agent.example']", is_list_of(_is_text)),
    "url": ArgumentRule("a URL such as https://agent.example, as text", _is_text),
    "location": ArgumentRule("the URL or file of a registry, as text or Path", is_location),
    "urn": ArgumentRule(URN.expected, URN.fits),
    "wait": ArgumentRule("seconds, 0 or more", _is_wait),
    "skill": _OPTIONAL_TEXT,
    "agent_id": _OPTIONAL_TEXT,
    "expect": ArgumentRule("an agent's URN, or None", is_or_none(URN.fits)),
    "require_skill": ArgumentRule("the id of a skill, as text, or None", is_or_none(_is_text)),
    "require_version": ArgumentRule("a version such as '2.1', as text, or None", is_or_none(_is_text)),
    "credentials": ArgumentRule("ClientCredentials(…)", is_instance(ClientCredentials)),
    "announcement": ArgumentRule("an Announcement, such as browse() brings", is_instance(Announcement)),
    "target": ArgumentRule(
        "a Manifest, or the base URL of an agent, such as 'https://agent.example'", is_instance(str, Manifest)
    ),
    "manifest": ArgumentRule("a Manifest, such as discover() returns", is_instance(Manifest)),
    "envelope": ArgumentRule("an Envelope", is_instance(Envelope)),
}
