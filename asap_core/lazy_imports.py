"""Public names that a package imports on their first use (PEP 562)."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final

# The extra of this distribution that brings a package; any other package comes with `agent`.
_EXTRAS: Final = {"coredis": "redis", "cryptography": "keys", "joserfc": "jwt"}


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for `package`.

    homes: for each module, the public names that it defines, separated by spaces.

    If a module needs a package that isn't installed, the ModuleNotFoundError names the extra that brings it.
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}

    def load(name: str) -> Any:
        home = home_of.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(home), name)
        except ModuleNotFoundError as error:
            raise _with_extra(package, error) from None
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home_of})

    return load, names


def _with_extra(package: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    missing = (error.name or "").partition(".")[0]
    if not missing or missing.startswith("asap_"):
        return error
    extra = _EXTRAS.get(missing, "agent")
    return ModuleNotFoundError(
        f"{package} needs {missing}, which comes with: pip install 'asap-sansio[{extra}]'", name=missing
    )
