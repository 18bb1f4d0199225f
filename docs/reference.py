"""What the site shows of the code, as Markdown: public names, the fields of `Policy`, decisions, counters, options.

`conf.py` makes a directive of each function in `PAGES`, and turns docstrings into what Sphinx reads by `restructured`.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from enum import Enum
from importlib import import_module
from itertools import pairwise
from types import ModuleType, UnionType
from typing import Any, Final, get_args

import attrs

from asap_adapters.cli import commands
from asap_adapters.cli.command import Row
from asap_core import Counters, Policy, What

# The modules that offer names to users, in the order of the site. A name is described where it stands first.
FACES: Final = (
    "asap_core",
    "asap_core.auth",
    "asap_core.client",
    "asap_core.testing",
    "asap_adapters",
    "asap_adapters.auth",
    "asap_adapters.testing",
)


# Classes of others, whose methods aren't described again.
_FOREIGN: Final = "object,BaseException,Enum,RuleBasedStateMachine"


def api(face: str) -> str:
    """Every public name of `face`, under the package that defines it."""
    module = import_module(face)
    by_package: dict[str, list[str]] = {}
    for name in module.__all__:
        by_package.setdefault(".".join(_home(module, name).split(".")[:2]), []).append(name)
    parts = []
    for package in sorted(by_package):
        if len(by_package) > 1:
            parts.append(f"## Defined in {package}\n")
        parts += [_entry(module, name) for name in sorted(by_package[package], key=str.lower)]
    return "\n".join(parts)


def _home(module: ModuleType, name: str) -> str:
    for home, names in getattr(module, "_HOMES", {}).items():
        if name in names.split():
            return str(home)
    return str(getattr(module, name).__module__)


def _entry(module: ModuleType, name: str) -> str:
    value, full = getattr(module, name), f"{module.__name__}.{name}"
    first = next(face for face in FACES if getattr(import_module(face), "__all__", ()).count(name))
    if first != module.__name__ and getattr(import_module(first), name) is value:
        return f"* `{name}` is {{py:obj}}`{first}.{name}`.\n"
    if value is Policy:
        return _rst(f".. autoclass:: {full}(*, ...)\n   :members: reference") + "\nIts fields: [Policy](policy.md).\n"
    if inspect.isclass(value):
        kind = "autoexception" if issubclass(value, BaseException) else "autoclass"
        return _rst(f".. {kind}:: {full}\n   :members:\n   :inherited-members: {_FOREIGN}")
    if inspect.isfunction(value):
        return _rst(f".. autofunction:: {full}")
    text = documented(import_module(_home(module, name))).get(name, "")
    if isinstance(value, UnionType):
        text = f"`{' | '.join(one.__name__ for one in get_args(value))}`\n\n{text}"
    described = textwrap.indent("\n".join(restructured(text.splitlines(), ())), "   ")
    return _rst(f".. py:data:: {full}\n\n{described}")


def _rst(text: str) -> str:
    return f"```{{eval-rst}}\n{text}\n```\n"


def policy() -> str:
    """The fields of `Policy`, with their defaults and reasons, under the headings that the class has.

    Begins with a heading, as all text of these directives that has headings must: MyST puts what precedes one last.
    """
    documentation = documented(import_module(Policy.__module__), Policy.__name__)
    headings = _headings(Policy)
    lines = ["## The profile", ""]
    for one in attrs.fields(Policy):
        if one.name in headings:
            title = headings[one.name]
            lines += ["", f"## {title[0].upper()}{title[1:]}", ""]
        default = getattr(Policy(), one.name)
        lines += [f"`{one.name} = {shown(default)}`", f": {' '.join(documentation[one.name].split())}", ""]
    return "\n".join(lines)


def _headings(kind: type) -> dict[str, str]:
    """Comments such as `# --- shares ---` in the body of a class, by the field that follows."""
    found, heading = {}, None
    for line in inspect.getsource(kind).splitlines():
        if title := re.match(r"\s+# -+ (.*?) -+$", line):
            heading = title[1]
        elif heading and (named := re.match(r"    (\w+):", line)):
            found[named[1]], heading = heading, None
    return found


def shown(value: object) -> str:
    """A default as a reader would write it."""
    if isinstance(value, Enum):
        return repr(value.value)
    if isinstance(value, tuple):
        return "(" + ", ".join(str(one) if attrs.has(type(one)) else repr(one) for one in value) + ")"
    return f"{value:_}" if type(value) is int else repr(value)


def decisions() -> str:
    """The members of `What`: their values, and what they mean."""
    documentation = documented(import_module(What.__module__), What.__name__)
    rows = [f"| `{what.value}` | `What.{what.name}` | {' '.join(documentation[what.name].split())} |" for what in What]
    return "\n".join(["| value | name | means |", "|---|---|---|", *rows])


def metrics() -> str:
    """The families at `/asap/metrics`: their names, types and meanings."""
    text = Counters().text(active=0, uptime=0.0).decode("ascii")
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    meanings = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    rows = [f"| `{name}` | {kind} | {meanings[name]} |" for name, kind in types.items()]
    return "\n".join(["| family | type | counts |", "|---|---|---|", *rows])


def cli_reference() -> str:
    """The page docs/cli_reference.md: every command of `asap` with its options, from the tables of the commands."""
    parts = [_CLI_HEAD]
    for command in commands():
        parts.append(f"## asap {command.name}\n\n{_cell(command.description)}\n")
        by_heading: dict[str | None, list[str]] = {}
        for placed in command.rows:
            line = f"| {_written(placed)} | {_cell(command.text(placed))} |"
            by_heading.setdefault(placed.heading, []).append(line)
        for heading, lines in by_heading.items():
            parts.append(f"{heading[0].upper()}{heading[1:]}:\n" if heading else "")
            parts.append("\n".join(["| option | does |", "|---|---|", *lines, ""]))
    return "\n".join(filter(None, parts))


_CLI_HEAD: Final = """\
# All options of `asap`

