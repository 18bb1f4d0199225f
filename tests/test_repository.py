"""The repository as its users find it: files, links, and working examples."""

import ast
import functools
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest

import asap_core
from asap_core.refusals import KINDS
from tests.builders import agent

ROOT = Path(__file__).parent.parent
TOP_LEVEL = {
    "pyproject.toml", "asap_core", "asap_adapters", "tests", "benchmarks", "docs", "README.md",
    "LICENSE", "CHANGELOG.md", ".ci", ".gitignore",
}  # fmt: skip
README = (ROOT / "README.md").read_text("utf-8")
parsed = functools.cache(lambda path: ast.parse(path.read_text("utf-8")))
# The modules that offer names to users; `test_public_names.py` lists the names.
FACES = {
    "asap_core/__init__.py", "asap_core/auth/__init__.py", "asap_core/client/__init__.py",
    "asap_core/testing/__init__.py",
    "asap_adapters/__init__.py", "asap_adapters/auth/__init__.py", "asap_adapters/testing.py",
}  # fmt: skip
# Over 400 lines, with the reason.
LONG = {
    "asap_core/testing/planted/break_table.py": "a table",
    "asap_core/server/call.py": "one machine; its states, their moves and its answers belong together",
    "asap_core/server/exchange.py": "one machine; its order of checks reads from top to bottom",
}


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        return [str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if ".venv" not in path.parts]
    return done.stdout.splitlines()


def python_files(*folders: str) -> list[str]:
    return [name for name in tracked() if name.endswith(".py") and name.split("/")[0] in folders]


def test_the_top_level_has_the_expected_files() -> None:
    assert {name.split("/")[0] for name in tracked()} == TOP_LEVEL


def test_no_link_is_committed() -> None:
    # A link points to a place on one machine; a clone elsewhere finds nothing there.
    assert [name for name in tracked() if (ROOT / name).is_symlink()] == []


def test_no_file_names_a_path_of_a_developers_machine() -> None:
    machine = re.compile(r"(?<![\w./*:-])/(?:home|root|work|tmp|Users|opt)/[A-Za-z0-9._-]")
    found = []
    for name in tracked():
        text = (ROOT / name).read_text("utf-8", "replace")
        found += [f"{name}: {line}" for line in text.splitlines() if machine.search(line) and "re.compile" not in line]
    assert found == []


