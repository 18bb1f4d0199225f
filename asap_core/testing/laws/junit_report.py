"""The report as JUnit XML, which CI services show: a suite for each group, a test for each law."""

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from xml.etree import ElementTree as ET

from asap_core.testing.laws.records import LawRecord
from asap_core.testing.laws.runner import LawResult
from asap_core.testing.laws.shell_lines import PREPARE
from asap_core.testing.laws.text_report import failing_mark, hook_lines, shown_bytes


def junit_report(records: Sequence[LawRecord], expected: Collection[str] = ()) -> str:
    """Return the XML document.

    expected: ids of laws that are known to fail. If they do, they count as skipped.
    """
    root = ET.Element("testsuites", name="asap conform")
    ordered = sorted(records, key=lambda each: each.group)
    for group, found in groupby(ordered, key=lambda each: each.group):
        suite = ET.SubElement(root, "testsuite", name=group)
        for record in found:
            _add(suite, record, known=record.id in expected)
        _count(suite, [suite])
    _count(root, list(root))
    ET.indent(root)
    text: str = ET.tostring(root, "unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _add(suite: ET.Element, record: LawRecord, *, known: bool) -> None:
    case = ET.SubElement(suite, "testcase", classname=record.group, name=record.id, time=f"{record.seconds:.3f}")
    match record.outcome:
        case LawResult.PASSED:
            return
        case LawResult.FAILED if known:
            ET.SubElement(case, "skipped", message=_printable(f"it is expected to fail: {record.remark}"))
        case LawResult.FAILED:
            failure = ET.SubElement(case, "failure", type=record.severity, message=_printable(record.remark))
            failure.text = "\n".join(_details(record))
        case LawResult.SKIPPED:
            ET.SubElement(case, "skipped", message=_printable(record.remark))


def _count(element: ET.Element, suites: Sequence[ET.Element]) -> None:
    cases = [case for suite in suites for case in suite.iter("testcase")]
    element.set("tests", str(len(cases)))
    element.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    element.set("errors", "0")
    element.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    element.set("time", f"{sum(float(case.get('time', '0')) for case in cases):.3f}")


def _details(record: LawRecord) -> Iterator[str]:
    yield f"law:      {record.title}"
    yield f"from:     {record.clause}"
    yield f"expected: {record.expected}"
    yield f"got:      {_printable(record.remark)}"
    yield from ("", "Before you repeat a line below, also once more:", *PREPARE)
    for number, exchange in enumerate(record.exchanges, 1):
        yield ""
        yield from (_printable(line.strip()) for line in hook_lines(exchange.hooks))
        yield _printable(f"exchange {number}: {exchange.answer}{failing_mark(failing=exchange.failing)}")
        for mark, data in zip("><", exchange.sides.values(), strict=True):
            yield from (f"{mark} {line}" for line in shown_bytes(data))
        if exchange.curl:
            yield _printable(exchange.curl)


def _printable(text: str) -> str:
    """Return text without characters that XML can't hold (XML 1.0 §2.2), which an agent may have sent."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
