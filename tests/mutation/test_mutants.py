"""The tool itself: its mutants are changes, its survivors are mutants, and what no test notices survives."""

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.__main__ import ROOT, TESTS, files_of, label, read
from tests.mutation.mutants import Module, Mutant, headline
from tests.mutation.runs import import_name
from tests.mutation.survivors import known_survivors


def mutants_of(text: str) -> list[tuple[str, str]]:
    module = Module("m", Path("m.py"), ast.parse(text))
    return [(mutant.was, mutant.became) for mutant in module.mutants()]


@pytest.mark.parametrize(
    ("was", "became"),
    [
        ("x = a < b", ["x = a <= b", "x = a >= b"]),
        ("x = a is not b", ["x = a is b"]),
        ("x = 0 < a", ["x = 0 <= a", "x = 0 >= a", "x = 1 < a"]),
        ("x = a and b", ["x = a or b", "x = b", "x = a"]),
        ("x = not a", ["x = a"]),
        ("x = a + b", ["x = a - b"]),
        ("x = True", ["x = False"]),
        ("x = b'GET'", ["x = b'GET?'"]),
        ("x = max(a, b)", ["x = min(a, b)"]),
        ("x = a.strip()", ["x = a"]),
        ("x = a if b else c", ["x = a", "x = c", "x = a if not b else c"]),
        ("x = [a for a in b if a]", ["x = [a for a in b]"]),
        ("x.y = a", ["pass"]),
        ("f(a)", ["pass"]),
        ("del x.y", ["pass"]),
        # What says nothing of behaviour stays as it is.
        ("x = 'words'", []),
        ("x: int | None = a", []),
        ("x.y: int", []),
        ("X = A | B", []),
        ("del x", []),
        ("assert x == 1", []),
        ("import x", []),
        ("'''words'''", []),
        ("assert_never(x)", []),
        ("x = field(repr=False)", []),
        ("if TYPE_CHECKING:\n    f(a)", []),
    ],
)
def test_a_statement_has_the_expected_mutants(was: str, became: list[str]) -> None:
    assert mutants_of(was) == [(headline(ast.parse(was).body[0]), each) for each in became]


def test_a_function_has_the_expected_mutants() -> None:
    text = "@f(1)\ndef g(a, b=2):\n    if a(b):\n        return b\n    while True:\n        continue"
    assert mutants_of(text) == [
        ("def g(a, b=2)", "def g(a, b=3)"),
        ("if a(b)", "if not a(b)"),
        ("return b", "return None"),
        ("while True", "while not True"),
        ("while True", "while False"),
        ("continue", "break"),
    ]


@pytest.mark.parametrize("name", [label(module) for module in TESTS])
def test_a_mutant_compiles_and_differs_from_the_module(name: str) -> None:
    """One mutant in forty: each costs two passes over its module. `python -m tests.mutation` compiles all of them."""
    module = read(name)
    text = ast.unparse(module.tree)
    for mutant in module.mutants()[::40]:
        with mutant.planted():
            assert ast.unparse(module.tree) != text
        mutant.compiled()
    assert ast.unparse(module.tree) == text
    assert all(path.exists() for path in files_of(name))
    assert importlib.util.find_spec(import_name(read(name).path)) is not None


def test_every_known_survivor_is_a_mutant_with_a_reason() -> None:
    known = known_survivors(ROOT)
    mutants: set[Any] = {mutant.identity for name in map(label, TESTS) for mutant in read(name).mutants()}
    assert [identity for identity in known if identity not in mutants] == []
    assert all(len(why) > 10 for why in known.values())
    _, table = (ROOT / "docs" / "mutation.md").read_text("utf-8").split("## Known survivors")
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(known) == len(rows) - 1


def test_the_identity_of_a_mutant_has_no_line_number() -> None:
    def identities(text: str) -> list[tuple[str, str, str, str]]:
        mutants: list[Mutant] = Module("m", Path("m.py"), ast.parse(text)).mutants()
        return [mutant.identity for mutant in mutants]

    text = "class A:\n    def f(self):\n        return 1"
    assert identities(text) == identities("\n\n\n" + text)
    assert identities(text)[0][:2] == ("m", "A.f")
