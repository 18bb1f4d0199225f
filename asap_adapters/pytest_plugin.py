"""The pytest plugin: `pytest --asap-url URL` tries the laws on a live agent, and fixtures serve tests of one's own.

pytest loads it wherever this package is installed, so what it needs is imported where it's used.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pytest

if TYPE_CHECKING:
    from asap_adapters.client.agent_client import AgentClient
    from asap_adapters.conform.hooks import MoveClock, Restart
    from asap_adapters.conform.live import LiveAgent
    from asap_adapters.conform.sockets import SocketExecutor
    from asap_adapters.server.handlers import Handler, Handlers
    from asap_core.server.agent import Agent
    from asap_core.testing.laws.effects import Steps
    from asap_core.testing.laws.lab import Lab
    from asap_core.testing.laws.law import Law
    from asap_core.testing.laws.runner import Recorder
    from asap_core.testing.laws.verdicts import LawBroken

# The options of `asap conform`, which docs/conformance.md explains, with `asap-` before the name.
_OPTIONS: Final = {
    "url": ("URL", "try the laws of an ASAP agent on the one at this base URL"),
    "token": ("TOKEN", "bearer token of the caller"),
    "as": ("URN", "the agent that --asap-token stands for"),
    "other-token": ("TOKEN", "bearer token of a second caller"),
    "other-as": ("URN", "the agent that --asap-other-token stands for"),
    "skill": ("NAME", "the skill that may be run; without it, only one named echo"),
    "input": ("JSON", "the input of that skill"),
    "failing-skill": ("NAME", "a skill that fails, whatever its input; it may be run"),
    "expected-failures": ("FILE", "ids of laws that fail, one a line; one that doesn't fail is an error"),
}
_FLAGS: Final = {
    "direct": "no proxy is shared with others: also send what could hit their requests",
    "i-own-this-host": "test an agent on another machine, which is yours",
}
_LISTS: Final = {
    "without": ("FEATURE", "the agent doesn't have this feature: batch, compression, idempotency"),
    "only": ("NAME", "try only this law or group"),
    "except": ("NAME", "leave out this law or group"),
}
_VISITED: Final = pytest.StashKey["tuple[SocketExecutor, Lab]"]()
_RECORDER: Final = pytest.StashKey["Recorder"]()
T = TypeVar("T")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("asap", "laws of ASAP agents")
    for name, (metavar, about) in _OPTIONS.items():
        group.addoption(f"--asap-{name}", metavar=metavar, help=about)
    for name, (metavar, about) in _LISTS.items():
        group.addoption(f"--asap-{name}", metavar=metavar, action="append", default=[], help=f"{about} [repeatable]")
    for name, about in _FLAGS.items():
        group.addoption(f"--asap-{name}", action="store_true", help=about)
    group.addoption("--asap-profile", choices=["strict", "reference"], default="strict", help="which laws are judged")


class AsapHooks:
    """What a conftest.py may define, for laws that need it."""

    @pytest.hookspec(firstresult=True)
    def pytest_asap_move_clock(self, how: str, seconds: int) -> object:
        """Move the agent's clocks. how: "advance" for both, "step" for the wall clock only."""

    @pytest.hookspec(firstresult=True)
    def pytest_asap_restart(self) -> object:
        """Start the agent again, so that it remembers nothing."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Make the hooks known."""
    pluginmanager.add_hookspecs(AsapHooks)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add a test for each law, named by its id."""
    if config.getoption("--asap-url") is None:
        return
    from asap_core.testing.laws.catalogue import chosen, expected_failures  # noqa: PLC0415 - see the module's docstring

    known, only, excluded = (config.getoption(f"--asap-{name}") for name in ("expected-failures", "only", "except"))
    try:
        expected = expected_failures("" if known is None else Path(known).read_text("utf-8"))
        tried = chosen(strict=config.getoption("--asap-profile") == "strict", only=only, excluded=excluded)
    except OSError as error:
        raise pytest.UsageError(f"--asap-expected-failures: {error.strerror or error}") from None
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    executor, lab = _visited(config)
    laws = [
        LawItem.from_parent(session, nodeid=f"asap::{law.id}", law=law, lab=lab, executor=executor) for law in tried
    ]
    for each in laws:
        if each.name in expected:
            each.add_marker(pytest.mark.xfail(strict=True, reason="--asap-expected-failures"))
    # The terminal counts what is reported.
    config.hook.pytest_collectreport(report=pytest.CollectReport("asap", "passed", None, [*laws]))
    items += laws


class LawItem(pytest.Item):
    """A law as a test."""

    def __init__(self, *, law: Law, lab: Lab, executor: SocketExecutor, **arguments: Any) -> None:
        super().__init__(name=law.id, **arguments)
        self._law = law
        self._lab = lab
        self._executor = executor

    @property
    def obj(self) -> None:
        """Nothing: other plugins ask tests for their function."""
        return

    def runtest(self) -> None:
        """Try the law."""
        from asap_adapters.conform.sockets import AGENT_GONE  # noqa: PLC0415 - as above
        from asap_core.testing.laws.runner import LawResult, run_law  # noqa: PLC0415 - as above
        from asap_core.testing.laws.text_report import failure_lines, prepare_lines  # noqa: PLC0415 - as above

        result = run_law(self._law, self._lab, self._executor, time.monotonic)
        if result.outcome is not LawResult.PASSED and result.exchanges and not self._executor.is_alive():
            self.session.shouldstop = f"{AGENT_GONE} since {self.name}, or the law before it"
        match result.outcome:
            case LawResult.FAILED:
                lines = failure_lines(result, self.config.getoption("--asap-url"))
                first = f"expected {self._law.expected}; got {result.remark}"  # all that pytest's summary shows
                raise BrokenLawError("\n".join([first, "", *prepare_lines(), *lines]))
            case LawResult.SKIPPED:
                pytest.skip(result.remark.replace("--", "--asap-"))
            case LawResult.PASSED:
                pass

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return the report of the law, without a traceback."""
        return str(excinfo.value) if excinfo.errisinstance(BrokenLawError) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Return where the test is: nowhere."""
        return self.path, None, f"law {self.name}"


class BrokenLawError(Exception):
    """The agent broke a law. Its text is the report."""


def _visited(config: pytest.Config) -> tuple[SocketExecutor, Lab]:
    """Return what laws are run with. The manifest is fetched once."""
    if config.getoption("--asap-url") is None:
        raise pytest.UsageError("expected --asap-url, the base URL of the agent under test")
    if _VISITED not in config.stash:
        config.stash[_VISITED] = _visit(config)
    return config.stash[_VISITED]


def _visit(config: pytest.Config) -> tuple[SocketExecutor, Lab]:
    from asap_adapters.conform.live import TokenRefused  # noqa: PLC0415 - as above
    from asap_adapters.conform.sockets import NotThisMachine  # noqa: PLC0415 - as above
    from asap_core.testing.laws.survey import NoManifest  # noqa: PLC0415 - as above

    try:
        executor, lab = _live_agent(config).visit()
    except NotThisMachine as error:
        raise pytest.UsageError(f"{error}; if it's yours, give --asap-i-own-this-host") from None
    except TokenRefused as error:
        raise pytest.UsageError(f"the agent refuses the token that was given for {error} (401)") from None
    except OSError as error:
        raise pytest.UsageError(f"--asap-url: {error.strerror or error}") from None
    if isinstance(lab, NoManifest):
        raise pytest.UsageError(f"--asap-url: no manifest of an agent: {lab.got}")
    return executor, lab


def _live_agent(config: pytest.Config) -> LiveAgent:
    from asap_adapters.cli.live_agent import feature  # noqa: PLC0415 - as above
    from asap_adapters.cli.options import url  # noqa: PLC0415 - as above
    from asap_adapters.conform.live import LiveAgent  # noqa: PLC0415 - as above

    given = {name: config.getoption(f"--asap-{name}") for name in (*_OPTIONS, *_FLAGS)}
    for token, urn in (("token", "as"), ("other-token", "other-as")):
        if (given[token] is None) != (given[urn] is None):
            raise pytest.UsageError(f"expected --asap-{token} and --asap-{urn} together")
    try:
        work = None if given["input"] is None else json.loads(given["input"])
        if not isinstance(work, dict | None):
            raise ValueError("--asap-input: expected a JSON object")  # noqa: TRY301, TRY004 - as for other options
        without = frozenset(map(feature, config.getoption("--asap-without")))
        return LiveAgent(
            url=url(given["url"]), token=given["token"], urn=given["as"], other_token=given["other-token"],
            other_urn=given["other-as"], skill=given["skill"], input=work,
            failing=given["failing-skill"], without=without, direct=given["direct"], owned=given["i-own-this-host"],
            move_clock=_move_clock(config), restart=_restart(config),
        )  # fmt: skip
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def _move_clock(config: pytest.Config) -> MoveClock | None:
    hook = config.hook.pytest_asap_move_clock
    return (lambda how, seconds: hook(how=how, seconds=seconds)) if hook.get_hookimpls() else None


def _restart(config: pytest.Config) -> Restart | None:
    hook = config.hook.pytest_asap_restart
    return hook if hook.get_hookimpls() else None


@pytest.fixture
def asap_lab(pytestconfig: pytest.Config) -> Lab:
    """The lab of the agent at `--asap-url`, which builds requests: see docs/conformance.md."""
    return _visited(pytestconfig)[1]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the exchanges of a test that a check of the kit ends, instead of the check's traceback."""
    report = yield
    recorder = item.stash.get(_RECORDER, None)
    if recorder is not None and call.excinfo is not None and call.when == "call" and report.failed:
        from asap_core.testing.laws.verdicts import LawBroken  # noqa: PLC0415 - as above

        if isinstance(call.excinfo.value, LawBroken):
            report.longrepr = "\n".join(_broken_lines(item, call.excinfo, recorder, call.excinfo.value))
    return report


