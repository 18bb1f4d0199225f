"""The example drivers as documentation: short, of public names only, each tested by a file of its name."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRIVERS = sorted((ROOT / "docs" / "drivers").glob("*.py"))
# Lines of a server and a client, together with what both use.
MOST = 60 + 60
PUBLIC = {"asap_core", "asap_core.client"}
_SECTION = re.compile(r"# --- (\w+) -+$")
_LAYOUT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
}  # fmt: skip


def code_lines(text: str) -> set[int]:
    """The lines that hold code: no blank lines, comments, docstrings or imports."""
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Expr(ast.Constant(value=str())):
                skipped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            case _:
                pass
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _LAYOUT:
            held |= set(range(token.start[0], token.end[0] + 1))
    return held - skipped


def sizes(text: str) -> dict[str, int]:
    """The lines of code of each section. They start with `# --- server ---` or another name, and dashes."""
    counts, section = {"server": 0, "client": 0, "store": 0, "both": 0}, "both"
    code = code_lines(text)
    for number, line in enumerate(text.splitlines(), 1):
        begun = _SECTION.match(line)
        section = begun[1] if begun else section
        counts[section] += number in code
    return counts


def imported(text: str) -> set[str]:
    """Which modules of this project are imported."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("asap_core", "asap_adapters")}


@pytest.mark.parametrize("path", DRIVERS, ids=lambda path: path.stem)
def test_a_driver_is_short_documented_and_made_of_public_names(path: Path) -> None:
    text = path.read_text("utf-8")
    assert ast.get_docstring(ast.parse(text)), "a docstring says what the runtime can't do"
    assert imported(text) <= PUBLIC
    found = sizes(text)
    # A store is beside the 120 lines: a driver whose processes share none has none.
    assert 0 <= found.pop("store") <= MOST / 2
    assert sum(found.values()) <= MOST, found
    assert 0 < found["server"] <= MOST / 2, found
    assert 0 < found["client"] <= MOST / 2, found
    assert (Path(__file__).parent / f"test_{path.stem.removesuffix('_driver')}.py").exists()


def test_sizes_count_code_and_nothing_else() -> None:
    text = '"""A."""\nimport os\n\nA = 1\n# --- server ---\n# why\ndef f():\n    """B."""\n    return (\n        1)\n'
    assert sizes(text + "# --- client ---\nx = 2\n") == {"server": 3, "client": 1, "store": 0, "both": 1}
    assert imported("import asap_core.wire\nfrom asap_core import Agent\nimport attrs") == {
        "asap_core.wire",
        "asap_core",
    }
