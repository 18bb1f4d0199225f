"""A report's results as plain records: what `asap conform --json` prints, and what other reports are made of."""

import json
from collections.abc import Sequence
from itertools import repeat
from typing import Final

import attrs
import cattrs
from attrs import frozen

from asap_core.testing.laws.runner import HookRun, LawResult, RecordedExchange, Report, Result
from asap_core.testing.laws.shell_lines import repeating_lines
from asap_core.wire.json_values import JsonObject

_CONVERTER: Final = cattrs.Converter(forbid_extra_keys=False)


@frozen(kw_only=True)
class ExchangeRecord:
    """One exchange. The bytes are Latin-1 text, one character for each.

    answer: what came back, in words.
    curl: a shell line that repeats the exchange (see `PREPARE`); empty if no such line can, or the law isn't broken.
    failing: whether this is the exchange that breaks the law.
    hooks: which ran since the exchange before it.
    """

    sent: str
    received: str
    answer: str = ""
    curl: str = ""
    failing: bool = False
    hooks: tuple[HookRun, ...] = ()

    @property
    def sides(self) -> dict[str, bytes]:
        """The bytes of both sides, by `sent` and `received`."""
        return {"sent": self.sent.encode("latin-1", "replace"), "received": self.received.encode("latin-1", "replace")}


@frozen(kw_only=True)
class LawRecord:
    """What came out of one law."""

    id: str
    outcome: LawResult
    severity: str
    clause: str
    title: str
    expected: str
    remark: str = ""
    seconds: float = 0.0
    exchanges: tuple[ExchangeRecord, ...] = ()

    @property
    def group(self) -> str:
        """The group of the law: the first part of its id."""
        return self.id.partition(".")[0]


def records(report: Report) -> list[LawRecord]:
    """Return the records of a report, in its order."""
    return [_record(each, report.url) for each in report.results]


def _record(result: Result, url: str) -> LawRecord:
    law = result.law
    failed = result.outcome is LawResult.FAILED
    lines = repeating_lines(result.exchanges, url) if failed else repeat("", len(result.exchanges))
    return LawRecord(
        id=law.id,
        outcome=result.outcome,
        severity=law.severity.value,
        clause=law.clause,
        title=law.title,
        expected=law.expected,
        remark=result.remark,
        seconds=round(result.seconds, 3),
        exchanges=tuple(map(_exchange, result.exchanges, lines)),
    )


def _exchange(exchange: RecordedExchange, line: str) -> ExchangeRecord:
    return ExchangeRecord(
        sent=exchange.sent.decode("latin-1"),
        received=exchange.received.decode("latin-1"),
        answer=exchange.answer,
        curl=line,
        failing=exchange.failing,
        hooks=exchange.hooks,
    )


def to_json(found: Sequence[LawRecord]) -> list[JsonObject]:
    """Return records as JSON."""
    return [
        attrs.asdict(each, value_serializer=lambda _, __, value: value.value if isinstance(value, LawResult) else value)
        for each in found
    ]


def from_json(text: str | bytes) -> list[LawRecord]:
    """Read what `asap conform --json` printed. Raises ValueError if it's something else."""
    try:
        found = json.loads(text)
        if isinstance(found, list):
            return _CONVERTER.structure(found, list[LawRecord])
    except (ValueError, RecursionError, cattrs.BaseValidationError):
        pass
    raise ValueError("expected a report of asap conform --json")
