"""Reports in JSON, JUnit XML and HTML: they hold all results, and nothing that an agent sent acts in them."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest
from attrs import evolve
from hypothesis import given, strategies as st

from asap_core.testing.laws.catalogue import LAWS
from asap_core.testing.laws.html_report import NamedRun, html_report
from asap_core.testing.laws.http_messages import HttpRequest
from asap_core.testing.laws.junit_report import junit_report
from asap_core.testing.laws.records import from_json, records, to_json
from asap_core.testing.laws.runner import HookRun, LawResult, RecordedExchange, Report, Result
from asap_core.testing.laws.text_report import failure_lines, shown_bytes
from asap_core.testing.laws.verdicts import Breach, Kept, NotTried, Verdict

HOSTILE = "<script>alert(1)</script>\"'&\x00\x1b[2J\r\n]]>\u202e"


def report(got: str = "it was accepted", received: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> Report:
    request = HttpRequest("POST", "/asap", (("content-type", "application/json"),), b"{}")
    exchange = RecordedExchange(request.to_bytes(), received, "HTTP 200, a JSON-RPC result", request)
    verdicts: list[Verdict] = [Kept(), Breach(got), NotTried("it needs a clock")]
    results = [Result(law, verdict, (exchange,), 0.25) for law, verdict in zip(LAWS, verdicts, strict=False)]
    return Report("http://127.0.0.1:1", "urn:asap:agent:x", "strict", tuple(results))


class Elements(HTMLParser):
    """The names of the elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.text = ""
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_records_survive_json() -> None:
    found = records(report())
    assert [each.outcome for each in found] == [LawResult.PASSED, LawResult.FAILED, LawResult.SKIPPED]
    assert from_json(json.dumps(to_json(found))) == found
    assert found[1].exchanges[0].curl.startswith("curl -i")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"id": 1}]', "[" * 100_000, b"\xff", '[{"id":"a.b"}]'])
def test_what_isnt_a_report_is_one_error(text) -> None:
    with pytest.raises(ValueError, match="expected a report of asap conform --json"):
        from_json(text)


def test_a_file_may_hold_characters_that_no_agent_sent() -> None:
    [first, *_] = to_json(records(report()))
    first["exchanges"] = [{"sent": "\u20ac", "received": "\ud800"}]
    read = from_json(json.dumps([first]))
    assert "<pre class=sent>?</pre>" in html_report([NamedRun("a", read)])


def test_junit_counts_each_outcome() -> None:
    found = records(report())
    root = ET.fromstring(junit_report(found))
    assert {name: root.get(name) for name in ("tests", "failures", "skipped", "errors", "time")} == {
        "tests": "3", "failures": "1", "skipped": "1", "errors": "0", "time": "0.750",
    }  # fmt: skip
    [failure] = root.iter("failure")
    assert failure.get("message") == "it was accepted"
    assert "> POST /asap HTTP/1.1" in (failure.text or "")


def test_a_law_that_is_expected_to_fail_is_no_failure_in_junit() -> None:
    found = records(report())
    root = ET.fromstring(junit_report(found, expected=[found[1].id]))
    assert (root.get("failures"), root.get("skipped")) == ("0", "2")


@given(st.text(), st.binary())
def test_junit_is_xml_whatever_an_agent_sent(got: str, received: bytes) -> None:
    root = ET.fromstring(junit_report(records(report(got, received))))
    assert root.get("tests") == "3"


@given(st.one_of(st.just(HOSTILE), st.text()), st.one_of(st.just(HOSTILE.encode()), st.binary()))
def test_what_an_agent_sent_is_text_in_the_page(got: str, received: bytes) -> None:
    harmless = Elements(html_report([NamedRun("a", records(report()))]))
    page = html_report([NamedRun("a", records(report(got, received)))])
    shown = Elements(page)
    assert shown.names == harmless.names
    assert shown.attributes == harmless.attributes
    assert "script" not in shown.names


def test_the_page_has_each_law_once_and_needs_nothing_else() -> None:
    page = html_report([NamedRun("urn:asap:agent:x", records(report()))])
    shown = Elements(page)
    assert shown.names.count("details") == 3
    assert all(shown.text.count(law.id) == 1 for law in LAWS[:3])
    assert not shown.attributes & {"src", "href", "onclick"}
    assert "default-src 'none'" in page


def test_laws_that_come_out_the_same_can_be_hidden() -> None:
    first, [kept, failed, skipped] = records(report()), records(report())
    second = [kept, evolve(failed, outcome=LawResult.PASSED), evolve(skipped, id="other.law")]
    page = html_report([NamedRun("ours", first), NamedRun("theirs", second)])
    assert Elements(page).names.count("input") == 1
    alike = re.findall(r'<details class="\w+ alike"><summary[^>]*><code>(.*?)</code>', page)
    assert alike == [kept.id.partition(".")[2].replace("_", "_<wbr>")]
    assert "<h2 class=alike>" not in page  # the group has other laws
    one_group = html_report([NamedRun("ours", [kept]), NamedRun("theirs", [kept])])
    assert one_group.count("<h2 class=alike>") == 1
    assert not re.search("<input|<[^>]* alike", html_report([NamedRun("ours", first)]))


def test_several_runs_stand_side_by_side() -> None:
    first, second = records(report()), records(report("it was refused late"))[:2]
    page = html_report([NamedRun("ours", first), NamedRun("theirs", second)])
    assert page.count("<details") == 3
    assert len(re.findall(r'<span class="?mark\b', page)) == 2 * 3 + 2 * page.count("<h2>")
    assert "theirs: not in this report" in page
    assert "theirs, failed: it was refused late" in Elements(page).text


