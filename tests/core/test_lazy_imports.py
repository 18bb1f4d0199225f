"""Packages that import each public name on its first use."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from asap_core.lazy_imports import lazy_names


@pytest.fixture
def package(monkeypatch, tmp_path: Path) -> ModuleType:
    """A package whose names come from four modules: one is complete, one the test writes, two are broken."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "whole_home.py").write_text("answer, other = 42, 43\n")
    (tmp_path / "asap_poor.py").write_text("import asap_absent\n")
    package = ModuleType("faced")
    monkeypatch.setitem(sys.modules, "faced", package)
    homes = {"whole_home": "answer other", "poor_home": "needy", "asap_poor": "broken", "asap_gone": "gone"}
    package.__getattr__, package.__dir__ = lazy_names("faced", homes)  # type: ignore[method-assign]
    return package


def needs(monkeypatch, tmp_path: Path, name: str) -> None:
    """Let the module that defines `needy` import the package `name`, which isn't installed."""
    monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "poor_home.py").write_text(f"import {name}.part\n")


def test_a_name_is_imported_on_its_first_use_and_kept(package, monkeypatch) -> None:
    assert "answer" not in vars(package)
    assert "whole_home" not in sys.modules
    assert package.answer == 42
    assert vars(package)["answer"] == 42
    monkeypatch.delitem(sys.modules, "whole_home")
    assert package.answer == 42
    assert "whole_home" not in sys.modules


def test_all_names_are_listed_in_order_before_they_are_imported(package) -> None:
    names = dir(package)
    assert [name for name in names if not name.startswith("__")] == ["answer", "broken", "gone", "needy", "other"]
    assert "__name__" in names


def test_an_unknown_name_is_an_attribute_error_as_in_any_module(package) -> None:
    with pytest.raises(AttributeError, match=r"^module 'faced' has no attribute 'nothing'$"):
        package.nothing  # noqa: B018 - the access is what's tested


@pytest.mark.parametrize(
    ("missing", "extra"),
    [("coredis", "redis"), ("cryptography", "keys"), ("joserfc", "jwt"), ("anyio", "agent"), ("h11", "agent")],
)
def test_a_missing_package_is_named_with_its_extra(
    package, monkeypatch, tmp_path: Path, missing: str, extra: str
) -> None:
    needs(monkeypatch, tmp_path, missing)
    with pytest.raises(ModuleNotFoundError) as caught:
        package.needy  # noqa: B018
    assert str(caught.value) == f"faced needs {missing}, which comes with: pip install 'asap-sansio[{extra}]'"
    assert caught.value.name == missing


@pytest.mark.parametrize(("name", "missing"), [("broken", "asap_absent"), ("gone", "asap_gone")])
def test_a_missing_module_of_this_project_raises_an_error_without_an_extra(package, name: str, missing: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=rf"^No module named '{missing}'$"):
        getattr(package, name)


def test_an_error_that_names_no_module_is_raised_unchanged(package, tmp_path: Path) -> None:
    (tmp_path / "poor_home.py").write_text("raise ModuleNotFoundError('not here')\n")
    with pytest.raises(ModuleNotFoundError, match=r"^not here$"):
        package.needy  # noqa: B018
