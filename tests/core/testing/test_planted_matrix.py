"""The laws and the planted agent hold each other: the correct agent keeps every law, and every law can fail."""

import pytest

from asap_core.testing.laws.catalogue import LAWS
from asap_core.testing.laws.law import Law
from asap_core.testing.laws.runner import LawResult, RecordedExchange, Result
from asap_core.testing.planted.found_by import SWITCHES_OF, UNFOUND, WIDER
from asap_core.testing.planted.matrix import EXPENSIVE, broken_by, candidates, complaints
from asap_core.testing.planted.switches import SWITCHES
from asap_core.testing.planted.trial import asked_for, tried, tried_without_a_token

# Laws that take a second, each with a switch that breaks it: the search would try others first.
KNOWN = {
    "compression.bombs": "compression.bomb",
    "idempotency.many_calls_later": "idempotency.last_thousand_only",
    "limits.a_large_body": "limits.body",
    "limits.a_large_chunked_body": "limits.chunked_body",
    "replay.many_calls_later": "replay.last_thousand_only",
}


def breaks(switch: str, law: Law) -> bool:
    return tried([law], switch)[0].outcome is LawResult.FAILED


@pytest.fixture(scope="module")
def results() -> list[Result]:
    """All laws on the correct agent."""
    return tried(LAWS)


def test_the_correct_agent_keeps_every_law(results) -> None:
    assert [(each.law.id, each.remark) for each in results if each.outcome is not LawResult.PASSED] == []


def posts(result: Result) -> list[RecordedExchange]:
    """The exchanges of a law that called the endpoint."""
    return [each for each in result.exchanges if b"POST /asap " in each.sent]


def test_without_a_token_no_law_calls_an_agent_that_requires_one() -> None:
    """Such a law would see only the refusal of its caller, and be kept whatever the agent does with the rest."""
    calling = {each.law.id for each in tried_without_a_token(LAWS) if posts(each)}
    assert calling == {"bodies.bodies_of_refused_calls"}  # the refusal of a stranger is one of its examples


def test_with_a_token_each_law_that_calls_gets_past_authentication(results) -> None:
    """But those of callers that must be refused."""
    calling = [each for each in results if posts(each)]
    unheard = [each.law for each in calling if all(b" 401 " in one.received[:20] for one in posts(each))]
    assert len(calling) > len(LAWS) / 2
    assert [law.id for law in unheard if law.group != "identity"] == ["errors.no_token_is_repeated"]


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.id)
def test_every_law_can_fail(law: Law) -> None:
    """A switch of the law's own group breaks it, or of another one. The command `--matrix` shows all that do."""
    if law.id in KNOWN:
        assert breaks(KNOWN[law.id], law)
    else:
        own = SWITCHES_OF.get(law.group, law.group)
        others_last = sorted(asked_for(law), key=lambda name: (name.partition(".")[0] != own, name))
        assert any(breaks(switch, law) for switch in others_last)


def test_laws_that_did_not_ask_for_a_switch_are_kept_with_it() -> None:
    """So the matrix needn't try them."""
    cheap = [law for law in LAWS if law.id not in EXPENSIVE]
    switches = ["replay.same_nonce_other_id", "json_text.nan", "discovery.etag_missing"]
    for switch, some in candidates(switches, cheap).items():
        assert broken_by(switch, cheap) == broken_by(switch, some) != ()


def test_the_tables_name_switches_once() -> None:
    explained = [name for names in WIDER.values() for name in names]
    assert len(explained) == len(set(explained))
    assert {*explained, *UNFOUND} <= SWITCHES.keys()


def test_a_matrix_that_the_tables_do_not_explain_is_complained_of() -> None:
    first, second = LAWS[0].id, LAWS[-1].id
    matrix = {
        "json_text.nan": (),
        "json_text.infinity": (first,),
        "replay.evicted_at_the_bound": ("replay.same_envelope",),
    }
    assert [*complaints(matrix, [LAWS[0], LAWS[-1]])] == [
        "json_text.nan breaks no law, and isn't in UNFOUND",
        f"json_text.infinity breaks laws of other groups, and isn't in WIDER: {first}",
        "replay.evicted_at_the_bound is in UNFOUND, and breaks replay.same_envelope",
        f"{second} is broken by no switch",
    ]
