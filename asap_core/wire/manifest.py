"""The manifest, by which an agent describes itself, its health report, and both well-known paths (docs/wire.md §3, §6).

Both are remote documents: written strictly, read tolerantly. Keys that a later version added are kept in `extra`: an
unknown key must not make a manifest unreadable.
"""

import re
from enum import Enum
from typing import Final, TypeGuard

from attrs import field, frozen

from asap_core.net.urls import read_url
from asap_core.wire.json_values import JsonObject
from asap_core.wire.rules import (
    BOOLEAN,
    OBJECT,
    TEXT,
    TEXTS,
    URN,
    Rule,
    absent_or,
    array,
    array_of,
    integer,
    made_of,
    number,
    one_or_more,
)

# Wire-protocol §6.1, §6.2.
MANIFEST_PATH: Final = "/.well-known/asap/manifest.json"
HEALTH_PATH: Final = "/.well-known/asap/health"

# What the reference writes if an agent doesn't say.
DEFAULT_TTL: Final = 300
# Ten years. A longer lifetime is a typing error, and its sum with a clock must stay exact.
MAX_TTL: Final = 315_360_000

# The reference parses versions by PEP 440, other tools by SemVer. Publish only versions that both can parse.
_VERSION: Final = re.compile(r"\d{1,9}(?:\.\d{1,9}){0,3}(?:-?(?:a|alpha|b|beta|rc|dev)\.?\d{0,9})?", re.ASCII)
VERSION: Final = Rule(
    "a version such as 1.4.2 or 2.0.0-rc.1, which SemVer and PEP 440 both read",
    lambda value: type(value) is str and _VERSION.fullmatch(value) is not None,
)


def publishable_version(version: str) -> bool:
    """Return whether peers of every generation can parse `version`."""
    return VERSION.fits(version)


@frozen(kw_only=True)
class Skill:
    """One thing that an agent can do.

    input_schema, output_schema: JSON Schemas by convention; neither this library nor the reference enforces them.
    """

    id: str = field(validator=TEXT)
    description: str = field(validator=TEXT)
    input_schema: JsonObject | None = field(default=None, validator=absent_or(OBJECT))
    output_schema: JsonObject | None = field(default=None, validator=absent_or(OBJECT))
    extra: JsonObject = field(factory=dict, validator=OBJECT)


@frozen(kw_only=True)
class Capabilities:
    """What an agent can do, and the version of ASAP it speaks.

    hardware, inference: added in 2.x; not checked.
    """

    asap_version: str = field(default="0.1", validator=TEXT)
    skills: tuple[Skill, ...] = field(default=(), converter=array, validator=array_of(Skill, "an array of skills"))
    state_persistence: bool = field(default=False, validator=BOOLEAN)
    streaming: bool = field(default=False, validator=BOOLEAN)
    mcp_tools: tuple[str, ...] = field(default=(), converter=array, validator=TEXTS)
    hardware: JsonObject | None = field(default=None, validator=absent_or(OBJECT))
    inference: JsonObject | None = field(default=None, validator=absent_or(OBJECT))
    extra: JsonObject = field(factory=dict, validator=OBJECT)


@frozen(kw_only=True)
class Endpoints:
    """The URLs of an agent.

    asap: takes JSON-RPC over HTTP.
    events: a WebSocket.
    Raises: ValueError if one isn't an absolute URL. A peer's manifest may have any text here (`ReceivedEndpoints`).
    """

    asap: str = field(validator=TEXT)
    events: str | None = field(default=None, validator=absent_or(TEXT))
    extra: JsonObject = field(factory=dict, validator=OBJECT)

    def __attrs_post_init__(self) -> None:
        if not is_absolute_url(self.asap, "http", "https"):
            raise ValueError("endpoints.asap: expected an absolute URL such as https://agent.example/asap")
        if self.events is not None and not is_absolute_url(self.events, "ws", "wss", "http", "https"):
            raise ValueError("endpoints.events: expected an absolute URL such as wss://agent.example/events")


@frozen(kw_only=True)
class ReceivedEndpoints:
    """Endpoints in a peer's manifest, which may be any text. `asap_core.wire.codec` reads these and calls `taken`."""

    asap: str = field(validator=TEXT)
    events: str | None = field(default=None, validator=absent_or(TEXT))
    extra: JsonObject = field(factory=dict, validator=OBJECT)

    def taken(self) -> Endpoints:
        """Return them as `Endpoints`, unchecked: a peer's relative URL fails when an envelope is sent to it."""
        made = object.__new__(Endpoints)
        for name in ("asap", "events", "extra"):
            object.__setattr__(made, name, getattr(self, name))
        return made


