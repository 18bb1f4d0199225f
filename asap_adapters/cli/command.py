"""Commands as tables: a class lists the options of a command, and rules say which options go together.

How it works:

* Each field of an options class is a row: `required`, `option`, `choice`, `repeated`, `flag`, `switch`, `counted`; or,
  by `nested`, the rows of another options class. A row whose usage doesn't begin with `--` is an argument.
* `command` makes a `CliCommand` of such a class and the function that runs it. The parser, its help and
  docs/cli_reference.md are built from the rows and the rules.
* `CliCommand.run` checks the rules, makes an instance of the options class, and calls the function with it.

An option is "given" if its value isn't the default: `--workers 1` needs nothing.
To add an option, add a field. To add a command, add a `command(…)` to the `COMMANDS` of a module.
"""

import argparse
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Final, Literal, NoReturn, Protocol, TypeVar, cast, overload

import anyio
from attrs import NOTHING, AttrsInstance, evolve, field, fields, frozen

from asap_adapters.cli.failures import EXIT_USAGE, UserError
from asap_adapters.cli.output import visible

_ROW: Final = "row"


class _HasBackend(Protocol):
    @property
    def backend(self) -> str: ...


T = TypeVar("T")
Options = TypeVar("Options", bound=AttrsInstance)
OptionsWithBackend = TypeVar("OptionsWithBackend", bound=_HasBackend)


@frozen
class Row:
    """One option or argument. In a command, `path` is where its value goes in the options: `callers.audience`."""

    usage: str
    """What a user writes: `--port PORT`, `--verbose -v`, or the name of an argument."""
    help: str
    read: Callable[[str], object] = field(default=str, kw_only=True)
    choices: tuple[str, ...] | None = field(default=None, kw_only=True)
    action: Literal["store", "append", "store_true", "count", "switch"] = field(default="store", kw_only=True)
    required: bool = field(default=False, kw_only=True)
    default: object = field(default=None, kw_only=True)
    shown_default: str | None = field(default=None, kw_only=True)
    """The default in words, if `default` itself doesn't say it."""
    path: str = ""
    heading: str | None = None

    @property
    def flags(self) -> list[str]:
        """The names of the option; none if it's an argument."""
        return [word for word in self.usage.split() if word.startswith("-")]

    @property
    def metavar(self) -> str | None:
        """What stands for the value in the help."""
        return next((word for word in self.usage.split() if not word.startswith("-")), None)

    @property
    def name(self) -> str:
        """The name in rules and messages: `--port`, or the metavar of an argument."""
        return self.usage.split()[0]

    @property
    def notes(self) -> list[str]:
        """What follows the help in brackets."""
        shown = self.shown_default or (str(self.default) if self.default else "")
        repeatable = ["repeatable"] if self.action == "append" else []
        return [*repeatable, *([f"default: {shown}"] if shown else [])]

    def add_to(self, group: argparse._ActionsContainer, text: str) -> None:
        """Add the row to a parser, with this help. The parser has a value for `path` only if the user gave one."""
        common: dict[str, object] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
        valued = {**common, "metavar": self.metavar, "type": self._read, "choices": self.choices}
        add: Callable[..., object] = group.add_argument
        match self.action:
            case "append" if not self.flags:
                add(self.path, **{**valued, "nargs": "+"})
            case _ if not self.flags and self.required:
                add(self.path, **valued)
            case _ if not self.flags:
                # argparse would read a default of SUPPRESS as if it were the argument's text.
                add(self.path, **{**valued, "nargs": "?", "default": self.default})
            case "switch":
                add(*self.flags, dest=self.path, action=argparse.BooleanOptionalAction, **common)
            case "store_true" | "count":
                add(*self.flags, dest=self.path, action=self.action, **common)
            case _:
                add(*self.flags, dest=self.path, action=self.action, required=self.required, **valued)

    def _read(self, text: str) -> object:
        try:
            return self.read(text)
        except ValueError as error:
            # Of a ValueError argparse shows the text given, which may be a secret; of this it shows the message.
            raise argparse.ArgumentTypeError(str(error)) from None


