"""Programs that are called and never run: such a call does nothing, and nothing says so.

A call of a function annotated `-> Program[…]` must be run by `yield from`, returned, passed on, or assigned. What is
called is known by annotations: of parameters, of attributes, and of what is assigned to them. If they don't say it, it
counts as a program if all functions with its name are.
"""

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT = Path(__file__).parent.parent
BUILT_IN: Final = {name for kind in (bytes, dict, list, set, str, tuple) for name in dir(kind)}
# What a program may be part of, and be passed on with. To await one is an error at run time.
DISPLAYS = ast.List | ast.Tuple | ast.Set | ast.Dict | ast.Starred | ast.IfExp
COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.GeneratorExp
PASSED_ON = (
    ast.Call
    | ast.keyword
    | ast.Return
    | ast.Lambda
    | ast.Assign
    | ast.AnnAssign
    | ast.NamedExpr
    | ast.YieldFrom
    | ast.Await
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def annotated(node: ast.expr | None) -> list[str]:
    """The names in an annotation, such as `Documents` and `bytes` in `Documents[bytes]`."""
    text = "" if node is None else ast.unparse(node).strip("'\"")
    return [each.id for each in ast.walk(ast.parse(text)) if isinstance(each, ast.Name)]


def makes_a_program(function: Function) -> bool:
    return isinstance(function, ast.FunctionDef) and annotated(function.returns)[:1] == ["Program"]


def assignments(function: Function) -> Iterator[tuple[str, ast.expr]]:
    """What is assigned in a function: the text of the name or attribute, and the value."""
    for node in ast.walk(function):
        match node:
            case ast.Assign([ast.Tuple(names)], ast.Tuple(values)):
                yield from zip(map(ast.unparse, names), values, strict=False)
            case ast.Assign([name], value) | ast.NamedExpr(name, value):
                yield ast.unparse(name), value


class Sources:
    """What is known of functions and classes, by name."""

    def __init__(self, trees: Iterable[ast.AST]) -> None:
        self.parents: dict[ast.AST, ast.AST] = {}
        self.kinds: dict[str, set[bool]] = {}
        self.classes: dict[str, ast.ClassDef] = {}
        self.results: dict[str, list[str]] = {}
        # What is being looked for, so that `node = node.next` ends.
        self.sought: set[tuple[Function, str]] = set()
        for node in (each for tree in trees for each in ast.walk(tree)):
            self.parents |= dict.fromkeys(ast.iter_child_nodes(node), node)
            if isinstance(node, Function):
                self.kinds.setdefault(node.name, set()).add(makes_a_program(node))
                self.results.setdefault(node.name, annotated(node.returns))
            elif isinstance(node, ast.ClassDef):
                self.classes.setdefault(node.name, node)

    @property
    def names(self) -> set[str]:
        return {name for name, kinds in self.kinds.items() if True in kinds}

    def around(self, node: ast.AST) -> Iterator[ast.AST]:
        while node in self.parents:
            node = self.parents[node]
            yield node

    # --- of which class an expression is -----------------------------------------------------------------------------

    def known(self, names: Iterable[str]) -> ast.ClassDef | None:
        return next((self.classes[name] for name in names if name in self.classes), None)

    def body(self, owner: ast.ClassDef) -> Iterator[ast.stmt]:
        """What stands in this class, and in those that it's derived from."""
        yield from owner.body
        for base in owner.bases:
            for name in annotated(base):
                if name in self.classes and name != owner.name:
                    yield from self.body(self.classes[name])

    def class_of(self, value: ast.expr) -> ast.ClassDef | None:
        match value:
            case ast.Name("self"):
                return next((each for each in self.around(value) if isinstance(each, ast.ClassDef)), None)
            case ast.Name(id):
                functions = (each for each in self.around(value) if isinstance(each, Function))
                found = (self.assigned(function, id) for function in functions)
                return next((each for each in found if each is not None), None)
            case ast.Call(ast.Name(id)):
                return self.known([id, *self.results.get(id, ())])
            case ast.Attribute(inner, name) | ast.Call(ast.Attribute(inner, name)):
                owner = self.class_of(inner)
                return None if owner is None else self.attribute(owner, name)
            case ast.Subscript(inner):
                return self.class_of(inner)
            case _:
                return None

    def attribute(self, owner: ast.ClassDef, name: str) -> ast.ClassDef | None:
        """The class of an attribute, or of what a method returns."""
        for statement in self.body(owner):
            match statement:
                case ast.AnnAssign(ast.Name(id), annotation) if id == name:
                    return self.known(annotated(annotation))
                case ast.FunctionDef(id) if id == name:
                    return self.known(annotated(statement.returns))
                case ast.FunctionDef("__init__"):
                    found = self.assigned(statement, f"self.{name}")
                    if found is not None:
                        return found
        return None

    def assigned(self, function: Function, target: str) -> ast.ClassDef | None:
        """The class of a parameter, or of what is assigned to this name or attribute."""
        if (function, target) in self.sought:
            return None
        for node in ast.walk(function):
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == target:
                return self.known(annotated(node.annotation))
            if isinstance(node, ast.arg) and node.arg == target and node.annotation is not None:
                return self.known(annotated(node.annotation))
        self.sought.add((function, target))
        found = [self.class_of(value) for name, value in assignments(function) if name == target]
        self.sought.remove((function, target))
        return next((each for each in found if each is not None), None)

    # --- calls -------------------------------------------------------------------------------------------------------

    def is_program(self, name: str, owner: ast.ClassDef | None) -> bool:
        """Whether a call of `name` makes a program. `owner`: the class whose method it is, if that is known."""
        methods = [] if owner is None else [each for each in self.body(owner) if isinstance(each, Function)]
        own = [makes_a_program(method) for method in methods if method.name == name]
        return own[0] if own else self.kinds.get(name) == {True} and name not in BUILT_IN

    def programs(self, tree: ast.AST) -> Iterator[ast.Call]:
        """The calls that make programs."""
        for node in ast.walk(tree):
            match node:
                case ast.Call(ast.Name(id)) if self.is_program(id, None):
                    yield node
                case ast.Call(ast.Attribute(value, name)) if name in self.names:
                    if self.is_program(name, self.class_of(value)):
                        yield node

    def offences(self, tree: ast.AST) -> list[int]:
        """The lines of calls whose program isn't run."""
        return [call.lineno for call in self.programs(tree) if not self.is_passed_on(call)]

    def is_passed_on(self, call: ast.Call) -> bool:
        user = next(each for each in self.around(call) if not isinstance(each, DISPLAYS | COMPREHENSIONS))
        return isinstance(user, PASSED_ON)


PACKAGES = [path for package in ("asap_core", "asap_adapters") for path in (ROOT / package).rglob("*.py")]
SOURCES = [path for path in PACKAGES if path.is_relative_to(ROOT / "asap_adapters") or path.parent.name == "client"]


# Read when the first test runs, not by each process that only collects tests.
@cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text("utf-8")) for path in PACKAGES}


