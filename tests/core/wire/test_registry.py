"""Entries of a registry: made from a manifest, and the URLs found in them."""

from attrs import evolve
from hypothesis import given

from asap_core.testing import manifests
from asap_core.wire.registry import RegistryEntry, asap_url, make_entry, manifest_url

ENTRY = RegistryEntry(
    id="urn:asap:agent:a",
    name="A",
    description="",
    asap_version="0.1",
    endpoints={"http": "https://a.example/asap/"},
)


def test_urls_have_the_suffix_once() -> None:
    assert asap_url(ENTRY) == "https://a.example/asap"
    assert manifest_url(ENTRY) == "https://a.example/.well-known/asap/manifest.json"


def test_an_entry_without_urls_has_none() -> None:
    without = evolve(ENTRY, endpoints={})
    assert (asap_url(without), manifest_url(without)) == (None, None)
    assert manifest_url(evolve(ENTRY, endpoints={"manifest": "https://m"})) == "https://m"


@given(manifests())
def test_an_entry_is_made_from_a_manifest(manifest) -> None:
    entry = make_entry(manifest, {"http": "https://a"})
    assert (entry.id, entry.skills, entry.asap_version) == (manifest.id, manifest.skill_ids, "0.1")
