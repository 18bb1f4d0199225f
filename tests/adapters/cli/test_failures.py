"""How a command ends: exit codes, and the line on stderr."""

import pytest

from asap_adapters.cli.failures import UserError, exit_code, in_words
from asap_core import AsapError
from asap_core.errors import Allow, BadReply, InvalidDocument, NotAllowed, NoToken, Problem, RemoteError, Unreachable


def raising(error: BaseException) -> int:
    def act() -> int:
        raise error

    return exit_code(act)


def test_a_command_that_returns_has_its_own_exit_code() -> None:
    assert exit_code(lambda: 7) == 7


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no such thing"), 1, "asap: no such thing\n"),
        (UserError("no such option", usage=True), 2, "asap: no such option\n"),
        (AsapError("no answer"), 1, "asap: no answer\n"),
        (FileNotFoundError(2, "No such file", "f"), 1, "asap: f: No such file\n"),
        (ValueError("not a number"), 1, "asap: not a number\n"),
        (ExceptionGroup("of a task group", [ValueError("the first"), OSError()]), 1, "asap: the first\n"),
        (ModuleNotFoundError("x needs y: pip install 'asap-sansio[y]'"), 1, "asap: x needs y: pip install 'asap-sa"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_error_is_one_line_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    assert raising(error) == code
    out, err = capsys.readouterr()
    assert (out, err.startswith(line), err.count("\n")) == ("", True, 1 if line else 0)


@pytest.mark.parametrize("error", [ZeroDivisionError(), ModuleNotFoundError("No module named 'x'"), SystemExit(3)])
def test_a_bug_is_raised_again(error: BaseException) -> None:
    with pytest.raises(type(error)):
        raising(error)


def test_a_refusal_has_advice() -> None:
    refused = RemoteError(code=-32003, message="Seen", taxonomy="asap:protocol/invalid_nonce")
    assert in_words(refused).endswith("leave --nonce out, or give a new one")
    assert in_words(RemoteError(code=1, message="No")) == "the agent refused: No [1]"


def test_problems_of_an_envelope_are_listed_in_short() -> None:
    problems = [{"loc": ["envelope", "sender"], "msg": "expected a URN"}, {"msg": "b"}, 5, *[{"msg": "c"}] * 50]
    told = in_words(RemoteError(code=-32602, message="No", details={"validation_errors": problems}))
    assert "No: envelope.sender: expected a URN [-32602]; b; a problem that it doesn't name; c; c" in told
    assert told.count("; c") == 2


def test_a_document_with_many_problems_makes_a_short_line() -> None:
    problems = tuple(Problem(("agents", index), "an entry") for index in range(100))
    assert in_words(InvalidDocument("registry", problems)).endswith("; and 95 more")
    assert "more" not in in_words(InvalidDocument("registry", problems[:5]))


def test_advice_names_the_options_of_the_command() -> None:
    asked = NotAllowed("https://b.example", "r", Allow("allow_endpoints", "https://b.example:443"))
    assert str(asked).endswith("r; allow it with allow_endpoints=['https://b.example:443']")
    assert in_words(asked).endswith("r; allow it with --allow-endpoint https://b.example:443")


def test_a_remedy_without_an_option_of_the_command_is_omitted() -> None:
    redirected = BadReply("https://b.example", "redirects aren't followed", 308, remedy=Allow("redirects", 2))
    assert str(redirected).endswith("redirects aren't followed; allow it with redirects=2")
    assert in_words(redirected).endswith("redirects aren't followed")
    no_token = NoToken("https://id.example", "redirects aren't followed", remedy=Allow("redirects", 2))
    assert in_words(no_token) == "no access token from https://id.example: redirects aren't followed"


def test_the_time_of_the_next_try_is_omitted() -> None:
    assert in_words(Unreachable("https://a.example", "no", 1.0)) == "no answer from https://a.example: no"


def test_an_error_without_a_message_is_shown_by_its_name() -> None:
    assert in_words(ValueError()) == "ValueError"
    assert in_words(OSError(2, "No such file", "f")) == "f: No such file"
    assert in_words(OSError(2, "No such file")) == "No such file"
