"""What a wanted agent must be, and the messages of errors about it."""

import pytest
from hypothesis import given, strategies as st

from asap_core.client import trust
from asap_core.client.search import TraceEntry, TraceVerdict
from asap_core.client.trust import Wanted, is_version
from asap_core.errors import AgentChanged, AsapError, NotResolved, Unsuitable, WrongAgent
from asap_core.wire.codec import decode_manifest
from asap_core.wire.manifest import Manifest

URN = "urn:asap:agent:wanted"
OTHER = "urn:asap:agent:other"


def manifest(urn: str = URN, *, skill: str = "echo", version: str = "0.1", supported=None) -> Manifest:
    return decode_manifest(
        {
            "id": urn, "name": "A", "version": "1.0.0", "description": "", "endpoints": {"asap": "https://a/asap"},
            "capabilities": {"asap_version": version, "skills": [{"id": skill, "description": ""}]},
            **({} if supported is None else {"supported_versions": supported}),
        }
    )  # fmt: skip


class TestWanted:
    def test_all_requirements_are_checked(self) -> None:
        wanted = Wanted(urn=URN, skill="echo", least_version="1.1")
        assert wanted.judge(manifest(version="1.1.0"), "https://a") is None
        assert Wanted().judge(manifest(OTHER), "https://a") is None
        for wrong, error, words in (
            (manifest(OTHER), WrongAgent, "https://a:443 is urn:asap:agent:other, not urn:asap:agent:wanted"),
            (manifest(skill="other"), Unsuitable, f"{URN} at https://a:443 doesn't have the skill echo"),
            (manifest(version="1.0"), Unsuitable, f"{URN} at https://a:443 doesn't have ASAP 1.1 or later"),
        ):
            found = wanted.judge(wrong, "https://user:secret@a?token=secret")
            assert type(found) is error
            assert str(found) == words

    @pytest.mark.parametrize(
        ("spoken", "least", "fits"),
        [
            ("2.1", "2.1", True), ("2.1.0", "2.1", True), ("2.1", "2.1.0.0", True), ("2.10", "2.9", True),
            ("2.0", "2.1", False), ("2.1rc1", "2.1", False), ("2.1-rc.1", "2.1b2", True), ("2.1.dev3", "2.1a", False),
            ("2.1a2", "2.1alpha1", True), ("2.1b", "2.1rc", False), ("2.1rc10", "2.1rc9", True), ("soon", "1", False),
            ("2.1rc1", "2.1rc2", False), ("2.1rc0", "2.1rc", True), ("2.1rc", "2.1rc1", False),
            ("2.1a1", "2.1alpha1", True), ("2.1alpha1", "2.1a1", True), ("2.1b1", "2.1beta1", True),
            ("2.1beta1", "2.1b1", True), ("2.1.dev0", "2.1a0", False), ("2.1alpha", "2.1beta", False),
        ],
    )  # fmt: skip
    def test_versions_are_ordered_as_in_pep_440(self, spoken, least, fits) -> None:
        wanted = Wanted(least_version=least)
        assert (wanted.judge(manifest(version=spoken), "https://a") is None) == fits
        assert (wanted.judge(manifest(version="0.1", supported=["0.2", spoken]), "https://a") is None) == fits

    @given(st.text(max_size=12) | st.from_regex(r"\d\.\d(rc\d)?", fullmatch=True))
    def test_any_text_is_a_version_or_is_refused(self, text: str) -> None:
        assert is_version(text) == (trust._order(text) != ((), 0, 0))
        if not is_version(text):
            with pytest.raises(ValueError, match="expected as least version") as caught:
                Wanted(least_version=text)
            assert "text" not in str(caught.value)

    def test_an_invalid_urn_is_refused(self) -> None:
        with pytest.raises(ValueError, match="urn: expected"):
            Wanted(urn="me")


def test_errors_have_the_expected_messages() -> None:
    errors: list[AsapError] = [
        AgentChanged("https://a", URN, OTHER),
        NotResolved(URN, ()),
        NotResolved(URN, (TraceEntry("r", TraceVerdict.FAILED, "down"), TraceEntry("s", TraceVerdict.TAKEN, "listed"))),
    ]
    assert list(map(str, errors)) == [
        f"https://a is {OTHER} now, and was {URN}; call forget(url) if this is intended",
        f"{URN} isn't found: no registry is configured, and the local network isn't asked",
        f"{URN} isn't found: r: down; s: listed",
    ]
