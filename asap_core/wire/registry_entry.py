"""The registry as data: search it, make an entry of a manifest, find an agent's URLs in an entry. All pure."""

from collections.abc import Mapping
from typing import Final

from asap_core.wire.manifest import Manifest, is_absolute_url
from asap_core.wire.registry import Registry, RegistryEntry
from asap_core.wire.registry_index import RegistryReader

_MANIFEST_PATH: Final = "/.well-known/asap/manifest.json"


def read_registry(data: bytes) -> Registry:
    """Read a registry from bytes, as `RegistryReader` does in pieces. Raises `InvalidDocument`, whatever the bytes."""
    reader = RegistryReader()
    reader.feed(data)
    catalog = reader.close()
    return Registry(
        version=catalog.version,
        updated_at=catalog.updated_at,
        agents=tuple(catalog.agents),
        skipped=catalog.skipped,
        extra=catalog.extra,
    )


def find(registry: Registry, *, skill: str | None = None, agent_id: str | None = None) -> tuple[RegistryEntry, ...]:
    """The entries that have this skill and this id (exactly; None is any), in file order."""
    return tuple(
        entry
        for entry in registry.agents
        if (skill is None or skill in entry.skills) and (agent_id is None or entry.id == agent_id)
    )


def make_entry(manifest: Manifest, endpoints: Mapping[str, str]) -> RegistryEntry:
    """Make a registry entry of a manifest. `endpoints` by name: `http` the base URL, `manifest` the manifest's.

    Raises ValueError if one of these two isn't an absolute URL.
    """
    given = [endpoints[name] for name in ("http", "manifest") if name in endpoints]
    if not all(is_absolute_url(url, "http", "https") for url in given):
        raise ValueError("endpoints: expected absolute URLs such as https://agent.example")
    return RegistryEntry(
        id=manifest.id,
        name=manifest.name,
        description=manifest.description,
        endpoints=dict(endpoints),
        skills=manifest.skill_ids,
        asap_version=manifest.capabilities.asap_version,
    )


def _base(entry: RegistryEntry) -> str:
    # Entries in the wild put either the base URL or the endpoint here (fault 57).
    return entry.endpoints.get("http", "").rstrip("/").removesuffix("/asap")


def asap_url(entry: RegistryEntry) -> str | None:
    """Where the agent takes envelopes, or None where the entry names no HTTP endpoint."""
    return f"{_base(entry)}/asap" if _base(entry) else None


def manifest_url(entry: RegistryEntry) -> str | None:
    """Where the agent's manifest is, or None where the entry doesn't say."""
    named = entry.endpoints.get("manifest")
    if named:
        return named
    return f"{_base(entry)}{_MANIFEST_PATH}" if _base(entry) else None
