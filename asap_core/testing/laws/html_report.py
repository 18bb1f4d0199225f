"""The report as one page of HTML: a grid of laws by group, each of which opens to its exchanges.

The reports of several runs stand side by side.

The page needs nothing else: no script, no font, no image. What agents sent stands in it as text only.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Final

from attrs import frozen

from asap_core.testing.laws.records import ExchangeRecord, LawRecord
from asap_core.testing.laws.runner import LawResult
from asap_core.testing.laws.shell_lines import PREPARE
from asap_core.testing.laws.text_report import failing_mark, shown_bytes, shown_exchanges

# Laws with more exchanges send the same request again and again; the first and the last ones show the breach.
_SHOWN_LAST: Final = 11
_MARKS: Final = {LawResult.PASSED: "✓", LawResult.FAILED: "✗", LawResult.SKIPPED: "○"}
# Shapes as well as colours tell the outcomes apart. Colours: 4.5:1 or more on their background (WCAG 2.2, 1.4.3).
_STYLE: Final = """
:root { color-scheme: light dark; --passed: light-dark(#dcf2e0, #163d22); --failed: light-dark(#ffd9d6, #6b1a17);
  --skipped: light-dark(#ececec, #333); --line: light-dark(#ccc, #555); --code: light-dark(#f6f6f6, #1b1b1b); }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.05rem; margin: 1.6rem 0 .5rem }
table { border-collapse: collapse } th, td { text-align: left; padding: .15rem 1.2rem .15rem 0 }
td.number { text-align: right } .laws { display: grid; gap: .35rem;
  grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)) }
.several .laws { grid-template-columns: 1fr; max-width: 46rem }
.several h2 { max-width: 45.2rem; display: flex; justify-content: space-between }
details { border-radius: .3rem; border: 1px solid var(--line); overflow: hidden } details[open] { grid-column: 1 / -1 }
summary { padding: .3rem .6rem; cursor: pointer; display: flex; gap: .6rem; justify-content: space-between }
summary:focus-visible { outline: 2px solid Highlight }
.marks { display: flex; gap: .3rem } .mark { min-width: 1.5rem; text-align: center; border-radius: .2rem }
.passed { background: var(--passed) } .failed { background: var(--failed) } .skipped { background: var(--skipped) }
.several details { background: none } .body { padding: .2rem .8rem .8rem; background: Canvas }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .4rem 0 } dd { margin: 0 }
pre { background: var(--code); padding: .5rem; margin: .3rem 0; font-size: 12.5px; white-space: pre-wrap;
  overflow-wrap: anywhere }
