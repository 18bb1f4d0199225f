"""The command in this process, and what its refusals have in common."""

import shlex
import sys
from typing import Any

import pytest

from asap_adapters.cli import main


@pytest.fixture
def asap(capsys):
    """Run the command in this process; returns (exit code, stdout, stderr)."""

    def run(*argv: str):
        code: Any
        try:
            code = main(argv)
        except SystemExit as exited:  # argparse's way
            code = exited.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refuses(asap):
    """Check that a command line ends with this code, and prints one line, on stderr, with this text and no secret."""

    def check(argv: str | list[str], code: int, says: str) -> None:
        ended, out, err = asap(*(shlex.split(argv) if isinstance(argv, str) else argv))
        assert (ended, says in err) == (code, True), err
        assert (out, err.count("\n"), err.startswith("asap: ")) == ("", 1, True)
        assert "hunter2" not in err

    return check


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that can be imported in this test only; returns its name."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def write(text: str, name: str = "written") -> str:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    yield write
    sys.modules.pop("written", None)