def test_the_exchange_that_breaks_a_law_is_shown_and_marked() -> None:
    request = HttpRequest("GET", "/")
    exchanges = tuple(
        RecordedExchange(b"", b"", f"answer {number}", request, failing=number == 30) for number in range(1, 101)
    )
    result = Result(LAWS[0], Breach("a remark"), exchanges)
    made = Report("http://127.0.0.1:1", "urn:asap:agent:x", "strict", (result,))
    lines = [*failure_lines(result, made.url)]
    assert [line for line in lines if "exchange" in line] == [
        "  exchange 1: answer 1",
        "  … 28 exchanges aren't shown",
        "  exchange 30: answer 30  ← this one",
        "  … 65 exchanges aren't shown",
        *(f"  exchange {number}: answer {number}" for number in range(96, 101)),
    ]
    page = html_report([NamedRun("a", records(made))])
    assert page.count("← this one") == 1
    assert "<h4>Exchange 30: answer 30  ← this one</h4>" in page
    assert "exchange 30: answer 30  ← this one" in junit_report(records(made))


def test_hooks_stand_before_the_exchange_that_they_precede() -> None:
    request = HttpRequest("GET", "/")
    hooks = (HookRun("clock: step -1000", "move 'my <clock>' step -1000"), HookRun("the agent is started again"))
    exchanges = [RecordedExchange(b"", b"", f"answer {number}", request) for number in range(1, 21)]
    exchanges[9] = evolve(exchanges[9], hooks=hooks)  # would be left out
    result = Result(LAWS[0], Breach("a remark"), tuple(exchanges))
    made = Report("http://127.0.0.1:1", "urn:asap:agent:x", "strict", (result,))
    shown = [
        "  (clock: step -1000)",
        "    move 'my <clock>' step -1000",
        "  (the agent is started again)",
        "  exchange 10: answer 10",
    ]
    text = "\n".join(failure_lines(result, made.url))
    assert "\n".join(shown) in text
    found = records(made)
    junit = ET.fromstring(junit_report(found).partition("\n")[2]).find(".//failure")
    assert junit is not None
    assert "\n".join(each.strip() for each in shown) in (junit.text or "")
    assert "(clock: step -1000)move 'my <clock>' step -1000(the agent is started again)Exchange 10" in Elements(
        html_report([NamedRun("a", found)])
    ).text.replace("\n", "")
    assert found[0].exchanges[9].hooks == hooks
    assert from_json(json.dumps(to_json(found))) == found


def test_a_line_for_a_long_body_takes_little_memory() -> None:
    # A limit, since the most that a process has used counts from the one that started it.
    code = (
        "import resource; from asap_core.testing.laws import shell_lines; text = 'xyz' + 'a' * 20_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (600_000_000, 600_000_000))\n"
        "assert len([*shell_lines._pieces(text, shell_lines.Dates())]) == 3"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_line_ends_other_than_cr_lf_are_shown() -> None:
    assert shown_bytes(b"a\r\nb\nc\rd\r\n\r\n\n\ne") == ["a", "b\\n", "c\\rd", "", "\\n", "\\n", "e"]
    assert shown_bytes(b"\na") == ["\\n", "a"]


def test_a_message_that_begins_within_a_line_is_told() -> None:
    first, second = "HTTP/1.1 200 OK\r\n\r\n{}", "HTTP/1.1 404 Not Found\r\n\r\n"
    shown = ["HTTP/1.1 200 OK", "", "{}", "(next message)", "HTTP/1.1 404 Not Found", "", ""]
    assert shown_bytes((first + second).encode()) == shown
    assert shown_bytes((second + first).encode()) == [*shown[4:6], *shown[:3]]
    assert shown_bytes(b'{"a": 1}POST /asap HTTP/1.1\r\n')[:3] == ['{"a": 1}', "(next message)", "POST /asap HTTP/1.1"]


@pytest.mark.parametrize(("count", "numbers"), [(6, [1, 2, 3, 4, 5, 6]), (8, [1, 4, 5, 6, 7, 8])])
def test_the_first_exchange_and_the_last_ones_are_shown(count: int, numbers: list[int]) -> None:
    [_, failed, _] = report().results
    lines = [*failure_lines(evolve(failed, exchanges=failed.exchanges * count), "http://localhost")]
    assert [int(line.split()[1].strip(":")) for line in lines if line.startswith("  exchange ")] == numbers
    assert ("  … 2 exchanges aren't shown" in lines) == (count == 8)


def test_the_page_leaves_out_exchanges_between_the_first_and_the_last_ones() -> None:
    results = tuple(evolve(each, exchanges=each.exchanges * 20) for each in report().results[:1])
    page = html_report([NamedRun("a", records(evolve(report(), results=results)))])
    assert re.findall(r"<h4>Exchange (\d+)", page) == ["1", *map(str, range(10, 21))]
    assert "<p>8 exchanges are in the JSON report only.</p>" in page


def test_the_name_of_a_run_is_text_in_the_page() -> None:
    found = records(report())
    harmless = Elements(html_report([NamedRun("a", found), NamedRun("b", found)]))
    shown = Elements(html_report([NamedRun(HOSTILE, found), NamedRun("b", found)], note=HOSTILE))
    assert (shown.names, shown.attributes) == (harmless.names, harmless.attributes)
