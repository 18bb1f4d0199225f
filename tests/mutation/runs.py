"""Whether the tests notice a mutant.

The tests are collected once. Each mutant is then a fork of that process in which one function has other code, and only
the tests that reach this function are run, the likeliest to fail first, up to the first failure. A mutant of what is
run at import gets a fork of a process that has imported nothing yet, and all of its module's tests.
"""

import functools
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import mmap
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set as AbstractSet
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import pytest
from attrs import frozen

from tests.mutation.mutants import Mutant

# A test that takes this many times as much CPU time as without the mutant, and a bit, is in an endless loop: it has
# noticed. By the wall clock, whatever else the machine does would kill mutants too.
PATIENCE, AND_A_BIT = 5.0, 1.0
# For a whole run of a module's tests, in a process that begins afresh.
LONGEST = 300.0
# An endless loop that collects must not take the machine's memory.
MEMORY = 4 * 2**30
# Tests that plant defects themselves say nothing with another defect planted.
ASKED = "not planted"
NOTICED, UNNOTICED, BROKEN = 1, 0, 3

# How likely a test is thought to be to kill a mutant of a function before it has killed one, against one that did.
_LUCK = 0.02
# Which test a fork is at: the one thing that it shares with the process that waits for it.
_AT = mmap.mmap(-1, 4)

_fork = multiprocessing.get_context("fork")


class Broken(Exception):
    """The tests fail or can't be collected without any mutant."""


Tests = Mapping[str, Sequence[Path]]
"""Of each module by its name, the files that hold it to what it promises."""


def judged(mutants: Sequence[Mutant], tests: Tests) -> Iterator[tuple[Mutant, bool]]:
    """Say of each mutant whether a test fails with it. Raises Broken where one does without."""
    at_import = [one for one in mutants if not one.in_body]
    if in_bodies := [one for one in mutants if one.in_body]:
        theirs, ours = _fork.Pipe(duplex=False)
        host = _fork.Process(target=_host, args=(in_bodies, tests, ours))
        host.start()
        ours.close()
        for mutant in in_bodies:
            try:
                verdict: bool | None = theirs.recv()
            except EOFError:
                raise Broken from None
            if verdict is None:  # its function is run at import too, or no test calls it
                at_import.append(mutant)
            else:
                yield mutant, verdict
        host.join()
    for mutant in at_import:
        work = functools.partial(_run_afresh, mutant, tests[mutant.module.name])
        yield mutant, not _in_fork(work, seconds=LONGEST)


def _in_fork(work: Callable[[], object], *, seconds: float) -> bool:
    """Whether `work` comes to its end in a fork of this process, in time."""
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_REAL, seconds)  # whose signal ends the process
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        with suppress(BaseException):
            os._exit(UNNOTICED if work() else NOTICED)
        os._exit(NOTICED)
    _, status = os.waitpid(child, 0)
    return status == 0


def _be_quiet() -> None:
    quiet = os.open(os.devnull, os.O_RDWR)
    for one in (0, 1, 2):
        os.dup2(quiet, one)


def _pytest(tests: Sequence[Path], plugin: object) -> int:
    options = ["-q", "-x", "-p", "no:cacheprovider", "--capture=no", "--tb=no", "-m", ASKED]
    return int(pytest.main([*options, *map(str, tests)], plugins=[plugin]))


# --- what is run at import --------------------------------------------------------------------------------------------


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the mutant instead of the module."""

    def __init__(self, name: str, mutant: Mutant) -> None:
        self._name = name
        self._mutant = mutant

    def find_spec(self, fullname: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._mutant.module.path, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        exec(self._mutant.compiled(), module.__dict__)


class _FirstFailure:
    """Ends the process at the first failure."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os._exit(NOTICED)


def import_name(path: Path) -> str:
    """The name by which tests import a module of the core; by another name its mutant wouldn't be loaded."""
    parts = path.with_suffix("").parts
    return ".".join(parts[len(parts) - 1 - parts[::-1].index("asap_core") :])


def _run_afresh(mutant: Mutant, tests: Sequence[Path]) -> bool:
    _be_quiet()
    sys.meta_path.insert(0, _Mutated(import_name(mutant.module.path), mutant))
    return _pytest(tests, _FirstFailure()) == 0


# --- what is run when it's called -------------------------------------------------------------------------------------


def _host(mutants: Sequence[Mutant], tests: Tests, verdicts: "Connection[Any, Any]") -> None:
    _be_quiet()
    files = {file for mutant in mutants for file in tests[mutant.module.name]}
    _pytest(sorted(files), _Session(mutants, tests, verdicts))
    os._exit(0)


@frozen
class _Baseline:
    """The CPU time of each test without a mutant, and the functions that it reaches, by file and name."""

    seconds: dict[int, float]
    reached: dict[tuple[str, str], set[int]]


