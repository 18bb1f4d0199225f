"""Mutants of a module: each is one small change to its syntax tree."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType

from attrs import define, field, frozen

# A comparison becomes its neighbour at the boundary, and its opposite.
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
OPPOSITES = {"max": "min", "min": "max", "any": "all", "all": "any"}
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


@frozen
class Where:
    """Where a node stands in the tree: it's `getattr(owner, name)`, or the item of it at `index`."""

    owner: ast.AST
    name: str
    index: int | None

    def put(self, node) -> None:
        if self.index is None:
            setattr(self.owner, self.name, node)
        else:
            getattr(self.owner, self.name)[self.index] = node


@frozen
class Spot:
    """A node that may be mutated: in which statement, in which function, and whether in that function's body."""

    node: ast.AST
    where: Where
    statement: ast.stmt
    function: str
    in_body: bool


@define(eq=False)
class Mutant:
    """One change. `function`, `was` and `became` identify it, without its line number."""

    module: "Module" = field(repr=False)
    function: str
    was: str
    became: str
    line: int
    in_body: bool
    _where: Where = field(repr=False)
    _old: ast.AST = field(repr=False)
    _new: ast.AST = field(repr=False)

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """By what a known survivor is found again."""
        return self.module.name, self.function, self.was, self.became

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The module's tree with this change in it."""
        self._where.put(self._new)
        try:
            yield
        finally:
            self._where.put(self._old)

    def compiled(self) -> CodeType:
        """The whole module's code with this change."""
        with self.planted():
            code: CodeType = compile(self.module.tree, str(self.module.path), "exec")
        return code


@define(eq=False)
class Module:
    """A module and its mutants, in the order of its text."""

    name: str
    path: Path
    tree: ast.Module = field(repr=False)

    @classmethod
    def read(cls, name: str, path: Path) -> "Module":
        return cls(name, path, ast.parse(path.read_text("utf-8")))

    def mutants(self) -> list[Mutant]:
        found = []
        for spot in list(spots(self.tree)):
            was = headline(spot.statement)
            for new in replacements(spot.node):
                made = ast.fix_missing_locations(ast.copy_location(new, spot.node))
                spot.where.put(made)
                became = headline(made if isinstance(made, ast.stmt) else spot.statement)
                spot.where.put(spot.node)
                line = getattr(spot.node, "lineno", spot.statement.lineno)
                found.append(Mutant(self, spot.function, was, became, line, spot.in_body, spot.where, spot.node, made))
        return found


def headline(statement: ast.stmt) -> str:
    """A simple statement whole, of a compound one its first line: what the mutant changes is in there."""
    text = ast.unparse(statement)
    if isinstance(statement, ast.If | ast.While | ast.For | ast.With):
        return text.partition(":\n")[0]
    if isinstance(statement, ast.Match):
        guards = [ast.unparse(one.guard) for one in statement.cases if one.guard is not None]
        return " if ".join([text.partition(":\n")[0], *guards])
    if isinstance(statement, ast.Try):
        return "; ".join(f"except {ast.unparse(one.type)}" for one in statement.handlers if one.type is not None)
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        bare = ast.unparse(type(statement)(**{**vars(statement), "decorator_list": [], "body": [ast.Pass()]}))
        return bare.partition(":\n")[0]
    return text


# --- what may be mutated ----------------------------------------------------------------------------------------------


def spots(tree: ast.Module) -> Iterator[Spot]:
    yield from _spots_below(tree, statement=None, function="", in_body=False)


def _spots_below(node: ast.AST, *, statement: ast.stmt | None, function: str, in_body: bool) -> Iterator[Spot]:
    for name, value in ast.iter_fields(node):
        if _is_left_alone(node, name):
            continue
        # A function's body is run when it's called; its defaults are, with all else, when the module is imported.
        inside = in_body or (isinstance(node, FUNCTIONS) and name == "body")
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or _has_no_behaviour(child, in_function=inside):
                continue
            of = child if isinstance(child, ast.stmt) else statement
            path = function
            if isinstance(child, FUNCTIONS | ast.ClassDef) and not inside:
                path = f"{function}.{child.name}".lstrip(".")
            if of is not None:
                yield Spot(child, Where(node, name, index), of, path, inside)
            yield from _spots_below(child, statement=of, function=path, in_body=inside)


