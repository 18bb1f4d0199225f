"""Settings of all tests: Hypothesis profiles, how files are shared out, what child processes inherit, skips in CI."""

import gc
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings

# Virtual time and shared machines: a slow example says nothing about the code.
settings.register_profile(
    "thorough", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=300, print_blob=True
)
# A run of everything looks for what a change broke. `.ci/run` also searches a part thoroughly, another part each day.
settings.register_profile("default", settings.get_profile("thorough"), max_examples=25, print_blob=False)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, print_blob=True)
settings.register_profile("long", settings.get_profile("thorough"), max_examples=20_000, stateful_step_count=100)
# What has been searched once in a run is only looked over where it's run again: on other Pythons, under coverage.
settings.register_profile("light", settings.get_profile("ci"), max_examples=15)
# Under a mutant a failure is all that's asked for, not the shortest one; and the same each time.
settings.register_profile(
    "mutation",
    settings.get_profile("default"),
    max_examples=30,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))


def restore_sigint() -> None:
    """Replace an ignored SIGINT by Python's handler, so that processes started by tests don't inherit the ignoring.

    A shell without job control starts background jobs with SIGINT ignored, and an ignored signal stays ignored through
    exec (POSIX, sh, "Asynchronous Lists"). Tests that interrupt a process would wait for it in vain.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def keep_bytecode() -> None:
    """Keep compiled modules beside their source, also if the environment says not to.

    Container images set PYTHONDONTWRITEBYTECODE. Each of 300 processes that tests start would compile both packages. A
    folder of our own for compiled modules would have none of those that pip and Python's installer have made.
    """
    os.environ["PYTHONDONTWRITEBYTECODE"] = ""
    sys.dont_write_bytecode = False


restore_sigint()
keep_bytecode()

# The skips that CI accepts: of tests that no machine of this project's can run, and of those in tests/drivers that
# `.ci/run` runs with further packages.
ACCEPTED = ("cannot run anywhere here:", "run by .ci/run in an environment of its own:")

WAITING = ("tests/drivers/", "tests/interop/", "tests/live/")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two processes for each processor, and one: live tests wait for sockets and clocks half of their time."""
    return 2 * (os.cpu_count() or 1) + 1


def pytest_configure(config: pytest.Config) -> None:
    """Keep files in the order of `pytest_collection_modifyitems`; xdist would begin with the most tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage while tests are collected: what is made then stays. Nor look at it again afterwards."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, object]:
    """Let each of several processes collect files in an order of its own, so that they compile different ones first.

    Processes that go through a fresh clone in the same order all compile all of it, each at the same moment. What one
    has compiled, the others load.
    """
    report = yield
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and isinstance(collector, pytest.Directory):
        random.Random(worker).shuffle(report.result)
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what waits, and end with what computes: then no process is left alone with a long file at the end."""
    items.sort(key=lambda item: (not item.nodeid.startswith(WAITING), item.path))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(accepted in reason for accepted in ACCEPTED):
            report.outcome = "failed"
            report.longrepr = f"skipped in CI: {reason}"
    return report


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by their place only: keys and compressed bodies differ between processes, and names mustn't."""
    return "bytes" if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A test that runs a command sets levels as the command does; others look for what is logged."""
    loggers = [logging.getLogger(name) for name in ("asap", "asap.serve", "coredis", "zeroconf")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