@pytest.mark.parametrize("name", ["asap_core", "asap_adapters", "asap_adapters.auth"])
def test_a_face_exports_the_names_that_type_checkers_see(name: str) -> None:
    package = importlib.import_module(name)
    tree = ast.parse(Path(str(package.__file__)).read_text("utf-8"))
    told = {
        (alias.name, node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asap") and node.col_offset
        for alias in node.names
    }
    assert told == {(one, home) for home, names in package._HOMES.items() for one in names.split()}
    for one, home in told:
        assert getattr(package, one) is getattr(importlib.import_module(str(home)), one)


def test_importing_the_face_imports_no_other_module() -> None:
    code = "import sys, asap_core; print(*sorted(name for name in sys.modules if name.startswith(('asap_', 'attr'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "asap_core asap_core.lazy_imports\n"


@pytest.mark.parametrize("name", python_files("asap_core", "asap_adapters"))
def test_a_module_has_a_docstring_and_only_faces_have_all(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a docstring"
    assert ("__all__" in text) == (name in FACES)
    assert len(text.splitlines()) <= 400 or name in LONG


@pytest.mark.parametrize("name", python_files("asap_core", "asap_adapters"))
def test_no_exception_is_shared(name: str) -> None:
    """One that's raised again and again keeps every frame that it was raised in, and all that was read there."""
    tree = parsed(ROOT / name)
    made = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    raised = {node.exc.id for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name)}
    assert not made & raised


def constants_below_their_first_use(text: str) -> list[str]:
    """Return the constants that could stand above the first function or class that uses them, and don't.

    A table of functions stands below its functions.
    """
    body = ast.parse(text).body
    uses = [
        {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        for statement in body
    ]
    homes: dict[str, int] = {}
    for place, statement in enumerate(body):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            homes[statement.name] = place
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
                homes |= {node.id: place for node in ast.walk(target) if isinstance(node, ast.Name)}
    return [
        name
        for name, place in homes.items()
        if isinstance(body[place], ast.Assign | ast.AnnAssign)
        for first in [next((before for before in range(place) if name in uses[before]), place)]
        if first < place and all(homes.get(needed, -1) < first for needed in uses[place] - {name})
    ]


@pytest.mark.parametrize("name", python_files("asap_core", "asap_adapters"))
def test_constants_stand_above_their_first_use(name: str) -> None:
    assert constants_below_their_first_use((ROOT / name).read_text("utf-8")) == []


def test_a_constant_below_its_first_use_is_found() -> None:
    assert constants_below_their_first_use("def f():\n    return A\nA = 1") == ["A"]
    assert constants_below_their_first_use("A = 1\ndef f():\n    return A + T\ndef g(): ...\nT = g") == []


@pytest.mark.parametrize("name", python_files("tests"))
def test_a_test_that_expects_a_failed_assertion_is_marked_planted(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    for node in ast.walk(ast.parse(text)) if "AssertionError" in text else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            marks = [ast.unparse(one) for one in node.decorator_list]
            expects = re.search(r"raises\(\(?AssertionError\b", ast.unparse(node))
            assert expects is None or "pytest.mark.planted" in marks, node.name


def test_both_packages_are_typed() -> None:
    assert (ROOT / "asap_core" / "py.typed").exists()
    assert (ROOT / "asap_adapters" / "py.typed").exists()


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = next(line for line in README.splitlines() if line.endswith(".venv/bin/pytest -n auto --dist loadfile"))
    assert command in (ROOT / ".ci" / "run").read_text("utf-8")


def left_out(options: Sequence[str], script: str) -> list[str]:
    """Return the markers of tests that pytest's `options` leave out and that no command of `script` runs."""
    (expression,) = [value for option, value in pairwise(options) if option == "-m"]
    names = [part.removeprefix("not ") for part in expression.split(" and ")]
    run = re.findall(r"^ *\.venv/bin/pytest -q -p no:cacheprovider -m (\w+)$", script, re.MULTILINE)
    return [name for name in names if name not in run]


def test_ci_runs_the_tests_that_are_left_out_by_default() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]
    assert left_out(settings["addopts"], (ROOT / ".ci" / "run").read_text("utf-8")) == []


@pytest.mark.planted
@pytest.mark.parametrize(
    "command", ["", "# {}", "{} tests/core", "{} --collect-only", "{} || true", "echo {}", "{}er", "{} -k x"]
)
def test_tests_that_no_command_runs_are_found(command: str) -> None:
    script = command.format(".venv/bin/pytest -q -p no:cacheprovider -m long")
    assert left_out(["-ra", "-m", "not long"], f"set -e\n{script}\n") == ["long"]
    assert left_out(["-ra", "-m", "not long and not slow"], f"set -e\n{script}\n") == ["long", "slow"]


def test_the_table_of_refusals_is_the_one_in_the_code() -> None:
    rows = [
        f"| `{kind.code}` | `{kind.taxonomy}` | {kind.status} | {'yes' if kind.recoverable else 'no'} "
        f"| {kind.message} | {kind.advice} |"
        for kind in KINDS
    ]
    written = (ROOT / "docs" / "errors.md").read_text("utf-8").splitlines()
    assert [line for line in written if line.startswith("| `")] == rows


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def readme() -> dict[str, Any]:
    """All of the README's Python in one module, as a reader would paste it."""
    names: dict[str, Any] = {"__name__": "readme"}
    for block in blocks(README):
        exec(compile(block, "README.md", "exec"), names)
    return names


class TestTheReadmesExamples:
    def test_the_agent_and_its_test_work(self, readme: dict[str, Any]) -> None:
        anyio.run(readme["test_adds"], backend="trio")

    def test_the_fuzz_example_works(self, readme: dict[str, Any]) -> None:
        readme["test_my_implementation"]()
        readme["test_any_body_gets_a_decision"]()

    def test_the_driver_answers(self, readme: dict[str, Any]) -> None:
        agent = readme["Agent"](readme["manifest"])
        agent.bind(clock=asap_core.ManualClock(), ids=lambda: "i", key=b"k" * 32)
        before, readme["agent"] = readme["agent"], agent
        answer = readme["respond"]("POST", "/asap", [], b"not json", "192.0.2.1")
        readme["agent"] = before
        assert (answer.status, b"Parse error" in answer.body) == (200, True)

    def test_each_example_has_at_most_25_lines(self) -> None:
        assert all(len([line for line in text.splitlines() if line.strip()]) <= 25 for text in blocks(README))

    def test_the_module_can_be_served_unchanged(self, tmp_path: Path) -> None:
        (tmp_path / "mymodule.py").write_text(blocks(README)[0])
        code = "import mymodule; assert mymodule.handlers.keys() == mymodule.agent.skills"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_how_to_of_embedding_runs() -> None:
    names: dict[str, Any] = {"agent": agent()}
    exec(compile(blocks((ROOT / "docs" / "embedding.md").read_text("utf-8"))[0], "embedding.md", "exec"), names)
    assert names["agent"].bound


PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
a_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@a_page
def test_every_link_has_a_target(page: Path) -> None:
    text = page.read_text("utf-8")
    for path, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
        target = (page.parent / path) if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Each heading as GitHub and MyST name it; those of a page that's included are its own."""
    text = page.read_text("utf-8")
    if included := re.search(r"```\{include\} (\S+)", text):
        text = (page.parent / included[1]).read_text("utf-8")
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_changelog_names_the_new_place_of_each_module() -> None:
    unreleased = (ROOT / "CHANGELOG.md").read_text("utf-8").split("\n## ")[1]
    rows = re.findall(r"^  \| `asap_.* \| (`asap_.*) \|$", unreleased, re.MULTILINE)
    homes = [name for row in rows for name in re.findall(r"`(asap_[\w.]+)`", row)]
    assert homes
    for name in homes:
        module, _, attribute = name.rpartition(".")
        assert attribute.islower() or hasattr(importlib.import_module(module), attribute), name
        path = ROOT / (name if attribute.islower() else module).replace(".", "/")
        assert path.with_suffix(".py").exists() or path.is_dir(), name


@a_page
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    for name in re.findall(r"`(tests/[\w/]+\.py(?:::\w+)*)`", page.read_text("utf-8")):
        file, *parts = name.split("::")
        body: Any = parsed(ROOT / file).body
        for part in parts:
            found = [node for node in body if getattr(node, "name", None) == part]
            assert found, name
            body = getattr(found[0], "body", [])


@pytest.mark.parametrize("page", ["security.md", "outbound.md", "discovery_guarantees.md"])
def test_every_guarantee_is_numbered_and_names_a_test(page: str) -> None:
    _, *parts = re.split(r"^\*\*(\d+)\.\*\*", (ROOT / "docs" / page).read_text("utf-8"), flags=re.MULTILINE)
    assert [int(number) for number in parts[::2]] == list(range(1, len(parts) // 2 + 1))
    assert all("`tests/" in guarantee for guarantee in parts[1::2])


def test_the_files_that_the_guide_for_contributors_names_exist() -> None:
    text = (ROOT / "docs" / "contributing.md").read_text("utf-8")
    named = re.findall(r"`((?:asap_core|asap_adapters|tests|docs)/[\w./]+)`", text)
    assert len(named) > 40
    assert [name for name in named if not (ROOT / name).exists()] == []