def _is_left_alone(node: ast.AST, name: str) -> bool:
    """Annotations, decorators, patterns, and the names that attributes and targets have."""
    return name in ("annotation", "returns", "decorator_list", "pattern", "ctx", "type_comment", "type_params") or (
        isinstance(node, ast.ClassDef) and name in ("bases", "keywords")
    )


def _has_no_behaviour(node: ast.AST, *, in_function: bool) -> bool:  # noqa: PLR0911 - a list of what is left out
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Assert() | ast.Global() | ast.Nonlocal():
            return True
        case ast.Expr(ast.Constant()):  # a docstring
            return True
        case ast.Expr(ast.Call(ast.Name("assert_never"))):
            return True
        case ast.If(ast.Name("TYPE_CHECKING")):
            return True
        case ast.Assign([ast.Name("__all__")]):
            return True
        case ast.Assign(value=ast.BinOp(op=ast.BitOr()) | ast.Subscript()) if not in_function:  # a name for a type
            return True
        case ast.Delete(targets) if all(isinstance(target, ast.Name) for target in targets):  # an argument unused
            return True
        case ast.keyword("repr" | "strict" | "maxsize"):  # for a reader, an assertion of zip's, how much is cached
            return True
        case _:
            return False


# --- what it may become -----------------------------------------------------------------------------------------------


def replacements(node: ast.AST) -> Iterator[ast.AST]:  # noqa: C901, PLR0912 - one case for each kind of node
    """All replacements of a node; strings with wording are left unchanged."""
    match node:
        case ast.Compare(left, [op], right):
            yield from (ast.Compare(left, [other()], right) for other in COMPARISONS[type(op)])
        case ast.Compare(left, ops, right):
            for index, op in enumerate(ops):
                for other in COMPARISONS[type(op)]:
                    yield ast.Compare(left, [*ops[:index], other(), *ops[index + 1 :]], right)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            for index in range(len(values)):
                rest = [*values[:index], *values[index + 1 :]]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.BinOp(left, op, right) if not _is_text(left):
            yield ast.BinOp(left, ARITHMETIC[type(op)](), right)
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(bytes(value)):
            yield ast.Constant(value + b"?")
        case ast.Call(ast.Name(name), args, keywords) if name in OPPOSITES:
            yield ast.Call(ast.Name(OPPOSITES[name], ast.Load()), args, keywords)
        case ast.Call(ast.Attribute(value), [], []) if isinstance(value, ast.Name | ast.Call | ast.Subscript):
            yield value  # .strip(), .lower() and the like
        case ast.IfExp(condition, body, orelse):
            yield body
            yield orelse
            if not isinstance(condition, ast.Compare):
                yield ast.IfExp(ast.UnaryOp(ast.Not(), condition), body, orelse)
        case ast.Lambda(arguments, body) if not _is_none(body):
            yield ast.Lambda(arguments, ast.Constant(None))
        case ast.comprehension(target, iterated, conditions, is_async) if conditions:
            yield ast.comprehension(target, iterated, [], is_async)
        case ast.ExceptHandler(ast.Tuple(kinds, context), name, body):
            for index in range(len(kinds)):
                yield ast.ExceptHandler(ast.Tuple([*kinds[:index], *kinds[index + 1 :]], context), name, body)
        case ast.stmt():
            yield from _statements(node)


def _statements(node: ast.stmt) -> Iterator[ast.AST]:
    match node:
        case ast.If(condition, body, orelse) if not isinstance(condition, ast.Compare):
            yield ast.If(ast.UnaryOp(ast.Not(), condition), body, orelse)
        case ast.While(condition, body, orelse) if not isinstance(condition, ast.Compare):
            yield ast.While(ast.UnaryOp(ast.Not(), condition), body, orelse)
        case ast.Return(value) if value is not None and not _is_none(value) and not _is_bool(value):
            yield ast.Return(ast.Constant(None))
        case ast.Return(None):
            yield ast.Pass()
        case ast.Expr(ast.Call() | ast.Yield() | ast.YieldFrom()) | ast.AugAssign() | ast.Delete() | ast.Raise():
            yield ast.Pass()
        case ast.Assign(targets) if any(isinstance(target, ast.Attribute | ast.Subscript) for target in targets):
            yield ast.Pass()
        case ast.AnnAssign(ast.Attribute() | ast.Subscript(), value=value) if value is not None:
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case _:
            return


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_bool(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, bool)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, bytes | str)
