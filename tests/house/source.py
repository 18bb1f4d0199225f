"""The two packages read as text: modules, what each imports and defines, how long its functions are."""

import ast
import importlib
import io
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from attrs import field, frozen

__all__ = ["Module", "circles", "client_half", "module_map", "read_modules", "sizes", "twice"]

ROOT = Path(__file__).parents[2]
PACKAGES = ("asap_core", "asap_adapters")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@frozen
class Module:
    """One module. `imports` are the modules of the two packages that it names, type checking and functions included."""

    name: str
    path: Path
    tree: ast.Module = field(repr=False)
    text: str = field(repr=False)
    imports: frozenset[str] = field(repr=False)

    @property
    def lines(self) -> int:
        return self.text.count("\n")

    @property
    def comments(self) -> int:
        """How many lines have a comment."""
        return sum(
            token.type == tokenize.COMMENT for token in tokenize.generate_tokens(io.StringIO(self.text).readline)
        )

    @property
    def documentation(self) -> int:
        """How many lines docstrings have."""
        return sum(
            node.end_lineno - node.lineno + 1
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and type(node.value.value) is str
            if node.end_lineno is not None
        )

    @property
    def sentence(self) -> str:
        """The first paragraph of its docstring, in one line."""
        return " ".join((ast.get_docstring(self.tree) or "").partition("\n\n")[0].split())

    @property
    def functions(self) -> list[int]:
        """The length of each function, in lines."""
        return [
            node.end_lineno - node.lineno + 1
            for node in ast.walk(self.tree)
            if isinstance(node, Function) and node.end_lineno is not None
        ]

    @property
    def public(self) -> list[str]:
        """The names that it offers to users in its `__all__`."""
        if not any(
            isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__" for node in self.tree.body
        ):
            return []
        return list(importlib.import_module(self.name).__all__)

    @property
    def defined(self) -> set[str]:
        """The classes and the aliases of types that it defines itself, without a leading underscore."""
        return {name for node in self.tree.body for name in _names(node) if name[0].isupper() and not name.isupper()}


def _names(node: ast.stmt) -> list[str]:
    match node:
        case ast.ClassDef(name):
            return [name]
        case ast.Assign([ast.Name(name)]) | ast.AnnAssign(ast.Name(name)):
            return [name]
        case _:
            return []


def read_modules() -> dict[str, Module]:
    """All modules of the two packages, by their names."""
    paths = {_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
    found = {}
    for name, path in paths.items():
        text = path.read_text("utf-8")
        tree = ast.parse(text)
        found[name] = Module(name, path, tree, text, frozenset(_imported(tree, frozenset(paths))) - {name})
    return found


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imported(tree: ast.Module, known: frozenset[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in known:
            # `from package import module` names the module; `from module import name` the one that it's taken from.
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & known
            yield from inner or {node.module}
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & known


def circles(modules: dict[str, Module]) -> list[list[str]]:
    """Modules that import each other, directly or by way of others."""
    reach = {name: reachable(modules, name) for name in modules}
    found = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in modules}
    return [list(circle) for circle in sorted(found) if len(circle) > 1]


def reachable(modules: dict[str, Module], *starts: str) -> set[str]:
    """`starts` and all modules that they import, but no faces: those import their whole package."""
    found, ahead = set(starts), list(starts)
    while ahead:
        for name in modules[ahead.pop()].imports - found - set(PACKAGES):
            found.add(name)
            ahead.append(name)
    return found


def client_half(modules: dict[str, Module], client: str, servers: tuple[str, ...]) -> list[Module]:
    """The modules of the adapters that only a client imports: without those of servers, the command line, and mDNS."""
    only = reachable(modules, client) - reachable(modules, *servers)
    return [modules[name] for name in sorted(only) if name.startswith("asap_adapters.") and "mdns" not in name]


def twice(modules: dict[str, Module]) -> dict[str, list[str]]:
    """Names of classes that several modules define."""
    homes: dict[str, list[str]] = {}
    for module in modules.values():
        for name in module.defined:
            homes.setdefault(name, []).append(module.name)
    return {name: where for name, where in sorted(homes.items()) if len(where) > 1}


MAP = """# Modules

Every package and module, each with the first sentence of its docstring. `python -m tests.house --map` prints this page.
"""


def module_map(modules: dict[str, Module]) -> str:
    """`docs/modules.md`: each module with its first sentence, by package."""
    lines = [MAP]
    for module in modules.values():
        if module.path.stem == "__init__":
            lines += [f"## {module.name}", "", module.sentence, ""]
            inner = [other for other in modules.values() if other.name.rpartition(".")[0] == module.name]
            lines += [f"* `{other.path.name}`: {other.sentence}" for other in inner if other.path.stem != "__init__"]
            lines += [""]
    return "\n".join(lines).rstrip() + "\n"


def sizes(modules: dict[str, Module]) -> dict[str, float]:
    """Sums over all modules."""
    functions = sorted(length for module in modules.values() for length in module.functions)
    lines = sum(module.lines for module in modules.values())
    stems = Counter(module.path.stem for module in modules.values() if not module.path.stem.startswith("_"))
    return {
        "modules": len(modules),
        "lines": lines,
        "lines of comments, %": round(100 * sum(module.comments for module in modules.values()) / lines, 1),
        "lines of docstrings, %": round(100 * sum(module.documentation for module in modules.values()) / lines, 1),
        "functions": len(functions),
        "median function, lines": median(functions),
        "19 of 20 functions have at most, lines": functions[len(functions) * 19 // 20],
        "longest function, lines": functions[-1],
        "public names": len({name for module in modules.values() for name in module.public}),
        "file names that several modules share": sum(count > 1 for count in stems.values()),
    }
