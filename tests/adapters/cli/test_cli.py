"""The command line as a whole: commands, help, versions, exit codes. tests/live has what needs processes."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from asap_adapters.cli import GROUPS, HOMES, commands, main


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        ("", 2, "COMMAND"),
        ("nonsense", 2, "invalid choice"),
        ("demo more", 2, "unrecognized"),
        ("bench", 2, "COMMAND"),
        ("bench admission --live 2000000", 2, "a number, 1 to 1000000"),
    ],
)
def test_a_wrong_command_line_is_refused(refuses, argv, code, says) -> None:
    refuses(argv, code, says)


def test_a_bug_is_raised_with_its_traceback(monkeypatch, tmp_path) -> None:
    (tmp_path / "r.json").write_text('{"version": "1", "updated_at": "2026-01-01T00:00:00Z", "agents": []}')
    monkeypatch.setattr("asap_core.wire.registry_index.RegistryIndex.find", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["registry", "find", str(tmp_path / "r.json")])


def test_the_version_is_that_of_the_distribution(asap) -> None:
    assert asap("--version")[:2] == (0, f"asap-sansio {version('asap-sansio')}\n")


@pytest.mark.parametrize("command", [*GROUPS, *(command.name for command in commands())])
def test_every_command_has_help(asap, command) -> None:
    code, out, err = asap(*command.split(), "--help")
    assert (code, out.startswith(f"usage: asap {command}"), err) == (0, True, "")


def test_each_command_is_found_by_its_first_word_alone() -> None:
    assert {command.name.split()[0] for command in commands()} == set(HOMES)
    for word in HOMES:
        assert word in {command.name.split()[0] for command in commands(word)}


def test_a_server_starts_without_what_only_clients_need() -> None:
    code = "import sys; from asap_adapters.cli import parser; parser('serve'); print('httpx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
