"""The site's reference shows all that there is, and docstrings come through."""

import re
from pathlib import Path

import attrs
import pytest

from asap_adapters.cli import commands
from asap_adapters.cli.command import CliCommand, Parser
from asap_core import Policy, What
from docs import laws, reference
from tests.test_public_names import NAMES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("face", NAMES)
def test_a_page_shows_exactly_the_public_names_of_a_face(face: str) -> None:
    text = reference.api(face)
    shown = re.findall(
        rf"(?:autoclass|autoexception|autofunction|py:data):: {face}\.(\w+)(?:\(|$)|^\* `(\w+)` is", text, re.MULTILINE
    )
    assert sorted(one or other for one, other in shown) == sorted(NAMES[face])
    assert f"```{{api}} {face}\n" in (DOCS / f"api_{face.replace('.', '_')}.md").read_text("utf-8")


def test_all_faces_have_a_page() -> None:
    assert list(NAMES) == list(reference.FACES)


def test_a_name_that_two_faces_offer_is_described_once() -> None:
    assert "* `AsapError` is {py:obj}`asap_core.AsapError`." in reference.api("asap_adapters")


def test_a_union_shows_its_members_and_an_exception_is_an_exception() -> None:
    text = reference.api("asap_core")
    assert ".. py:data:: asap_core.Principal\n\n   ``Authenticated | Anonymous``" in text
    assert ".. autoexception:: asap_core.AsapError\n" in text


def test_every_field_of_the_policy_has_its_default_and_its_reason() -> None:
    shown = re.findall(r"^`(\w+) = (.+)`\n: \S", reference.policy(), re.MULTILINE)
    assert [name for name, _ in shown] == [one.name for one in attrs.fields(Policy)]
    assert {("max_body", "10_485_760"), ("nonce", "'or-id'"), ("hosts", "()")} <= set(shown)


def test_the_fields_of_the_policy_stand_under_the_headings_of_the_class() -> None:
    assert "\n## The request\n\n`max_body = " in reference.policy()


def test_every_decision_is_listed() -> None:
    assert re.findall(r"^\| `(\w+)` \| `What\.\w+` \| \w", reference.decisions(), re.MULTILINE) == [
        what.value for what in What
    ]


def test_every_counter_is_listed() -> None:
    assert "| `asap_decisions` | counter | What admission decided. |" in reference.metrics()


def test_the_page_of_the_command_line_is_up_to_date() -> None:
    page = (DOCS / "cli_reference.md").read_text("utf-8")
    assert page == reference.cli_reference(), "python -m docs.reference > docs/cli_reference.md"


def test_the_page_of_laws_is_up_to_date() -> None:
    assert (DOCS / "laws.md").read_text("utf-8") == laws.page(), "python -m docs.laws > docs/laws.md"


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.name)
def test_every_option_of_a_command_is_listed(command: CliCommand) -> None:
    section = reference.cli_reference().partition(f"## asap {command.name}\n")[2].partition("\n## ")[0]
    parser = Parser(prog="asap")
    command.add_to(parser)
    for option in re.findall(r"^  (--[a-z-]+)", parser.format_help(), re.MULTILINE):
        assert f"`{option}" in section


def test_a_docstring_keeps_its_meaning_as_restructured_text() -> None:
    lines = [
        "Takes `a` or `b`s, *all* of it.",
        "",
        "size: bytes,",
        "at least 1.",
        "Raises: ValueError",
        "",
        "other: no.",
    ]
    assert reference.restructured(lines, ["size"]) == [
        "Takes ``a`` or ``b``\\ s, \\*all\\* of it.",
        "",
        "",
        ":param size: bytes,",
        "    at least 1.",
        "",
        ":Raises: ValueError",
        "",
        "other: no.",
    ]
