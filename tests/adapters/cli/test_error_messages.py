"""Errors in the words of the command line."""

from asap_adapters.cli.error_messages import in_words
from asap_core.errors import Allow, BadReply, InvalidDocument, NotAllowed, NoToken, Problem, RemoteError, Unreachable


def test_a_refusal_comes_with_what_to_do() -> None:
    refused = RemoteError(code=-32003, message="Seen", taxonomy="asap:protocol/invalid_nonce")
    assert in_words(refused).endswith("leave --nonce out, or give a new one")
    assert in_words(RemoteError(code=1, message="No")) == "the agent refused: No [1]"


def test_what_is_wrong_with_the_envelope_is_listed_shortly() -> None:
    problems = [{"loc": ["envelope", "sender"], "msg": "expected a URN"}, {"msg": "b"}, 5, *[{"msg": "c"}] * 50]
    told = in_words(RemoteError(code=-32602, message="No", details={"validation_errors": problems}))
    assert "No: envelope.sender: expected a URN [-32602]; b; a problem that it doesn't name; c; c" in told
    assert told.count("; c") == 2


def test_a_document_with_many_problems_makes_a_short_line() -> None:
    problems = tuple(Problem(("agents", index), "an entry") for index in range(100))
    assert in_words(InvalidDocument("registry", problems)).endswith("; and 95 more")
    assert "more" not in in_words(InvalidDocument("registry", problems[:5]))


def test_options_are_the_commands() -> None:
    asked = NotAllowed("https://b.example", "r", Allow("allow_endpoints", "https://b.example:443"))
    assert str(asked).endswith("r; allow it with allow_endpoints=['https://b.example:443']")
    assert in_words(asked).endswith("r; allow it with --allow-endpoint https://b.example:443")


def test_what_the_command_has_no_option_for_is_not_advised() -> None:
    redirected = BadReply("https://b.example", "redirects aren't followed", 308, remedy=Allow("redirects", 2))
    assert str(redirected).endswith("redirects aren't followed; allow it with redirects=2")
    assert in_words(redirected).endswith("redirects aren't followed")
    no_token = NoToken("https://id.example", "redirects aren't followed", remedy=Allow("redirects", 2))
    assert in_words(no_token) == "no access token from https://id.example: redirects aren't followed"


def test_when_to_try_again_is_for_programs_that_go_on() -> None:
    assert in_words(Unreachable("https://a.example", "no", 1.0)) == "no answer from https://a.example: no"


def test_an_error_without_words_has_its_name() -> None:
    assert in_words(ValueError()) == "ValueError"
    assert in_words(OSError(2, "No such file", "f")) == "f: No such file"
    assert in_words(OSError(2, "No such file")) == "No such file"