Generated from the commands by `python -m docs.reference`. [The command `asap`](cli.md) explains how to use them.
"""


def _written(row: Row) -> str:
    """An option with its value, as code."""
    value = "\\|".join(row.choices) if row.choices else (row.metavar or "").replace("|", "\\|")
    flags = [*row.flags, f"--no-{row.flags[0][2:]}"] if row.action == "switch" else row.flags
    written = ", ".join(f"`{flag} {value}`" if value else f"`{flag}`" for flag in flags)
    return f"{written or f'`{value}`'}{', required' if row.required and row.flags else ''}"


def _cell(text: str) -> str:
    """Text in a cell of a table; what Markdown would take for markup is text, except code."""
    return "`".join(
        re.sub(r"([<*_|])", r"\\\1", part) if number % 2 == 0 else part for number, part in enumerate(text.split("`"))
    )


PAGES: Final[dict[str, Callable[..., str]]] = {
    "api": api,
    "policy-fields": policy,
    "decisions": decisions,
    "metrics": metrics,
}


# --- docstrings ------------------------------------------------------------------------------------------------------


def documented(module: ModuleType, kind: str | None = None) -> dict[str, str]:
    """The strings that follow assignments, by the name that's assigned: in a module, or in the body of one class."""
    body = ast.parse(inspect.getsource(module)).body
    if kind is not None:
        body = next(node.body for node in body if isinstance(node, ast.ClassDef) and node.name == kind)
    found = {}
    for node, after in pairwise(body):
        target = (
            node.target
            if isinstance(node, ast.AnnAssign)
            else node.targets[0]
            if isinstance(node, ast.Assign)
            else None
        )
        if isinstance(target, ast.Name) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[target.id] = inspect.cleandoc(str(after.value.value))
    return found


_PARAMETER: Final = re.compile(r"(?:`(\w+)`|(\w+)): (?=\S)")
_CODE: Final = re.compile(r"`+[^`]+`+")


def restructured(lines: Sequence[str], parameters: Sequence[str]) -> list[str]:
    """A docstring as reStructuredText: code in double backticks, `name: meaning` as a field, `Raises:` by itself."""
    written: list[str] = []
    field = False
    for line in lines:
        named = _PARAMETER.match(line)
        name = named and (named[1] or named[2])
        if named and name in parameters:
            written += ([] if field else [""]) + [f":param {name}: {_quoted(line[named.end() :])}"]
            field = True
        elif line.startswith(("Raises: ", "Source: ")):
            written += ["", f":{line[:6]}: {_quoted(line[8:])}"]
            field = True
        elif field and line.strip():
            written.append(f"    {_quoted(line.strip())}")
        else:
            field = False
            written.append(_quoted(line))
    return written


def _quoted(text: str) -> str:
    """Markdown's code spans as reStructuredText's; anything else that would be markup there is text."""
    start = re.match(r"\s*(?:\* )?", text)
    margin = start[0] if start else ""
    rest, made = text[len(margin) :], margin
    at = 0
    for code in _CODE.finditer(rest):
        made += re.sub(r"([*|_\\])", r"\\\1", rest[at : code.start()]) + f"``{code[0].strip('`')}``"
        at = code.end()
        if rest[at : at + 1].isalnum():
            made += "\\ "
    return made + re.sub(r"([*|_\\])", r"\\\1", rest[at:])


def parameters_of(value: Any) -> tuple[str, ...]:
    """The parameters of a function or of a class, so far as Python can tell them."""
    try:
        return tuple(inspect.signature(value).parameters)
    except (TypeError, ValueError):
        return ()


if __name__ == "__main__":
    print(cli_reference(), end="")
