"""Commands as tables: what follows from the rows of an options class, and from rules."""

import argparse
from collections.abc import Sequence

import pytest
from attrs import frozen

from asap_adapters.cli import commands
from asap_adapters.cli.command import (
    CliCommand,
    Excludes,
    Needs,
    Parser,
    add_commands,
    choice,
    command,
    counted,
    flag,
    nested,
    option,
    repeated,
    required,
    switch,
)
from asap_adapters.cli.failures import UserError


@frozen(kw_only=True)
class Inner:
    word: str | None = option("--word WORD", str, "say this")
    words: Sequence[str] = repeated("--words WORD", str, "say these")


@frozen(kw_only=True)
class All:
    first: str = required("FIRST", str, "the first")
    second: int | None = option("SECOND", int, "the second")
    must: str = required("--must TEXT", str, "needed")
    number: int = option("--number N", int, "a number, 100 % of it", default=1)
    pick: str = choice("--pick", ("a", "b"), "one of two", default="a")
    decided: str | None = choice("--decided", ("x", "y"), "decided elsewhere", shown_default="x at night")
    yes: bool = flag("--yes", "agree")
    on: bool = switch("--on", "turn it on")
    loud: int = counted("--loud -l", "be loud")
    inner: Inner = nested(Inner, "words")


RULES = (
    Needs("--word", ["--words", "--yes"], "alone it means nothing", unless="--on"),
    Excludes("--words", ["--loud", "--pick"]),
)


@pytest.fixture
def ran() -> list[All]:
    return []


@pytest.fixture
def made(ran: list[All]) -> CliCommand:
    def run(options: All) -> int:
        ran.append(options)
        return 7

    return command("do it", All, run, "do all of it", rules=RULES)


def parse(made: CliCommand, line: str) -> dict[str, object]:
    root = Parser(prog="asap")
    add_commands(root, [made], {"do": "do something"})
    values = vars(root.parse_args(["do", "it", *line.split()]))
    assert values.pop("command") is made
    return values


def test_a_missing_option_has_its_default(made: CliCommand, ran: list[All]) -> None:
    assert made.run(parse(made, "x --must y")) == 7
    assert ran == [All(first="x", must="y")]
    assert ran[0] == All(
        first="x", second=None, must="y", number=1, pick="a", decided=None, yes=False, on=False, loud=0,
        inner=Inner(word=None, words=()),
    )  # fmt: skip


def test_given_options_are_read(made: CliCommand, ran: list[All]) -> None:
    line = "x 2 --must y --number 3 --pick b --decided y --yes --on -ll --word a"
    assert made.run(parse(made, line)) == 7
    assert ran == [
        All(
            first="x", second=2, must="y", number=3, pick="b", decided="y", yes=True, on=True, loud=2,
            inner=Inner(word="a"),
        )
    ]  # fmt: skip
    made.run(parse(made, "x --must y --words a --words b --on --no-on"))
    assert (ran[1].inner.words, ran[1].on) == (["a", "b"], False)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("--word a", "--word needs --words or --yes: alone it means nothing"),
        ("--word a --yes", None),
        ("--word a --on", None),
        ("--words a --loud", "expected --words or --loud, not both"),
        ("--words a --pick b", "expected --words or --pick, not both"),
        # The default isn't given, even if it's written.
        ("--words a --pick a", None),
    ],
)
def test_rules_refuse_wrong_combinations(made: CliCommand, ran: list[All], line: str, problem: str | None) -> None:
    values = parse(made, f"x --must y {line}")
    if problem is None:
        assert made.run(values) == 7
        return
    with pytest.raises(UserError) as caught:
        made.run(values)
    assert (str(caught.value), caught.value.code, ran) == (problem, 2, [])


def test_the_help_shows_defaults_and_rules(made: CliCommand) -> None:
    text = {each.name: made.text(each) for each in made.rows}
    assert text == {
        "FIRST": "the first",
        "SECOND": "the second",
        "--must": "needed",
        "--number": "a number, 100 % of it [default: 1]",
        "--pick": "one of two [default: a]",
        "--decided": "decided elsewhere [default: x at night]",
        "--yes": "agree",
        "--on": "turn it on [default: --no-on]",
        "--loud": "be loud",
        "--word": "say this [needs --words or --yes]",
        "--words": "say these [repeatable; not with --loud or --pick]",
    }
    parser = argparse.ArgumentParser(prog="x")
    made.add_to(parser)
    assert "\nwords:\n" in parser.format_help()


@pytest.mark.parametrize("each", commands(), ids=lambda each: each.name)
def test_rules_name_options_that_the_command_has(each: CliCommand) -> None:
    names = {placed.name for placed in each.rows}
    assert len(names) == len(each.rows)
    for rule in each.rules:
        assert {rule.option, *rule.others, *([rule.unless] if isinstance(rule, Needs) and rule.unless else [])} <= names


@pytest.mark.parametrize("each", commands(), ids=lambda each: each.name)
def test_help_is_one_sentence_without_a_full_stop(each: CliCommand) -> None:
    assert each.description.endswith(".")
    for text in (each.help, *(placed.help for placed in each.rows)):
        assert not text.endswith(".")
        assert "\n" not in text
