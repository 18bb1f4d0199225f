"""The figures are right, and figures with a limit stay within it."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import anyio
import pytest

from tests.house.guarantees import guarantees
from tests.house.jobs import a_post
from tests.house.source import ROOT, Module, circles, module_map, read_modules, twice

modules_of_today = cache(read_modules)
# What a reader who follows one POST opens, on asyncio.
FILES_OF_A_POST = 26


def module(name: str, text: str, *imports: str) -> Module:
    return Module(name, Path(name), ast.parse(text), text, frozenset(imports))


@pytest.mark.planted
def test_a_planted_import_cycle_is_found() -> None:
    modules = {name: module(name, "", *to) for name, to in {"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}.items()}
    assert circles(modules) == [["a", "b", "c"]]


def test_no_modules_import_each_other() -> None:
    assert circles(modules_of_today()) == []  # imports for type checkers count


def test_a_class_name_that_two_modules_define_is_found() -> None:
    text = "Aa = int\nclass _Bb: ...\ndef c(): ..."
    assert twice({"a": module("a", text), "b": module("b", text), "c": module("c", "from a import Aa")}) == {
        "Aa": ["a", "b"]
    }


def test_no_class_name_is_defined_twice() -> None:
    assert twice(modules_of_today()) == {}


def test_all_modules_are_read() -> None:
    modules = modules_of_today()
    assert {"asap_core", "asap_core.errors", "asap_adapters.cli"} <= set(modules)
    assert "asap_core.errors" in modules["asap_core.wire.codec"].imports
    assert modules["asap_core.clock"].functions
    assert modules["asap_core.clock"].lines == modules["asap_core.clock"].text.count("\n")


def test_the_tests_of_a_guarantee_are_those_that_it_names() -> None:
    text = "**1.** One.\n* Held by: `tests/a.py::test_b`,\n  `tests/a.py::TestC::test_d`\n\n**2.** Two. `tests/a.py`\n"
    assert guarantees(text) == [(1, ["tests/a.py::test_b", "tests/a.py::TestC::test_d"]), (2, [])]


@pytest.mark.live
def test_a_post_touches_the_modules_of_the_server_only() -> None:
    touched = anyio.run(a_post)
    assert {"asap_core/server/exchange.py", "asap_core/server/call.py"} <= set(touched.files)
    assert not any("client" in file for file in touched.files)
    assert len(touched.files) <= FILES_OF_A_POST
    named = (ROOT / "docs" / "architecture.md").read_text("utf-8").partition("### A POST, file by file")[2]
    assert sorted(re.findall(r"^\| `(.+?\.py)` \|", named.partition("\n## ")[0], re.MULTILINE)) == touched.files
    assert set(touched.lines) == set(touched.files)
    assert 0 < min(touched.lines.values()) <= max(touched.lines.values()) < 400


@pytest.mark.live
def test_the_command_prints_only_figures() -> None:
    command = [sys.executable, "-m", "tests.house", "--files", "--modules"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "a POST: " in done.stdout
    assert "circles of imports: 0" in done.stdout
    assert done.stderr == ""


def test_the_map_shows_every_module() -> None:
    assert (ROOT / "docs" / "modules.md").read_text("utf-8") == module_map(modules_of_today())