h3, h4 { font-size: .95rem; margin: .7rem 0 .2rem } .sent { border-left: 3px solid light-dark(#2563c9, #7aa7f0) }
.received { border-left: 3px solid light-dark(#8a5a00, #e0b050) }
#differing:checked ~ .alike, #differing:checked ~ .laws > .alike { display: none }
@media print { details { break-inside: avoid } }
"""


@frozen
class NamedRun:
    """One run on the page. `name`: of the agent, or of the file that its report was in."""

    name: str
    records: Sequence[LawRecord]


def html_report(runs: Sequence[NamedRun], *, note: str = "") -> str:
    """Return the page. `note`: a line below its title, such as when and how the laws were run."""
    return "\n".join(_page(runs, note)) + "\n"


def _page(runs: Sequence[NamedRun], note: str) -> Iterator[str]:
    title = f"Conformance: {', '.join(run.name for run in runs)}"
    yield '<!doctype html><html lang="en"><meta charset="utf-8">'
    # No script runs and nothing is loaded, whatever an agent has sent.
    yield "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    yield '<meta name="viewport" content="width=device-width">'
    yield f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    yield f'<body class="{"several" if len(runs) > 1 else "one"}"><h1>{escape(title)}</h1><p>{escape(note)}</p>'
    yield from _counts(runs)
    if len(runs) > 1:
        yield "<input type=checkbox id=differing> <label for=differing>Only laws that come out differently</label>"
    found = [{record.id: record for record in run.records} for run in runs]
    laws = {record.id: record for run in runs for record in run.records}
    columns = "".join(f"<span class=mark>{number}</span>" for number in _numbers(runs))
    for group in dict.fromkeys(law.group for law in laws.values()):
        of_group = {
            law.id: {run.name: of.get(law.id) for run, of in zip(runs, found, strict=True)}
            for law in laws.values()
            if law.group == group
        }
        alike = " class=alike" if all(map(_is_alike, of_group.values())) else ""
        yield f"<h2{alike}>{escape(group)}<span class=marks>{columns}</span></h2><div class=laws>"
        for law_id, of_law in of_group.items():
            yield from _law(laws[law_id], of_law)
        yield "</div>"


def _is_alike(of: Mapping[str, LawRecord | None]) -> bool:
    """Say whether a law comes out the same in all of several runs."""
    return len(of) > 1 and len({each and each.outcome for each in of.values()}) == 1


def _counts(runs: Sequence[NamedRun]) -> Iterator[str]:
    yield f"<table><tr><th>{''.join(f'<th>{each.value}' for each in LawResult)}"
    for number, run in zip(_numbers(runs), runs, strict=True):
        counts = Counter(record.outcome for record in run.records)
        cells = "".join(f'<td class="number {each.value}">{counts[each]}' for each in LawResult)
        yield f"<tr><th>{number} {escape(run.name)}{cells}"
    yield "</table>"


def _numbers(runs: Sequence[NamedRun]) -> Sequence[str]:
    """Return what stands above the column of each run; nothing if there's one run only."""
    return [str(number) for number, _ in enumerate(runs, 1)] if len(runs) > 1 else [""]


def _law(law: LawRecord, of: Mapping[str, LawRecord | None]) -> Iterator[str]:
    found = [each for each in of.values() if each is not None]
    worst = min((each.outcome for each in found), key=[LawResult.FAILED, LawResult.SKIPPED, LawResult.PASSED].index)
    marks = "".join(_mark(name, each) for name, each in of.items())
    alike = " alike" if _is_alike(of) else ""
    yield f'<details class="{worst.value}{alike}"><summary title="{escape(law.title)}"><code>{_name(law)}</code>'
    yield f"<span class=marks>{marks}</span></summary><div class=body>"
    yield f"<p><code>{escape(law.id)}</code>: {escape(law.title)}</p>"
    facts = {"from": law.clause, "severity": law.severity, "expected": law.expected}
    yield f"<dl>{''.join(f'<dt>{name}<dd>{escape(text)}' for name, text in facts.items())}</dl>"
    for name, record in of.items():
        if record is not None:
            yield from _outcome(name, record, named=len(of) > 1)
    yield "</div></details>"


def _name(law: LawRecord) -> str:
    """Return the law's name in its group, which may be broken at each `_`."""
    return escape(law.id.partition(".")[2]).replace("_", "_<wbr>")


def _mark(name: str, record: LawRecord | None) -> str:
    if record is None:
        return f'<span class=mark title="{escape(name)}: not in this report"></span>'
    text = f"{name}: {record.outcome.value}"
    return f'<span class="mark {record.outcome.value}" title="{escape(text)}">{_MARKS[record.outcome]}</span>'


def _outcome(name: str, record: LawRecord, *, named: bool) -> Iterator[str]:
    got = f": {record.remark}" if record.remark else ""
    yield f"<h3>{escape(f'{name}, ' if named else '')}{record.outcome.value}{escape(got)} ({record.seconds:.2f} s)</h3>"
    if any(each.curl for each in record.exchanges):
        yield f"<p>Before you repeat a line below, also once more:</p><pre>{escape(chr(10).join(PREPARE))}</pre>"
    for place in shown_exchanges([bool(each.failing or each.hooks) for each in record.exchanges], _SHOWN_LAST):
        if isinstance(place, range):
            yield f"<p>{len(place)} exchanges are in the JSON report only.</p>"
        else:
            yield from _exchange(place + 1, record.exchanges[place])


def _exchange(number: int, exchange: ExchangeRecord) -> Iterator[str]:
    for hook in exchange.hooks:
        yield f"<p>({escape(hook.what)})</p>"
        if hook.line:
            yield f"<pre>{escape(hook.line)}</pre>"
    yield f"<h4>Exchange {number}: {escape(exchange.answer)}{failing_mark(failing=exchange.failing)}</h4>"
    for side, data in exchange.sides.items():
        yield f"<pre class={side}>{escape(chr(10).join(shown_bytes(data)))}</pre>"
    if exchange.curl:
        yield f"<pre>{escape(exchange.curl)}</pre>"
