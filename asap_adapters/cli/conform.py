"""`asap conform`: tries the laws of an ASAP agent on a live one, and reports which it breaks."""

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from asap_adapters.cli.command import choice, command, flag, nested, option, repeated
from asap_adapters.cli.failures import UserError
from asap_adapters.cli.live_agent import (
    EXIT_UNREACHABLE,
    LIVE_AGENT_RULES,
    LiveAgentOptions,
    lacks_token,
    seed,
    usable,
)
from asap_adapters.cli.options import json_option
from asap_adapters.cli.output import complain, print_json, say
from asap_adapters.conform.hooks import HookCommand, hook_command
from asap_adapters.conform.sockets import AGENT_GONE, SocketExecutor
from asap_core.testing.laws.catalogue import chosen, expected_failures, starts_the_agent_again
from asap_core.testing.laws.html_report import NamedRun, html_report
from asap_core.testing.laws.junit_report import junit_report
from asap_core.testing.laws.lab import Lab
from asap_core.testing.laws.law import Law
from asap_core.testing.laws.records import records, to_json
from asap_core.testing.laws.runner import LawResult, Report, Result, run_laws
from asap_core.testing.laws.text_report import text_report


@frozen(kw_only=True)
class ConformOptions:
    """The options of `asap conform`."""

    agent: LiveAgentOptions = nested(LiveAgentOptions)
    profile: str = choice("--profile", ("strict", "reference"), "which laws are judged", default="strict")
    only: Sequence[str] = repeated("--only NAME", str, "try only this law or group")
    excluded: Sequence[str] = repeated("--except NAME", str, "leave out this law or group")
    seed: int | None = option("--seed N", seed, "try the laws in a random order, which this number repeats")
    expected: Path | None = option(
        "--expected-failures FILE", Path, "ids of laws that fail, one a line; one that doesn't fail is an error"
    )
    failing: str | None = option("--failing-skill NAME", str, "a skill that fails, whatever its input; it may be run")
    clock_hook: HookCommand | None = option(
        "--clock-hook CMD", hook_command, "run CMD advance SECONDS, or CMD step SECONDS, to move the agent's clocks"
    )
    reset_hook: HookCommand | None = option("--reset-hook CMD", hook_command, "run CMD to start the agent again")
    direct: bool = flag("--direct", "no proxy is shared with others: also send what could hit their requests")
    html: Path | None = option("--html FILE", Path, "write the report as one page of HTML")
    junit: Path | None = option("--junit FILE", Path, "write the report as JUnit XML")
    json: bool = json_option()


def _conform(options: ConformOptions) -> int:
    laws = _chosen(options)
    expected = _expected(options.expected)
    began = time.monotonic()
    executor, lab = options.agent.visit(
        direct=options.direct, failing=options.failing, move_clock=options.clock_hook, restart=options.reset_hook
    )
    if lacks_token(lab):
        complain("this agent authenticates its callers: without --token and --as no law about calls is tried")
    results, gone = _run(laws, lab, executor, quiet=options.json)
    report = Report(options.agent.url, lab.recipient, options.profile, tuple(results), time.monotonic() - began)
    shown = _show(report, expected, options)
    if gone:
        left = len(laws) - len(results)
        complain(f"{AGENT_GONE} since {results[-1].law.id}, or the law before it: {left} laws weren't tried")
    return EXIT_UNREACHABLE if gone else shown


def _chosen(options: ConformOptions) -> list[Law]:
    try:
        laws = chosen(strict=options.profile == "strict", only=options.only, excluded=options.excluded)
    except ValueError as error:
        raise UserError(str(error), usage=True) from None
    if options.seed is not None:
        random.Random(options.seed).shuffle(laws)  # noqa: S311 - an order, not a secret
        laws.sort(key=starts_the_agent_again)
    return laws


def _expected(path: Path | None) -> frozenset[str]:
    if path is None:
        return frozenset()
    try:
        with usable(path):
            return expected_failures(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: {error}", usage=True) from None


def _run(laws: Sequence[Law], lab: Lab, executor: SocketExecutor, *, quiet: bool) -> tuple[list[Result], bool]:
    """Try the laws. Returns the results, and whether the agent has gone, which ends the run."""
    results: list[Result] = []
    shown, gone = sys.stderr.isatty() and not quiet, False
    for number, result in enumerate(run_laws(laws, lab, executor, time.monotonic), 1):
        results.append(result)
        if shown:
            failed = sum(each.outcome is LawResult.FAILED for each in results)
            sys.stderr.write(f"\r\x1b[K{number}/{len(laws)} laws, {failed} failed: {result.law.id}")
            sys.stderr.flush()
        gone = result.outcome is not LawResult.PASSED and bool(result.exchanges) and not executor.is_alive()
        if gone:
            break
    if shown:
        sys.stderr.write("\r\x1b[K")
    return results, gone


def _show(report: Report, expected: frozenset[str], options: ConformOptions) -> int:
    failed, kept = ({each.law.id for each in report.by_outcome(one)} for one in (LawResult.FAILED, LawResult.PASSED))
    found = records(report)
    if options.json:
        print_json(to_json(found))
    else:
        for line in text_report(report):
            say(line)
    if options.html is not None:
        note = f"{report.url}, profile {report.profile}, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC"
        with usable(options.html):
            options.html.write_text(html_report([NamedRun(report.agent, found)], note=note), "utf-8")
    if options.junit is not None:
        with usable(options.junit):
            options.junit.write_text(junit_report(found, expected), "utf-8")
    known, stale = sorted(expected & failed), sorted(expected & kept)
    if known:
        complain(f"expected to fail, and did: {', '.join(known)}")
    if stale:
        complain(f"expected to fail, and didn't: {', '.join(stale)}")
    nothing = all(each.outcome is LawResult.SKIPPED for each in report.results)
    if nothing:
        complain("no law could be tried")
    return 1 if failed - expected or stale or nothing else 0


COMMANDS: Final = (
    command(
        "conform",
        ConformOptions,
        _conform,
        "try the laws of an ASAP agent on a live one",
        description=(
            "Try the laws of an ASAP agent on a live one, and report each that it breaks, with the bytes that show it. "
            "Exits with 0 if all laws that were tried are kept, 1 if one is broken, 2 if the command line is wrong, "
            "3 if the agent can't be reached, shows no manifest, or stops answering."
        ),
        rules=LIVE_AGENT_RULES,
    ),
)
