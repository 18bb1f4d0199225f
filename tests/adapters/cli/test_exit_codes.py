"""How a command ends: exit codes, and the line on stderr."""

import pytest

from asap_adapters.cli.exit_codes import UserError, exit_code
from asap_core import AsapError


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
