"""docs/drivers/pyodide_driver.py: a page's agent and client, run by Pyodide under node (pyodide_scenario.py)."""

import ast
import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.live
ROOT = Path(__file__).parents[2]
DRIVERS = ROOT / "docs" / "drivers"
SCENARIO = Path(__file__).with_name("pyodide_scenario.py")
CACHE = ROOT / ".cache" / "pyodide"
# Brings CPython 3.14, 13 MB.
PYODIDE = "pyodide@314.0.7"
# What the core is made of, and needs: pure Python, as micropip would install it.
PACKAGES = ("asap_core", "attr", "attrs", "cattr", "cattrs", "typing_extensions")


def installed() -> str:
    """Install Pyodide by npm, once. Returns the command of node."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm aren't installed")
    if not (CACHE / "node_modules" / "pyodide" / "package.json").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(CACHE), PYODIDE]
        npm_ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=180)
        if npm_ended.returncode:
            pytest.skip(f"npm can't install {PYODIDE}: {npm_ended.stderr[-300:]}")
    return node


def copy_packages(to: Path) -> None:
    """Copy what the scenario imports, without compiled modules."""
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None
        origin = Path(found.origin)
        if origin.name == "__init__.py":
            shutil.copytree(origin.parent, to / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(origin, to)
    shutil.copy(DRIVERS / "pyodide_driver.py", to)
    shutil.copy(SCENARIO, to)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, str]:
    """What came of each test of the scenario."""
    node, packages = installed(), tmp_path_factory.mktemp("packages")
    copy_packages(packages)
    program = packages / "main.py"
    program.write_text("import pyodide_scenario\npyodide_scenario.listen = listen\nawait pyodide_scenario.main()\n")
    command = [node, str(DRIVERS / "pyodide_driver.mjs"), str(packages), str(program)]
    ended = subprocess.run(command, check=False, cwd=CACHE, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found: dict[str, str] = json.loads(ended.stdout.splitlines()[-1])
    return found


def names() -> list[str]:
    """The tests of the scenario, which can't be imported here."""
    for node in ast.parse(SCENARIO.read_text("utf-8")).body:
        match node:
            case ast.Assign([ast.Name("TESTS")], ast.Tuple(tests)):
                return [ast.unparse(test) for test in tests]
    raise AssertionError("no TESTS")


@pytest.mark.parametrize("name", names())
def test_in_pyodide(name: str, outcomes: dict[str, str]) -> None:
    assert outcomes[name] == "passed", outcomes[name]
