"""`asap compare`: shows the reports of several runs of `asap conform` side by side."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from asap_adapters.cli.command import command, flag, option, repeated
from asap_adapters.cli.failures import UserError
from asap_adapters.cli.output import say
from asap_core.testing.laws.html_report import NamedRun, html_report
from asap_core.testing.laws.records import LawRecord, from_json
from asap_core.testing.laws.runner import LawResult


@frozen(kw_only=True)
class CompareOptions:
    """The options of `asap compare`."""

    reports: Sequence[Path] = repeated("FILE", Path, "a report that asap conform --json printed")
    html: Path | None = option("--html FILE", Path, "write the comparison as one page of HTML")
    all: bool = flag("--all", "also list the laws that come out the same in all reports")


def _compare(options: CompareOptions) -> int:
    runs = [NamedRun(path.stem, _read(path)) for path in options.reports]
    if len({run.name for run in runs}) < len(runs):
        raise UserError("expected files with different names, which are the names of the runs", usage=True)
    for line in _table(runs, everything=options.all):
        say(line)
    if options.html is not None:
        options.html.write_text(html_report(runs), "utf-8")
    return 0


def _read(path: Path) -> list[LawRecord]:
    try:
        return from_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _table(runs: Sequence[NamedRun], *, everything: bool) -> Iterator[str]:
    outcomes = [{each.id: each.outcome.value for each in run.records} for run in runs]
    laws = dict.fromkeys(each.id for run in runs for each in run.records)
    rows = {law: [of.get(law, "") for of in outcomes] for law in laws}
    shown = {law: row for law, row in rows.items() if everything or len(set(row)) > 1}
    counted = {each.value: [str([*of.values()].count(each.value)) for of in outcomes] for each in LawResult}
    first = max(map(len, [*shown, "skipped"]))
    widths = [max(len(run.name), len("skipped")) for run in runs]

    def line(name: str, cells: Sequence[str]) -> str:
        return "  ".join([name.ljust(first), *map(str.ljust, cells, widths)]).rstrip()

    yield line("", [run.name for run in runs])
    yield from (line(law, row) for law, row in shown.items())
    yield from (line(name, row) for name, row in counted.items())
    alike = len(rows) - len(shown)
    if alike:
        yield f"{alike} laws come out the same in all reports; --all lists them."


COMMANDS: Final = (
    command(
        "compare",
        CompareOptions,
        _compare,
        "show the reports of several runs of asap conform side by side",
        description=(
            "Show the reports of several runs of asap conform --json side by side, each named by its file: the laws "
            "that don't come out the same, and counts."
        ),
    ),
)