def _broken_lines(
    item: pytest.Item, excinfo: pytest.ExceptionInfo[BaseException], recorder: Recorder, broken: LawBroken
) -> Iterator[str]:
    from asap_core.testing.laws.shell_lines import repeating_lines  # noqa: PLC0415 - as above
    from asap_core.testing.laws.text_report import exchange_lines, prepare_lines  # noqa: PLC0415 - as above

    yield f"got {recorder.breach(broken).got}"
    own = [each for each in excinfo.traceback if each.path == item.path]
    yield from (f"  {item.path.name}:{each.lineno + 1}: {str(each.statement).strip()}" for each in own[-1:])
    yield from ("", *prepare_lines())
    lines = repeating_lines(recorder.exchanges, item.config.getoption("--asap-url"))
    for number, (exchange, line) in enumerate(zip(recorder.exchanges, lines, strict=True), 1):
        yield from exchange_lines(number, exchange, line)


@pytest.fixture
def asap_run(request: pytest.FixtureRequest, pytestconfig: pytest.Config, asap_lab: Lab) -> Callable[[Steps[T]], T]:
    """Carries out steps of the lab: `asap_run(asap_lab.send(envelope))` returns the answer."""
    from asap_core.testing.laws.runner import Recorder  # noqa: PLC0415 - as above

    recorder = Recorder(
        _visited(pytestconfig)[0], time.monotonic, asap_lab.secrets, asap_lab.wall,
        clock_hook=asap_lab.clock_hook, reset_hook=asap_lab.reset_hook,
    )  # fmt: skip
    request.node.stash[_RECORDER] = recorder
    return recorder.run


# --- fixtures for tests of one's own ---------------------------------------------------------------------------------


@pytest.fixture
def asap_agent() -> tuple[Agent, Mapping[str, Handler] | Handlers]:
    """The agent under test and its handlers: override it in your conftest.py, for `asap_client`."""
    raise pytest.UsageError("asap_client: expected a fixture asap_agent of yours that returns (agent, handlers)")


@pytest.fixture
async def asap_client(
    anyio_backend: object, asap_agent: tuple[Agent, Mapping[str, Handler] | Handlers]
) -> AsyncIterator[AgentClient]:
    """A client for `asap_agent`, in the same process. For tests with `pytest.mark.anyio`."""
    from asap_adapters.testing import in_process  # noqa: PLC0415 - as above

    del anyio_backend
    agent, handlers = asap_agent
    async with in_process(agent, handlers) as client:
        yield client