@frozen
class Nested:
    """The rows of another options class. In the help they stand under `heading`."""

    kind: type[AttrsInstance]
    heading: str | None


# --- the fields of an options class ----------------------------------------------------------------------------------


def required(usage: str, read: Callable[[str], T], about: str) -> T:
    """Declare a required option, or a required argument.

    usage: an option's name and what stands for its value in the help, `--port PORT`; an argument's name, `URL`.
    read: makes the value of its text, or raises ValueError that says what was expected.
    """
    return cast("T", _field(Row(usage, about, read=read, required=True)))


@overload
def option(usage: str, read: Callable[[str], T], about: str, *, shown_default: str | None = None) -> T | None: ...
@overload
def option(usage: str, read: Callable[[str], T], about: str, *, default: T) -> T: ...
def option(
    usage: str, read: Callable[[str], T], about: str, *, default: T | None = None, shown_default: str | None = None
) -> T | None:
    """Declare an option, or an argument that may be left out. `shown_default`: in words, if it's decided elsewhere."""
    return cast("T | None", _field(Row(usage, about, read=read, default=default, shown_default=shown_default)))


@overload
def choice(name: str, choices: Sequence[str], about: str, *, shown_default: str) -> str | None: ...
@overload
def choice(name: str, choices: Sequence[str], about: str, *, default: str) -> str: ...
def choice(
    name: str, choices: Sequence[str], about: str, *, default: str | None = None, shown_default: str | None = None
) -> str | None:
    """Declare an option whose value is one of a few words."""
    row = Row(name, about, choices=tuple(choices), default=default, shown_default=shown_default)
    return cast("str | None", _field(row))


def repeated(usage: str, read: Callable[[str], T], about: str) -> Sequence[T]:
    """Declare an option that may be given several times, or an argument of which there is at least one."""
    return cast("Sequence[T]", _field(Row(usage, about, read=read, action="append", default=())))


def flag(name: str, about: str) -> bool:
    """Declare an option without a value."""
    return cast("bool", _field(Row(name, about, action="store_true", default=False)))


def switch(name: str, about: str) -> bool:
    """Declare the options `--x` and `--no-x`; the default is `--no-x`."""
    return cast("bool", _field(Row(name, about, action="switch", default=False, shown_default=f"--no-{name[2:]}")))


def counted(names: str, about: str) -> int:
    """Declare an option that counts how often it's given, such as `--verbose -v`."""
    return cast("int", _field(Row(names, about, action="count", default=0)))


def nested(kind: type[Options], heading: str | None = None) -> Options:
    """Include the rows of another options class."""
    return field(factory=kind, metadata={_ROW: Nested(kind, heading)})


def _field(row: Row) -> object:
    return field(default=NOTHING if row.required else row.default, metadata={_ROW: row})


# --- which options go together ---------------------------------------------------------------------------------------


@frozen
class Needs:
    """`option` needs one of `others`, unless `unless` is given. `why` completes the message."""

    option: str
    others: Sequence[str]
    why: str | None = None
    unless: str | None = None

    @property
    def note(self) -> str:
        """The rule in the help of its option."""
        return f"needs {_either(self.others)}"

    def problem(self, given: Callable[[str], bool]) -> str | None:
        """Return what is wrong, or None if the rule is kept."""
        if not given(self.option) or any(map(given, [*self.others, *filter(None, [self.unless])])):
            return None
        return _with_reason(f"{self.option} {self.note}", self.why)


@frozen
class Excludes:
    """`option` can't be given together with any of `others`. `why` completes the message."""

    option: str
    others: Sequence[str]
    why: str | None = None

    @property
    def note(self) -> str:
        """The rule in the help of its option."""
        return f"not with {_either(self.others)}"

    def problem(self, given: Callable[[str], bool]) -> str | None:
        """Return what is wrong, or None if the rule is kept."""
        other = next(filter(given, self.others), None) if given(self.option) else None
        return None if other is None else _with_reason(f"expected {self.option} or {other}, not both", self.why)


OptionRule = Needs | Excludes


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _with_reason(message: str, why: str | None) -> str:
    return message if why is None else f"{message}: {why}"


