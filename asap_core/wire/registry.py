"""The registry as values: a list of agents, each with where to find it (wire-protocol §8)."""

from datetime import datetime
from typing import Any

from attrs import field, frozen

from asap_core.errors import Problem
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
    """One agent in a registry. `endpoints` holds URLs by name: `http`, `ws`, `manifest`; `extra` what 2.x added."""

    id: str = field(validator=URN)
    name: str = field(validator=TEXT)
    description: str = field(validator=TEXT)
    endpoints: dict[str, str] = field(validator=TEXTS_BY_NAME)
    skills: tuple[str, ...] = field(default=(), converter=array, validator=TEXTS)
    asap_version: str = field(validator=TEXT)
    extra: dict[str, Any] = field(factory=dict, validator=OBJECT)


@frozen
class Skipped:
    """An entry that could not be read: its place in the list, and what is wrong with it."""

    index: int
    problems: tuple[Problem, ...]


@frozen(kw_only=True)
class Registry:
    """A registry as it was read: the usable entries in file order, and a report of the others."""

    version: str = field(validator=TEXT)
    updated_at: datetime = field(converter=parse_timestamp, validator=DATE_TIME)
    agents: tuple[RegistryEntry, ...] = field(
        default=(),
        converter=array,
        validator=array_of(RegistryEntry, "an array of entries"),
    )
    skipped: tuple[Skipped, ...] = ()
    extra: dict[str, Any] = field(factory=dict, validator=OBJECT)
