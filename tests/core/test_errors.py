"""Errors and refusals: numbered apart from the reference's, and they say what would have been right."""

from asap_core.errors import (
    Advice,
    Allow,
    BadReply,
    NotAllowed,
    NoToken,
    Problem,
    RemoteError,
    TimedOut,
    Unreachable,
    WrongAgent,
)
from asap_core.refusals import KINDS, Refusal


class TestErrors:
    def test_our_error_codes_differ_from_those_of_the_reference(self) -> None:
        references = {
            -32000, -32001, -32002, -32003, -32010, -32011, -32012, -32020, -32030, -32031, -32032, -32033, -32034,
            -32040, -32050, -32051, -32052,
        }  # fmt: skip
        ours = [kind.code for kind in KINDS if -32099 <= kind.code <= -32000 and kind.code not in references]
        assert len(ours) == len(set(ours))
        assert all(code <= -32060 for code in ours)

    def test_the_error_says_why_there_is_no_token(self) -> None:
        told = str(NoToken("https://id.example/token", "nothing within 10 s", next_try=2.0))
        assert told == "no access token from https://id.example/token: nothing within 10 s; not asked again for 2.0 s"
        redirected = NoToken("https://id.example", "it redirects", remedy=Allow("redirects", 2))
        assert str(redirected).endswith("it redirects; allow it with redirects=2")

    def test_each_taxonomy_string_names_one_kind(self) -> None:
        assert len({kind.taxonomy for kind in KINDS}) == len(KINDS)
        assert all(kind.advice and kind.message for kind in KINDS)

    def test_errors_say_what_was_expected(self) -> None:
        said = [
            str(Unreachable("https://a", "refused", 2.0)),
            str(TimedOut("https://a", "nothing")),
            str(BadReply("https://a", "expected JSON", 500)),
            str(BadReply("https://a", "expected JSON")),
            str(WrongAgent("https://a", "urn:asap:agent:a", "urn:asap:agent:b")),
            str(NotAllowed("https://a", "it's far", Advice("move it"))),
            str(RemoteError(code=1, message="no")),
            str(Refusal(kind=KINDS[0], problems=(Problem(("a", 0), "x"),))),
            str(Problem((), "x")),
        ]
        assert said == [
            "no answer from https://a: refused; not asked again for 2.0 s",
            "no answer from https://a: nothing",
            "unusable answer from https://a (HTTP 500): expected JSON",
            "unusable answer from https://a: expected JSON",
            "https://a is urn:asap:agent:b, not urn:asap:agent:a",
            "https://a is not requested: it's far; move it",
            "the agent refused: no [1]",
            "Parse error; $.a[0]: expected x",
            "$: expected x",
        ]
