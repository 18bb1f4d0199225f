"""The laws and the planted agent hold each other: the correct agent keeps every law, and every law can fail."""

import pytest

from asap_core.testing.laws.catalogue import LAWS
from asap_core.testing.laws.law import Law
from asap_core.testing.laws.runner import LawResult
from asap_core.testing.planted.matrix import EXPENSIVE, broken_by, measure
from asap_core.testing.planted.trial import asked_for, tried

# Laws that take a second, each with a switch that breaks it: the search would try others first.
KNOWN = {"compression.bombs": "compression.bomb", "limits.a_large_body": "limits.body"}


def breaks(switch: str, law: Law) -> bool:
    return tried([law], switch)[0].outcome is LawResult.FAILED


def test_the_correct_agent_keeps_every_law() -> None:
    results = tried(LAWS)
    assert [(each.law.id, each.remark) for each in results if each.outcome is not LawResult.PASSED] == []


@pytest.mark.planted
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.id)
def test_every_law_can_fail(law: Law) -> None:
    """A switch of the law's own group breaks it, or of another one. The command `--matrix` shows all that do."""
    others_last = sorted(asked_for(law), key=lambda name: (not name.startswith(f"{law.group}."), name))
    assert any(breaks(switch, law) for switch in [KNOWN.get(law.id, others_last[0]), *others_last])


@pytest.mark.parametrize("switch", ["replay.same_nonce_other_id", "json_text.nan", "discovery.etag_missing"])
def test_laws_that_did_not_ask_for_a_switch_are_kept_with_it(switch: str) -> None:
    """So the matrix needn't try them."""
    cheap = [law for law in LAWS if law.id not in EXPENSIVE]
    assert broken_by(switch, cheap) == measure([switch])[switch]
