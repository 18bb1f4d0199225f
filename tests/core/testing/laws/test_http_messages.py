"""Answers as bytes: where each ends."""

import pytest
from hypothesis import given, strategies as st

from asap_core.testing.laws.http_messages import Answer, HttpRequest, read_answers

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\n{\r\n1\r\n}\r\n0\r\n\r\n"
TRAILER = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nA: b\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def test_a_request_is_written_as_it_is() -> None:
    assert (
        HttpRequest("GET", "/ü", (("A", "ÿ"), ("a", ""))).to_bytes() == b"GET /\xfc HTTP/1.1\r\nA: \xff\r\na: \r\n\r\n"
    )


@pytest.mark.parametrize("data", [LENGTH, CHUNKED, TRAILER, CONTINUE + LENGTH])
def test_an_answer_ends_where_its_head_says(data) -> None:
    [first, second], rest = read_answers(data + LENGTH + b"HT", closed=False)
    assert (first.status, first.json, second.body, rest) == (200, {}, b"{}", b"HT")


@pytest.mark.parametrize("data", [LENGTH, CHUNKED, TRAILER])
def test_an_answer_that_is_cut_is_none(data) -> None:
    for end in range(len(data)):
        assert read_answers(data[:end], closed=False) == ([], data[:end])


@pytest.mark.parametrize("data", [LENGTH, CHUNKED])
def test_an_answer_that_is_cut_by_the_end_of_the_connection_has_a_problem(data) -> None:
    [answer], rest = read_answers(data[:-1], closed=True)
    assert (answer.status, answer.problem, rest) == (200, "the connection ended within the body", b"")
    assert str(answer).startswith("no whole answer, HTTP 200: ")


def test_without_a_length_it_ends_with_the_connection() -> None:
    data = b"HTTP/1.1 200 OK\r\n\r\nabc"
    assert read_answers(data, closed=False) == ([], data)
    [answer], rest = read_answers(data, closed=True)
    assert (answer.body, rest) == (b"abc", b"")


def test_some_answers_have_no_body() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
    assert [each.body for each in read_answers(head, ("HEAD",), closed=False)[0]] == [b""]
    assert read_answers(b"HTTP/1.1 304 Not Modified\r\n\r\n", closed=False)[0][0].status == 304


def test_what_is_not_http_is_an_answer_without_a_status() -> None:
    [answer], _ = read_answers(b"SSH-2.0\r\n\r\n", closed=False)
    assert (answer.status, str(answer)) == (None, "no whole answer: what came isn't HTTP/1.1")


@given(st.binary(), st.booleans())
def test_any_bytes_are_read(data, closed) -> None:
    answers, rest = read_answers(data, closed=closed)
    assert b"".join(each.raw for each in answers) + rest == data or data.startswith(b"HTTP/1.")


class TestAnswers:
    """The parts of an answer, whatever is missing."""

    @pytest.mark.parametrize("body", [b"", b"[1", b"[]", b"1", b'{"error": 1, "result": []}', b"[" * 100_000])
    def test_what_is_missing_is_none_or_empty(self, body) -> None:
        answer = Answer(200, body=body)
        assert (answer.result, answer.error, answer.code, answer.taxonomy, answer.envelope) == (None,) * 5
        assert (answer.data, answer.items, answer.is_success) == ({}, [], False)

    def test_headers_of_several_lines_are_joined(self) -> None:
        answer = Answer(200, (("a", "1"), ("b", "2"), ("a", "3")))
        assert (answer.header("a"), answer.header("c")) == ("1, 3", None)

    def test_it_is_described_for_people(self) -> None:
        error = b'{"error": {"code": -32003, "data": {"code": "asap:protocol/invalid_nonce"}}}'
        assert str(Answer(200, body=error)) == "HTTP 200, JSON-RPC error -32003 asap:protocol/invalid_nonce"
        assert str(Answer(200, body=b'{"result": {"envelope": {}}}')) == "HTTP 200, a JSON-RPC result"
        assert (str(Answer(200, body=b"[]")), str(Answer(404))) == (
            "HTTP 200, a body of 2 bytes",
            "HTTP 404, a body of 0 bytes",
        )

    @pytest.mark.parametrize(
        ("body", "why"),
        [
            (b'{"a": "b', "it ends inside a string at byte 8, its Content-Length"),
            (
                '{"ü": "b'.encode(),
                "it ends inside a string at byte 9, its Content-Length (which counts bytes, not characters)",
            ),
            (
                b'{"\xc3',
                "it ends inside a character at byte 3, its Content-Length (which counts bytes, not characters)",
            ),
            (b'{"a": ', "it ends inside a value at byte 6, its Content-Length"),
            (b'{"a": 1', "it ends inside a value at byte 7, its Content-Length"),
            ('{"ü": 1} x'.encode(), "it's wrong at byte 10"),
            (b"<html>", "it's wrong at byte 0"),
            (b'{"\xff": 1}', "no UTF-8 at byte 2"),
            (b"[" * 100_000, "a number, or the depth, is beyond all bounds"),
        ],
    )
    def test_it_says_where_a_body_is_no_json(self, body: bytes, why: str) -> None:
        shown = str(Answer(200, (("content-length", str(len(body))),), body=body))
        assert shown == f"HTTP 200, a body of {len(body)} bytes that isn't JSON: {why}"
        without = str(Answer(200, body=body))
        assert without == shown.partition(", its Content-Length")[0]
