"""The numbered guarantees of the docs, with the tests that hold them, counted as pytest collects them.

A test that plants a defect and expects it to be noticed has the marker `planted`.
"""

import re
import subprocess
import sys
from collections import Counter

from attrs import frozen

from tests.house.source import ROOT

__all__ = ["PAGES", "Held", "held"]

PAGES = ("security", "discovery_guarantees", "outbound")
GUARANTEE = re.compile(r"^\*\*(\d+)\.\*\*", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py(?:::\w+)+)`")


@frozen
class Held:
    """How many tests, and how many planted defects, hold one guarantee."""

    page: str
    number: int
    tests: int
    planted: int


def held() -> list[Held]:
    """All guarantees, in the order of the pages."""
    items, planted = collected(), collected("-m", "planted")
    return [
        Held(page, number, sum(items[test] for test in tests), sum(planted[test] for test in tests))
        for page in PAGES
        for number, tests in guarantees((ROOT / "docs" / f"{page}.md").read_text("utf-8"))
    ]


def guarantees(text: str) -> list[tuple[int, list[str]]]:
    """Each guarantee's number, and the tests that it names."""
    _, *parts = GUARANTEE.split(text)
    return [(int(number), TEST.findall(body)) for number, body in zip(parts[::2], parts[1::2], strict=True)]


def collected(*options: str) -> Counter[str]:
    """How many cases each test has, of the tests that pytest selects by these options."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *options, "tests"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return Counter(line.partition("[")[0] for line in told.splitlines() if "::" in line)
