"""The report as text: counts by group, and for each failure all that's needed to understand and repeat it."""

import re
from collections.abc import Iterator, Sequence
from typing import Final

from asap_core.testing.laws.runner import HookRun, LawResult, RecordedExchange, Report, Result
from asap_core.testing.laws.shell_lines import PREPARE, repeating_lines

# Of a long body a person reads the beginning; JSON and HTML reports have all of it.
_SHOWN_BYTES: Final = 4_000
# The first exchange often says what the last ones repeat.
_SHOWN_LAST: Final = 5
# CR LF, and the place behind a lone LF.
_LINE_END: Final = re.compile(r"\r\n|(?<=[^\r]\n)|(?<=\A\n)")
# Where a body has no line end, the place between it and the next answer, or the next request.
_NEXT: Final = re.compile(r"(?<=[^\n])(?=HTTP/1\.[01] \d{3}\b)|(?<=[}\]])(?=[A-Z]+ /\S* HTTP/1\.[01]\r)")
_NEXT_MESSAGE: Final = "(next message)"


def text_report(report: Report) -> Iterator[str]:
    """Yield the lines of the report."""
    failed, skipped = report.by_outcome(LawResult.FAILED), report.by_outcome(LawResult.SKIPPED)
    if failed:
        yield from prepare_lines()
    for result in failed:
        yield from failure_lines(result, report.url)
    if skipped:
        yield f"Not tried ({len(skipped)}):"
        yield from (f"  {each.law.id}: {each.remark}" for each in skipped)
        yield ""
    yield f"{'group':<14} {'passed':>7} {'failed':>7} {'skipped':>8}"
    for group, counts in report.counts().items():
        numbers = (counts[LawResult.PASSED], counts[LawResult.FAILED], counts[LawResult.SKIPPED])
        yield f"{group:<14} {numbers[0]:>7} {numbers[1]:>7} {numbers[2]:>8}"
    passed = len(report.results) - len(failed) - len(skipped)
    yield f"{'all':<14} {passed:>7} {len(failed):>7} {len(skipped):>8}"
    yield f"{report.agent} at {report.url}, profile {report.profile}, {report.seconds:.1f} s"


def prepare_lines() -> Iterator[str]:
    """Yield what lines for a shell need before them."""
    yield "Before you repeat a line below, also once more:"
    yield from (f"  {line}" for line in PREPARE)
    yield ""


def failure_lines(result: Result, url: str) -> Iterator[str]:
    """Yield the lines about one broken law."""
    law = result.law
    yield f"BROKEN  {law.id}  ({law.severity.value})"
    yield f"  law:       {law.title}"
    yield f"  from:      {law.clause}"
    yield f"  expected:  {law.expected}"
    yield f"  got:       {result.remark}"
    lines = [*repeating_lines(result.exchanges, url)]
    for place in shown_exchanges([bool(each.failing or each.hooks) for each in result.exchanges], _SHOWN_LAST):
        if isinstance(place, range):
            yield f"  … {len(place)} exchanges aren't shown"
        else:
            yield from exchange_lines(place + 1, result.exchanges[place], lines[place])
    yield ""


def shown_exchanges(telling: Sequence[bool], last: int) -> Iterator[int | range]:
    """Yield the indexes of the exchanges to show, and between them the ranges that are left out.

    telling: for each exchange whether it breaks the law, or a hook ran before it: then it's shown, as the first one and
        the last ones are.
    last: how many of the last ones are shown.
    """
    begin = 0
    for place, tells in enumerate(telling):
        if tells or place == 0 or place >= len(telling) - last:
            if begin < place:
                yield range(begin, place)
            yield place
            begin = place + 1


def failing_mark(*, failing: bool) -> str:
    """Return what stands behind the exchange that breaks a law."""
    return "  ← this one" if failing else ""


def hook_lines(hooks: Sequence[HookRun]) -> Iterator[str]:
    """Yield the lines about the hooks that ran before an exchange."""
    for each in hooks:
        yield f"  ({each.what})"
        if each.line:
            yield f"    {each.line}"


def exchange_lines(number: int, exchange: RecordedExchange, line: str) -> Iterator[str]:
    """Yield the lines about one exchange: the hooks before it, the bytes both ways, and the line that repeats it."""
    yield from hook_lines(exchange.hooks)
    yield f"  exchange {number}: {exchange.answer}{failing_mark(failing=exchange.failing)}"
    yield from (f"    > {line}" for line in shown_bytes(exchange.sent))
    yield from (f"    < {line}" for line in shown_bytes(exchange.received))
    if line:
        yield f"    {line}"


def shown_bytes(data: bytes) -> list[str]:
    """Return bytes as lines for people: what isn't printable ASCII is escaped, and a long text is cut.

    A line ends at CR LF, or at a lone LF, which is shown. A message that begins within a line has a line before it that
    says so.
    """
    text = data[:_SHOWN_BYTES].decode("latin-1")
    messages = [
        [line.encode("unicode_escape").decode() for line in _LINE_END.split(each)] for each in _NEXT.split(text)
    ]
    lines = [*messages[0], *(line for each in messages[1:] for line in (_NEXT_MESSAGE, *each))]
    more = len(data) - _SHOWN_BYTES
    return [*lines, f"… and {more} more bytes"] if more > 0 else lines