def is_absolute_url(url: str, *schemes: str) -> bool:
    """Return whether `url` parses, has one of these schemes, and has a host."""
    parts = read_url(url)
    return parts is not None and parts.scheme in schemes and bool(parts.hostname)


@frozen(kw_only=True)
class AuthScheme:
    """How callers authenticate. Any scheme can be read; this library serves and sends only `bearer`."""

    schemes: tuple[str, ...] = field(converter=array, validator=TEXTS)
    oauth2: JsonObject | None = field(default=None, validator=absent_or(OBJECT))
    extra: JsonObject = field(factory=dict, validator=OBJECT)

    def accepts(self, scheme: str) -> bool:
        """Return whether `scheme` is among them, ignoring case (RFC 9110 §11.1)."""
        return any(offered.lower() == scheme.lower() for offered in self.schemes)


@frozen(kw_only=True)
class Manifest:
    """An agent's description of itself, published at `MANIFEST_PATH`.

    supported_versions, sla, verification: added in 2.x.
    ttl_seconds: for how long a reader may cache the manifest, unless HTTP headers say otherwise.
    extra: keys that this version doesn't know.
    Raises: InvalidValue (a ValueError) if a field breaks its rule. Source: docs/wire.md §3.
    """

    id: str = field(validator=URN)
    name: str = field(validator=TEXT)
    version: str = field(validator=TEXT)
    description: str = field(validator=TEXT)
    capabilities: Capabilities = field(validator=made_of(Capabilities, "an object of capabilities"))
    endpoints: Endpoints = field(validator=made_of(Endpoints, "an object of endpoints"))
    supported_versions: tuple[str, ...] | None = field(
        default=None, converter=array, validator=absent_or(one_or_more(TEXT))
    )
    auth: AuthScheme | None = field(default=None, validator=absent_or(made_of(AuthScheme, "an object of schemes")))
    signature: str | None = field(default=None, validator=absent_or(TEXT))
    sla: JsonObject | None = field(default=None, validator=absent_or(OBJECT))
    verification: JsonObject | None = field(default=None, validator=absent_or(OBJECT))
    ttl_seconds: int = field(default=DEFAULT_TTL, validator=integer(least=1, most=MAX_TTL))
    extra: JsonObject = field(factory=dict, validator=OBJECT)

    def skill(self, skill_id: str) -> Skill | None:
        """Return the first skill with this id, or None."""
        return next((skill for skill in self.capabilities.skills if skill.id == skill_id), None)

    @property
    def skill_ids(self) -> tuple[str, ...]:
        """The ids of the agent's skills, in order."""
        return tuple(skill.id for skill in self.capabilities.skills)


def is_wrapper(document: object) -> TypeGuard[JsonObject]:
    """Return whether a document is the wrapper of a signed manifest: an object of a manifest and a signature."""
    return (
        type(document) is dict
        and type(document.get("manifest")) is dict
        and "signature" in document
        and "id" not in document
    )


class HealthStatus(Enum):
    """The values of `Health.status` that this library writes."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@frozen(kw_only=True)
class Load:
    """How busy an agent is."""

    active_tasks: int = field(default=0, validator=integer(least=0))
    queue_depth: int = field(default=0, validator=integer(least=0))
    extra: JsonObject = field(factory=dict, validator=OBJECT)


@frozen(kw_only=True)
class Health:
    """The health report at `HEALTH_PATH`. A response with status 503 has one too.

    status: as the peer spells it.
    """

    status: str = field(validator=TEXT)
    agent_id: str = field(validator=TEXT)
    version: str = field(validator=TEXT)
    asap_version: str = field(default="0.1", validator=TEXT)
    uptime_seconds: float = field(validator=number(least=0))
    load: Load | None = field(default=None, validator=absent_or(made_of(Load, "an object of load")))
    extra: JsonObject = field(factory=dict, validator=OBJECT)

    @property
    def healthy(self) -> bool:
        """Whether the agent reports that it's healthy."""
        return self.status == HealthStatus.HEALTHY.value