class _Session(_FirstFailure):
    """A pytest session whose loop over the tests is a loop over the mutants."""

    def __init__(self, mutants: Sequence[Mutant], tests: Tests, verdicts: "Connection[Any, Any]") -> None:
        self._mutants = mutants
        self._tests = tests
        self._verdicts = verdicts

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = session.items
        gc.unfreeze()  # gc.get_objects() doesn't list what tests/conftest.py has frozen
        paths = {str(mutant.module.path) for mutant in self._mutants}
        functions = _functions_in(paths)
        caches = [one for one in gc.get_objects() if isinstance(one, functools._lru_cache_wrapper)]
        baseline = _baseline(items, paths, caches)
        gc.freeze()  # what is there won't be looked at again, nor copied for that
        kills: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
        for mutant in self._mutants:
            place = str(mutant.module.path), mutant.function
            own = self._tests[mutant.module.name]
            order = [number for number in baseline.reached.get(place, ()) if items[number].path in own]
            # First what killed other mutants of this function, and what is quick.
            order.sort(key=lambda number: baseline.seconds[number] / (kills[place][number] + _LUCK))
            live = functions[place]
            code = dict(_codes(mutant.compiled()))[mutant.function]
            if not order or not live or any(one.__code__.co_freevars != code.co_freevars for one in live):
                self._verdicts.send(None)
                continue
            limits = [PATIENCE * baseline.seconds[number] + AND_A_BIT for number in order]
            work = functools.partial(_run_with, live, code, [items[number] for number in order], limits, caches)
            survived = _in_fork(work, seconds=LONGEST)
            if not survived:
                kills[place][order[int.from_bytes(_AT[:], "big")]] += 1
            self._verdicts.send(not survived)
        return True


def _baseline(items: Sequence[pytest.Item], paths: AbstractSet[str], caches: Sequence[Any]) -> _Baseline:
    """Run all tests twice in forks, so that this process stays as it is after the collection."""
    reached = _told_by_fork(_reached, items, paths, caches)
    # In another order, with no change at all, they must pass: else every mutant would count as killed.
    order = sorted(range(len(items)), key=lambda number: sum(number in tests for tests in reached.values()))
    return _Baseline(_told_by_fork(_seconds, items, order, caches), reached)


def _told_by_fork(work: Callable[..., Any], *arguments):
    theirs, ours = _fork.Pipe(duplex=False)

    def tell() -> None:
        ours.send(work(*arguments))
        os._exit(0)

    child = _fork.Process(target=tell)
    child.start()
    ours.close()
    try:
        return theirs.recv()
    except EOFError:  # a test failed
        os._exit(BROKEN)


def _reached(
    items: Sequence[pytest.Item], paths: AbstractSet[str], caches: Sequence[Any]
) -> dict[tuple[str, str], set[int]]:
    reached: dict[tuple[str, str], set[int]] = defaultdict(set)
    codes: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            codes.add(frame.f_code)

    for number, _ in enumerate(items):
        codes.clear()
        sys.setprofile(note)
        _run(items, number, caches)
        sys.setprofile(None)
        for code in codes:
            if code.co_filename in paths:
                reached[code.co_filename, code.co_qualname.partition(".<locals>")[0]].add(number)
    return dict(reached)


def _seconds(items: Sequence[pytest.Item], order: Sequence[int], caches: Sequence[Any]) -> dict[int, float]:
    ordered = [items[number] for number in order]
    seconds = {}
    for place, number in enumerate(order):
        begun = time.process_time()
        _run(ordered, place, caches)
        seconds[number] = time.process_time() - begun
    return seconds


def _run_with(
    functions: Sequence[FunctionType],
    code: CodeType,
    items: Sequence[pytest.Item],
    limits: Sequence[float],
    caches: Sequence[Any],
) -> bool:
    for function in functions:
        function.__code__ = code
    for number, limit in enumerate(limits):
        signal.setitimer(signal.ITIMER_PROF, limit)
        _AT[:] = number.to_bytes(4, "big")
        _run(items, number, caches)
    return True


def _run(items: Sequence[pytest.Item], number: int, caches: Sequence[Any]) -> None:
    """Run one test, with no answers cached from another one."""
    for cache in caches:
        cache.cache_clear()
    item, following = items[number], items[number + 1 : number + 2]
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following[0] if following else None)


def _functions_in(paths: AbstractSet[str]) -> dict[tuple[str, str], list[FunctionType]]:
    """The live function objects of these files by name, also wrapped or copied ones."""
    found: dict[tuple[str, str], list[FunctionType]] = defaultdict(list)
    for one in gc.get_objects():
        if isinstance(one, FunctionType) and one.__code__.co_filename in paths:
            found[one.__code__.co_filename, one.__code__.co_qualname].append(one)
    return found


def _codes(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    """The code of each function and method in a module's code, by its name."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType) and "<" not in constant.co_qualname:
            yield constant.co_qualname, constant
            yield from _codes(constant)