@cache
def known() -> Sources:
    return Sources(trees().values())


def test_there_are_programs_and_their_calls_are_known() -> None:
    assert {"find", "keep_fresh", "post_form", "deliver", "within"} <= known().names
    calls: dict[str, set[str]] = {
        path.stem: {ast.unparse(call.func) for call in known().programs(trees()[path])}
        for path in SOURCES
        if path.parent.parent.name == "asap_core"
    }
    assert calls["documents"] == {
        "self._fetch", "self._lead", "self._refresh", "self._requests.get", "self.find", "within",
    }  # fmt: skip
    assert {"self._requests.post", "credentials.headers", "self.once"} <= calls["sending"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_program_is_run(path: Path) -> None:
    assert known().offences(trees()[path]) == []


SOURCE = """
class Requests:
    def get(self) -> "Program[int]":
        yield from ()

class Documents(Generic[T]):
    other: Requests

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._made = Requests()
        self._table: dict[str, int] = {{}}

    def one(self) -> Program[int]:
        yield from ()

    def put(self) -> None:
        pass

    def program(self, requests: Requests | None):
        mine = self._requests
        {body}

    def made(self) -> Requests:
        return self._made

class Cache:
    def put(self) -> Program[None]:
        yield from ()

    async def one(self) -> int:
        return 1

def alone() -> Program[int]:
    yield from ()
"""


def offences_of(body: str) -> list[int]:
    tree = ast.parse(SOURCE.format(body=body))
    return Sources([tree]).offences(tree)


@pytest.mark.parametrize(
    "body",
    [
        "yield from alone()",
        "return (yield from self.one())",
        "return self.one()",
        "found = yield from self.one()",
        "program = self.one()",
        "program: Program[int] = alone() if x else self.one()",
        "run(alone(), 2)",
        "run(program=self.one())",
        "return [self.one() for _ in range(3)]",
        "run(*[alone(), alone()])",
        "make = lambda: self.one()",
        "if (program := alone()): run(program)",
        "x = self._table.get(1).y",
        "if headers.get('x'): pass",
        "self.put()",
    ],
)
def test_a_program_that_is_run_or_passed_on_is_no_offence(body: str) -> None:
    assert offences_of(body) == []


@pytest.mark.planted
@pytest.mark.parametrize(
    "body",
    [
        "alone()",
        "self.one()",
        "self._requests.get()",
        "self._made.get()",
        "self.other.get()",
        "requests.get()",
        "mine.get()",
        "self.made().get()",
        "theirs, number = self.other, 1; theirs.get()",
        "yield alone()",
        "yield self.one()",
        "found = self.one().document",
        "if self.one(): pass",
        "found = not alone()",
        "found = self.one() == 1",
        "found = self.one()[0]",
        "for found in self.one(): pass",
        "found = f'{self.one()}'",
        "[self.one() for _ in range(3)]",
        "with self.one(): pass",
        "assert self.one()",
    ],
)
def test_a_program_that_is_never_run_is_found(body: str) -> None:
    assert len(offences_of(body)) == 1
