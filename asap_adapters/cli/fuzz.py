"""`asap fuzz`: sends sequences of valid, repeated and broken requests to a live agent, and shrinks a failure."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

from asap_adapters.cli.command import choice, command, nested, option
from asap_adapters.cli.failures import UserError
from asap_adapters.cli.live_agent import (
    EXIT_UNREACHABLE,
    LIVE_AGENT_RULES,
    MOST_SEED,
    LiveAgentOptions,
    lacks_token,
    seed,
    usable,
)
from asap_adapters.cli.options import whole_number
from asap_adapters.cli.output import complain, say
from asap_adapters.conform.sockets import AGENT_GONE, TooMuchTraffic
from asap_adapters.system import random_fraction
from asap_core.testing.laws.shell_lines import repeating_lines
from asap_core.testing.laws.text_report import exchange_lines, prepare_lines

if TYPE_CHECKING:
    from asap_core.testing.fuzz_machine import Finding, FuzzRun

# A sequence of 15 requests takes some 50 ms on one machine: the default run takes some 20 s.
_SEQUENCES: Final = 200
_MOST_SEQUENCES: Final = 1_000_000
_SECONDS: Final = 60
_MOST_SECONDS: Final = 86_400
_STEPS: Final = 15
_MOST_STEPS: Final = 200


def _sequences(text: str) -> int:
    return whole_number(text, 1, _MOST_SEQUENCES, f"expected a number, 1 to {_MOST_SEQUENCES}")


def _seconds(text: str) -> int:
    return whole_number(text, 1, _MOST_SECONDS, f"expected seconds, 1 to {_MOST_SECONDS}")


def _steps(text: str) -> int:
    return whole_number(text, 1, _MOST_STEPS, f"expected a number, 1 to {_MOST_STEPS}")


@frozen(kw_only=True)
class FuzzOptions:
    """The options of `asap fuzz`."""

    agent: LiveAgentOptions = nested(LiveAgentOptions)
    profile: str = choice("--profile", ("strict", "reference"), "what is judged", default="strict")
    sequences: int = option("--sequences N", _sequences, "try at most this many sequences", default=_SEQUENCES)
    steps: int = option("--steps N", _steps, "requests in a sequence, at most", default=_STEPS)
    seconds: int = option("--seconds S", _seconds, "begin no sequence after this time", default=_SECONDS)
    seed: int | None = option("--seed N", seed, "draw the sequences that this number gives", shown_default="any")
    test: Path | None = option("--test FILE", Path, "write a failure as a pytest test")


def _fuzz(options: FuzzOptions) -> int:
    try:
        from asap_core.testing.fuzz_machine import FuzzRun  # noqa: PLC0415 - Hypothesis is an extra
    except ModuleNotFoundError as error:
        missing = "asap fuzz needs Hypothesis, which comes with: pip install 'asap-sansio[fuzz]'"
        raise ModuleNotFoundError(missing, name=error.name) from None

    executor, lab = options.agent.visit()
    if lacks_token(lab):
        raise UserError("this agent authenticates its callers: expected --token and --as", usage=True)
    chosen = int(random_fraction() * MOST_SEED) if options.seed is None else options.seed
    run = FuzzRun(lab, executor, time.monotonic, strict=options.profile == "strict", steps=options.steps)
    try:
        _show_progress(run, options, chosen)
    except TooMuchTraffic as error:
        complain(str(error))
    for line in _report(run, options, chosen):
        say(line)
    gone = not executor.is_alive()
    if gone:
        complain(f"{AGENT_GONE} since the last sequence")
    if run.finding is None:
        return EXIT_UNREACHABLE if gone else 0
    for line in _finding_lines(run.finding, options.agent.url):
        say(line)
    if options.test is not None:
        with usable(options.test):
            options.test.write_text(run.finding.test, "utf-8")
    return EXIT_UNREACHABLE if gone else 1


def _show_progress(run: "FuzzRun", options: FuzzOptions, chosen: int) -> None:
    shown = sys.stderr.isatty()
    for tried in run.batches(options.sequences, options.seconds, chosen):
        if shown:
            sys.stderr.write(f"\r\x1b[K{tried}/{options.sequences} sequences, {run.requests} requests")
            sys.stderr.flush()
    if shown:
        sys.stderr.write("\r\x1b[K")


def _report(run: "FuzzRun", options: FuzzOptions, chosen: int) -> Iterator[str]:
    yield f"{'move':<24} {'tried':>7}  answers"
    for move, outcomes in run.coverage.outcomes.items():
        shown = ", ".join(f"{outcome} {count}" for outcome, count in outcomes.most_common(4))
        more = len(outcomes) - 4
        yield f"{move:<24} {outcomes.total():>7}  {shown}{f', and {more} others' if more > 0 else ''}"
    named, known = len(run.coverage.variants), run.coverage.known
    yield f"{run.sequences} sequences, {run.requests} requests, seed {chosen}"
    if named == known:
        yield f"every variant of a call was sent at least once ({known}), in some of their combinations"
    else:
        yield f"{named} of {known} variants of a call were sent at least once, in some of their combinations"
    if run.finding is None:
        yield f"nothing found at {options.agent.url}, profile {options.profile}"


def _finding_lines(finding: "Finding", url: str) -> Iterator[str]:
    yield ""
    yield f"FOUND: {finding.got}"
    yield f"expected: {finding.expected}"
    if not finding.again:
        yield "It didn't happen each time that the sequence was repeated."
    yield from ("", *prepare_lines())
    lines = repeating_lines(finding.exchanges, url)
    for number, (exchange, line) in enumerate(zip(finding.exchanges, lines, strict=True), 1):
        yield from exchange_lines(number, exchange, line)
    yield ""
    yield from finding.test.splitlines()


COMMANDS: Final = (
    command(
        "fuzz",
        FuzzOptions,
        _fuzz,
        "send sequences of valid, repeated and broken requests to a live agent",
        description=(
            "Send sequences of valid, repeated, broken and arbitrary requests to a live agent, and report the shortest "
            "sequence that is answered wrongly, as requests, curl lines and a pytest test. Exits as asap conform does."
        ),
        rules=LIVE_AGENT_RULES,
    ),
)
