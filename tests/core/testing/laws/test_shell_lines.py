"""Lines for a shell say what was sent: a shell that prints its words gives them back, with another run and date."""

import gzip
import subprocess
import zlib

import pytest

from asap_core.testing.laws.http_messages import HttpRequest
from asap_core.testing.laws.runner import RecordedExchange
from asap_core.testing.laws.shell_lines import Dates, curl_line, repeating_lines, telnet_line

URL = "http://localhost:1/base"
# 2026-01-01T00:00:00Z.
NEW_YEAR = 1_767_225_600.0


def post(body: bytes, *headers: tuple[str, str]) -> str:
    return curl_line(HttpRequest("POST", "/asap", (("Host", "localhost:1"), *headers), body), URL, Dates(NEW_YEAR))


def printed(line: str) -> str:
    """What the shell makes of a line whose commands print their arguments instead of sending anything."""
    fakes = 'curl() { for word; do echo "$word"; done; cat; }; at() { echo "<$1>"; }; RUN="<run>"; TOKEN=t'
    return subprocess.run(["sh", "-c", f"{fakes}\n{line}"], input="", capture_output=True, text=True, check=True).stdout


def test_a_request_is_one_line() -> None:
    assert (
        post(b"{}", ("A", "b")) == "curl -i --path-as-is -X POST -H 'A: b' --data-binary '{}' http://localhost:1/asap"
    )


def test_runs_dates_and_tokens_are_variables() -> None:
    body = b"""{"id": "conform-a5yOjcFM-7", "timestamp": "2025-12-31T23:59:50.000001Z", "text": "it's"}"""
    shown = printed(post(body, ("Authorization", "Bearer $TOKEN")))
    assert """{"id": "conform-<run>-7", "timestamp": "<-10>", "text": "it's"}\n""" in shown
    assert "Authorization: Bearer t\n" in shown


def test_a_date_that_does_not_exist_stays() -> None:
    assert "2025-12-31T23:59:60.000000Z" in printed(post(b"2025-12-31T23:59:60.000000Z"))


@pytest.mark.parametrize("body", [b"\xff'\n", b"a\\b\x00c", b"%s\\n", b"a" * 5_000 + b"b"], ids=repr)
def test_any_bytes_are_printed(body: bytes) -> None:
    line = post(body)
    source = line.partition(" | curl ")[0]
    found = subprocess.run(["sh", "-c", source], capture_output=True, check=True).stdout if "| curl" in line else body
    assert found == body
    assert len(line) < 300


def test_a_compressed_body_is_compressed_again() -> None:
    gzipped = ("Content-Encoding", "gzip")
    line = post(gzip.compress(b"conform-a5yOjcFM-7"), gzipped)
    assert line.startswith("printf %b conform-$RUN-7 | gzip -c | curl ")
    assert post(gzip.compress(b"conform-a5yOjcFM-7"), ("Content-Encoding", "x-GZIP")).startswith(
        line.partition("curl")[0]
    )


@pytest.mark.parametrize(
    "body",
    [gzip.compress(b"text")[:-3], gzip.compress(b"a") + gzip.compress(b"b"), zlib.compress(b"text")],
    ids=["cut", "two members", "deflate"],
)
def test_a_line_says_that_it_can_not_be_repeated_later(body: bytes) -> None:
    line = post(body, ("Content-Encoding", "gzip"))
    assert "gzip -c" not in line
    assert line.endswith("# can't be repeated later: id and date are in the compressed bytes")
    assert "repeated later" not in post(body)


def test_a_body_that_is_too_long_is_left_out() -> None:
    assert post(bytes(range(32)) * 1_000).endswith(
        "--data-binary @body.bin http://localhost:1/asap  # 32000 bytes, in the JSON report"
    )
    assert telnet_line((bytes(range(32)) * 1_000,), URL) is None
    assert telnet_line((b"ab" * 30_000,), URL) is None


def test_heads_are_as_they_were() -> None:
    empty = HttpRequest("POST", "/a b", (("Host", "other"), ("X", ""), ("Content-Length", "0")))
    assert curl_line(empty, URL) == (
        "curl -i --path-as-is -X POST -H 'Host: other' -H 'X;' --data-binary '' 'http://localhost:1/a b'"
    )
    assert curl_line(HttpRequest("HEAD", "/"), URL) == "curl -i --path-as-is -I http://localhost:1/"


def test_bytes_and_pauses_are_sent_by_telnet() -> None:
    line = telnet_line((b"GET / HTTP/1.1\r\n", 0.5, b"\r\n"), URL)
    assert line == (
        r"{ printf %b 'GET / HTTP/1.1\0015\0012'; sleep 0.5; printf %b '\0015\0012'; sleep 2; } "
        "| curl -sN -m 5 telnet://localhost:1"
    )
    assert "-m 44 telnet" in (telnet_line((b"", 0.5), URL, seconds=39.9) or "")  # the peer may leave it open
    assert telnet_line((b"",), "https://localhost") is None


def test_a_line_for_each_exchange() -> None:
    request = HttpRequest("GET", "/")
    both = [RecordedExchange(b"", b"", "", request), RecordedExchange(b"", b"", "", pieces=(b"x",))]
    curl, telnet = repeating_lines(both, URL)
    assert (curl.startswith("curl -i"), telnet.startswith("{ printf %b x")) == (True, True)
    assert [*repeating_lines(both, "https://localhost")][1] == ""


def test_a_date_that_occurs_again_is_the_same_text() -> None:
    dated = HttpRequest("GET", "/", body=b"2026-01-01T00:00:25.000001Z")
    other = HttpRequest("GET", "/", body=b"2026-01-01T00:00:41.000001Z")
    exchanges = [
        RecordedExchange(b"", b"", "", request, at=at)
        for request, at in ((dated, NEW_YEAR), (dated, NEW_YEAR + 40), (other, NEW_YEAR + 40))
    ]
    assert [line.partition("$(")[2].partition(")")[0] for line in repeating_lines(exchanges, URL)] == [
        "at 25", "at 25", "at 1",
    ]  # fmt: skip
