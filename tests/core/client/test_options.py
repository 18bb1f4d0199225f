"""The groups of a client's options: their defaults, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from attrs import fields
from attrs.exceptions import FrozenInstanceError

from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.client.options import DiscoveryOptions, RequestOptions, TrustPolicy, as_text, is_location

GROUPS: Any = (TrustPolicy, DiscoveryOptions, RequestOptions)
KEY = "A" * 43 + "="


def test_the_defaults_trust_any_agent_and_look_nowhere() -> None:
    assert TrustPolicy() == TrustPolicy(trusted_keys={}, require_signed=False, allow_changed_agents=False)
    assert DiscoveryOptions() == DiscoveryOptions(
        registries=(), revocations=None, registry_cache=None, cache=DocumentCachePolicy()
    )
    assert RequestOptions() == RequestOptions(timeout=60.0, compress=True)


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_is_frozen_and_takes_keywords_only(group: Any) -> None:
    name = fields(group)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(group(), name, None)
    with pytest.raises(TypeError):
        group(getattr(group(), name))


@pytest.mark.parametrize(
    ("group", "option", "values"),
    [
        (TrustPolicy, "trusted_keys", [{}, {"urn:asap:agent:a": KEY}, {"urn:asap:agent:a": [KEY, KEY]}]),
        (TrustPolicy, "require_signed", [True, False]),
        (TrustPolicy, "allow_changed_agents", [True, False]),
        (DiscoveryOptions, "registries", [(), ["https://r.example/1", "file.json", Path("file.json")]]),
        (DiscoveryOptions, "revocations", [None, "https://r.example/1", Path("file.json")]),
        (DiscoveryOptions, "registry_cache", [None, "/copies", Path("/copies")]),
        (DiscoveryOptions, "cache", [DocumentCachePolicy(max_entries=1)]),
        (RequestOptions, "timeout", [0.1, 1, 3600.0]),
        (RequestOptions, "compress", [True, False]),
    ],
)
def test_valid_options_are_kept_unchanged(group: Any, option: str, values: list[Any]) -> None:
    for value in values:
        assert getattr(group(**{option: value}), option) is value


@pytest.mark.parametrize(
    ("group", "option", "values", "says"),
    [
        (
            TrustPolicy, "trusted_keys", [None, KEY, [KEY], {1: KEY}, {"a": 5}, {"a": [5]}, {"a": None}],
            "a dict of agents with a key or a list of keys for each",
        ),
        (TrustPolicy, "require_signed", [None, 0, 1, "no"], "True or False"),
        (TrustPolicy, "allow_changed_agents", [None, 0, 1, "no"], "True or False"),
        (
            DiscoveryOptions, "registries",
            [None, "file.json", Path("file.json"), [5], [""], {"file.json": 1}, ["ftp://r.example/1"]],
            r"a list of URLs and files, such as \['https://agents.example/registry.json'\]",
        ),
        (
            DiscoveryOptions, "revocations", ["", 5, True, b"x", ["x"], "htps://r.example"],
            "the URL or file of a revocation list",
        ),
        (DiscoveryOptions, "registry_cache", ["", 5, True, b"x", ["x"]], "a directory, as text or Path, or None"),
        (DiscoveryOptions, "cache", [None, 5, {}, DocumentCachePolicy], "a DocumentCachePolicy"),
        (
            RequestOptions, "timeout", [None, "5", 0, 0.0, -1, float("nan"), float("inf"), True, 5j],
            "seconds above 0, such as 60.0",
        ),
        (RequestOptions, "compress", [None, 0, 1, "no"], "True or False"),
    ],
)  # fmt: skip
def test_an_invalid_option_is_refused_with_the_expected_form(
    group: Any, option: str, values: list[Any], says: str
) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"{option}: expected {says}") as caught:
            group(**{option: value})
        assert "\n" not in str(caught.value)


def test_a_location_is_text_or_a_path() -> None:
    for location in ("https://r.example/1", "file.json", Path("file.json")):
        assert is_location(location)
        assert as_text(location) == str(location)
    others: list[object] = [None, 5, b"file.json", ["file.json"], {}]
    assert not any(map(is_location, others))