# --- commands --------------------------------------------------------------------------------------------------------


def _rows(kind: type[AttrsInstance], path: str = "", heading: str | None = None) -> Iterator[Row]:
    for each in fields(kind):
        match each.metadata[_ROW]:
            case Nested(kind=inner, heading=own):
                yield from _rows(inner, f"{path}{each.name}.", own or heading)
            case row:
                yield evolve(row, path=path + each.name, heading=heading)


def _made(kind: type[Options], values: Mapping[str, object], path: str = "") -> Options:
    """Make an options object of the values given; the others are the defaults of its fields."""
    made: dict[str, object] = {}
    for each in fields(kind):
        where = path + each.name
        match each.metadata[_ROW]:
            case Nested(kind=inner):
                made[each.name] = _made(inner, values, f"{where}.")
            case _ if where in values:
                made[each.name] = values[where]
    return kind(**made)


@frozen(kw_only=True)
class CliCommand:
    """A command of `asap`."""

    name: str
    """Two words if the command is one of a group: `registry find`."""
    help: str
    """One line, for the list of commands."""
    description: str
    rows: tuple[Row, ...]
    rules: tuple[OptionRule, ...]
    run: Callable[[Mapping[str, object]], int]
    """Run the command with the values given, by path; returns the exit code."""

    def text(self, row: Row) -> str:
        """The help of a row, with its default and the rules for it."""
        notes = [*row.notes, *(rule.note for rule in self.rules if rule.option == row.name)]
        return f"{row.help} [{'; '.join(notes)}]" if notes else row.help

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's rows to its parser."""
        groups: dict[str | None, argparse._ActionsContainer] = {None: parser}
        for each in self.rows:
            if each.heading not in groups:
                groups[each.heading] = parser.add_argument_group(each.heading)
            each.add_to(groups[each.heading], self.text(each))
        parser.set_defaults(command=self)


def command(
    name: str,
    options: type[Options],
    run: Callable[[Options], int],
    about: str,
    *,
    description: str | None = None,
    rules: Sequence[OptionRule] = (),
) -> CliCommand:
    """Make a command of an options class and the function that runs it.

    about: one line, for the list of commands.
    description: the first paragraph of the command's help; by default `about`.
    rules: checked in this order; the first that is broken is the error.
    """
    rows = tuple(_rows(options))
    named = {each.name: each for each in rows}

    def checked_run(values: Mapping[str, object]) -> int:
        def given(name: str) -> bool:
            one = named[name]
            return values.get(one.path, one.default) != one.default

        for rule in rules:
            if (problem := rule.problem(given)) is not None:
                raise UserError(problem, usage=True)
        return run(_made(options, values))

    sentence = f"{about[0].upper()}{about[1:]}."
    return CliCommand(
        name=name, help=about, description=description or sentence, rows=rows, rules=tuple(rules), run=checked_run
    )


def in_event_loop(
    run: Callable[[OptionsWithBackend], Coroutine[object, object, int]],
) -> Callable[[OptionsWithBackend], int]:
    """Make a function that runs an async one on the backend that its options name."""
    return lambda options: anyio.run(run, options, backend=options.backend)


# --- the parser ------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line. Options can't be abbreviated: a new option would break that."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})  # type: ignore[arg-type]

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Refuse unknown arguments in the parser of the command: the root's error would name the root's help."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        """Print what's wrong and which help to read, and exit with 2."""
        self.exit(EXIT_USAGE, f"asap: {visible(message.removeprefix('argument '))} (see {self.prog} --help)\n")


def add_commands(root: Parser, commands: Sequence[CliCommand], groups: Mapping[str, str]) -> None:
    """Add the commands to a parser. `groups`: the help of each group, by its name."""
    top = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    inside: dict[str, argparse._SubParsersAction[Parser]] = {}
    for each in commands:
        group, _, name = each.name.rpartition(" ")
        if group and group not in inside:
            parser = top.add_parser(group, help=groups[group])
            inside[group] = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        place = inside[group] if group else top
        each.add_to(place.add_parser(name, help=each.help, description=each.description))
