"""The output of the commands."""

import json
import subprocess
import sys

from asap_adapters.cli.output import card, json_text, table, visible

HOSTILE = "a\x1b[31m\r\n\u202eb\x9bc\ud800"


def test_text_from_others_is_escaped_for_the_terminal(capsys) -> None:
    card(HOSTILE, {HOSTILE: HOSTILE, "none": None})
    table([HOSTILE], [[HOSTILE]])
    out = capsys.readouterr().out
    assert out.count("\n") == 4
    assert not any(character in out for character in "\x1b\r\u202e\x9b\ud800")
    assert "none" not in out


def test_json_stays_the_same_document() -> None:
    text = json_text({"é": [HOSTILE, "é"]}, indent=2)
    assert json.loads(text) == {"é": [HOSTILE, "é"]}
    assert visible(text.replace("\n", "")) == text.replace("\n", "")
    assert "é" in text


def test_a_terminal_that_lacks_a_character_gets_an_escape() -> None:
    code = "from asap_adapters.cli.output import *; write_anything(); say('é'); print_json('é')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b'\\xe9\n"\\u00e9"\n'
