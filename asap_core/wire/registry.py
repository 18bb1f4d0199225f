"""The registry: a list of agents and the URLs where each is found (docs/wire.md §8)."""

from collections.abc import Mapping
from datetime import datetime

from attrs import field, frozen

from asap_core.errors import Problem
from asap_core.wire.codec import decode_as
from asap_core.wire.json_values import JsonObject
from asap_core.wire.manifest import MANIFEST_PATH, Manifest, is_absolute_url
from asap_core.wire.rules import (
    DATE_TIME,
    OBJECT,
    TEXT,
    TEXTS,
    TEXTS_BY_NAME,
    URN,
    array,
    array_of,
    parse_timestamp,
)


@frozen(kw_only=True)
class RegistryEntry:
    """One agent in a registry.

    endpoints: URLs by name: `http`, `ws`, `manifest`.
    extra: keys that later versions added.
    """

    id: str = field(validator=URN)
    name: str = field(validator=TEXT)
    description: str = field(validator=TEXT)
    endpoints: dict[str, str] = field(validator=TEXTS_BY_NAME)
    skills: tuple[str, ...] = field(default=(), converter=array, validator=TEXTS)
    asap_version: str = field(validator=TEXT)
    extra: JsonObject = field(factory=dict, validator=OBJECT)


@frozen
class Skipped:
    """An entry that could not be read: its index in the list, and its problems."""

    index: int
    problems: tuple[Problem, ...]


@frozen(kw_only=True)
class Registry:
    """A registry: its readable entries in their order, and a report of the others."""

    version: str = field(validator=TEXT)
    updated_at: datetime = field(converter=parse_timestamp, validator=DATE_TIME)
    agents: tuple[RegistryEntry, ...] = field(
        default=(),
        converter=array,
        validator=array_of(RegistryEntry, "an array of entries"),
    )
    skipped: tuple[Skipped, ...] = ()
    extra: JsonObject = field(factory=dict, validator=OBJECT)


def make_entry(manifest: Manifest, endpoints: Mapping[str, str]) -> RegistryEntry:
    """Make a registry entry from a manifest.

    endpoints: URLs by name: `http` is the agent's base URL, `manifest` its manifest's.
    Raises: ValueError if one of these two isn't an absolute URL.
    """
    urls = [endpoints[name] for name in ("http", "manifest") if name in endpoints]
    if not all(is_absolute_url(url, "http", "https") for url in urls):
        raise ValueError("endpoints: expected absolute URLs such as https://agent.example")
    return RegistryEntry(
        id=manifest.id,
        name=manifest.name,
        description=manifest.description,
        endpoints=dict(endpoints),
        skills=manifest.skill_ids,
        asap_version=manifest.capabilities.asap_version,
    )


def _base_url(entry: RegistryEntry) -> str:
    # Published entries have either the base URL or the endpoint here.
    return entry.endpoints.get("http", "").rstrip("/").removesuffix("/asap")


def asap_url(entry: RegistryEntry) -> str | None:
    """Return the URL that takes the agent's envelopes. Returns None if the entry names no HTTP endpoint."""
    return f"{_base_url(entry)}/asap" if _base_url(entry) else None


def manifest_url(entry: RegistryEntry) -> str | None:
    """Return the URL of the agent's manifest. Returns None if the entry names neither it nor an HTTP endpoint."""
    named = entry.endpoints.get("manifest")
    if named:
        return named
    return f"{_base_url(entry)}{MANIFEST_PATH}" if _base_url(entry) else None


def decode_registry_root(value: Mapping[str, object]) -> Registry:
    """Decode the root of a registry, tolerantly, without its `agents`: `RegistryReader` reads those.

    Raises: InvalidDocument.
    """
    return decode_as({**value, "agents": []}, Registry, "registry", ())


def decode_registry_entry(value: object, *, path: tuple[str | int, ...] = ()) -> RegistryEntry:
    """Decode an entry of a registry, tolerantly.

    path: where the entry is in its document, for errors.
    Raises: InvalidDocument.
    """
    return decode_as(value, RegistryEntry, "registry entry", path)
