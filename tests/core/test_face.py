"""The core's face: each public name is there on first use."""

import pytest
from attrs import evolve
from hypothesis import given

import asap_core
from asap_core.testing import envelopes


class TestThePublicFace:
    def test_the_public_names_are_unchanged(self) -> None:
        assert set(asap_core.__all__) >= {"Agent", "Envelope", "Manifest", "Skill", "Policy", "Request", "Response"}
        assert all(hasattr(asap_core, name) for name in asap_core.__all__)
        assert sorted(asap_core.__all__) == asap_core.__all__
        assert set(asap_core.__all__) <= set(dir(asap_core))
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            getattr(asap_core, "nothing")  # noqa: B009 - the type checker knows that there's none

    @given(envelopes())
    def test_an_envelope_is_unhashable_and_equal_by_value(self, envelope) -> None:
        assert evolve(envelope) == envelope
