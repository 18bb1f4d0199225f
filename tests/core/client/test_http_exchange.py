"""One request over a connection of its own: what is sent, and any bytes that come back, however they're split."""

import gzip

import pytest
from hypothesis import given, strategies as st

from asap_core.client.body_reader import BodyReader
from asap_core.client.http_exchange import HttpExchange
from asap_core.client.programs import Expired, Fetch, Received, Route, Stage, Unanswered

NO_HTTP = Unanswered(Stage.SENT, "what came back isn't an HTTP answer")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
URL = "https://agent.example/a?b=c"
ADDRESS = "192.0.2.1"


def exchange(*, url=URL, method="GET", headers=(), body=None, limit=1_000, **options):
    reader = BodyReader(limit, **options)
    route = Route("agent.example", 443, "https")
    http = HttpExchange(Fetch(method, url, headers, body, 10.0, 10.0, route, reader))
    return http, reader, http.begin(ADDRESS)


def outcome_of(http: HttpExchange, *chunks: bytes):
    for chunk in (*chunks, b""):
        outcome = http.receive(chunk)
        if outcome is not None:
            return outcome
    raise AssertionError("a closed connection always has an outcome")


def test_a_request_is_one_in_http_1_0_that_names_its_host_and_length() -> None:
    *_, sent = exchange(method="POST", headers=(("accept", "application/json"),), body=b"{}")
    assert sent == (
        b"POST /a?b=c HTTP/1.0\r\nhost: agent.example\r\ncontent-length: 2\r\nconnection: close\r\n"
        b"accept: application/json\r\n\r\n{}"
    )


def test_it_says_how_far_it_got() -> None:
    http = HttpExchange(Fetch("GET", URL, (), None, 10.0, 10.0, Route("agent.example", 443, "https"), BodyReader(9)))
    stages = [http.stage]
    http.begin()
    stages.append(http.stage)
    assert http.receive(HEAD + b"\r\n") is None
    assert [*stages, http.stage] == [Stage.CONNECTING, Stage.SENT, Stage.ANSWERED]


def test_a_request_keeps_the_host_it_is_given_and_has_a_path() -> None:
    *_, sent = exchange(url="http://[fe80::1%25en0]", headers=(("host", "[fe80::1]"),))
    assert sent == b"GET / HTTP/1.0\r\nhost: [fe80::1]\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Content-Length: 2\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\n\r\n{}and more",
        HEAD + b"\r\n{}",
        HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + HEAD + b"Content-Length: 2\r\n\r\n{}",
    ],
)
def test_an_answer_is_read_however_it_is_split(answer: bytes, size: int) -> None:
    http, reader, _ = exchange()
    chunks = [answer[at : at + size] for at in range(0, len(answer), size)]
    assert outcome_of(http, *chunks) == Received(ADDRESS)
    assert (reader.status, reader.body, reader.failed, http.stage) == (200, b"{}", None, Stage.ANSWERED)
    assert reader.headers[0] == ("content-type", "application/json")


def test_an_answer_with_a_length_needs_no_end_of_the_connection() -> None:
    http, reader, _ = exchange()
    assert http.receive(HEAD + b"Content-Length: 2\r\n\r\n{") is None
    assert http.receive(b"}") == Received(ADDRESS)
    assert reader.body == b"{}"


def test_a_head_has_at_most_64_kib_and_nothing_is_left_of_its_values() -> None:
    def answer(size: int) -> bytes:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: \t?a? \t\r\nY: "
        return head + b"y" * (size - len(head)) + b"\r\n\r\n"

    http, reader, _ = exchange()
    assert isinstance(outcome_of(http, answer(65_536)), Received)
    assert dict(reader.headers)["x"] == "?a?"
    for parts in ((answer(65_537),), (answer(70_000)[:65_537],)):
        http, *_ = exchange()
        assert http.receive(parts[0]) == NO_HTTP
    http, *_ = exchange()
    assert http.receive(answer(70_000)[:65_536]) is None


def test_an_exchange_that_was_not_begun_has_an_outcome_too() -> None:
    reader = BodyReader(9)
    route = Route("agent.example", 443, "https")
    http = HttpExchange(Fetch("GET", URL, (), None, 10.0, 10.0, route, reader))
    assert http.receive(HEAD + b"Content-Length: 2\r\n\r\n{}") == Received()


def test_a_field_without_a_colon_is_refused() -> None:
    http, *_ = exchange()
    assert outcome_of(http, HEAD + b"nothing\r\n\r\n") == NO_HTTP


def test_there_is_no_work_after_the_outcome() -> None:
    http, *_ = exchange()
    http.feed(b"SMTP\r\n\r\n")
    outcome = http.outcome
    assert (outcome, http.work(), http.outcome) == (NO_HTTP, False, NO_HTTP)


def test_a_compressed_answer_is_decoded_piece_by_piece() -> None:
    body = gzip.compress(bytes(range(256)) * 100, compresslevel=0)
    http, reader, _ = exchange(limit=30_000)
    assert outcome_of(http, HEAD + b"Content-Encoding: gzip\r\n\r\n", body) == Received(ADDRESS)
    assert reader.body == bytes(range(256)) * 100


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_has_none_whatever_its_fields_say(status: int) -> None:
    http, reader, _ = exchange()
    assert http.receive(b"HTTP/1.1 %d \r\nContent-Length: 9\r\n\r\n" % status) == Received(ADDRESS)
    assert (reader.status, reader.body) == (status, b"")


def test_an_answer_that_is_cut_off_is_no_answer() -> None:
    http, *_ = exchange()
    assert outcome_of(http, HEAD + b"Content-Length: 3\r\n\r\n{}") == Unanswered(
        Stage.ANSWERED, "the answer ended early"
    )
    http, *_ = exchange()
    silent = Unanswered(Stage.SENT, "it closed the connection without an answer", silent=True)
    assert outcome_of(http) == silent
    http, *_ = exchange()
    assert outcome_of(http, HEAD) == Unanswered(Stage.SENT, silent.problem)


def test_reading_stops_if_the_reader_wants_no_more() -> None:
    http, reader, _ = exchange(limit=2)
    assert http.receive(HEAD + b"\r\n{   }") == Received(ADDRESS)
    assert reader.failed is not None
    http, reader, _ = exchange(drain=True)
    assert http.receive(b"HTTP/1.1 500 No\r\n\r\n" + b"x" * 65_536) == Received(ADDRESS)
    assert (reader.status, reader.body) == (500, b"")


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 600 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
        HEAD + b"Content-Length: 2,2\r\n\r\n{}",
        HEAD + b"Content-Length: +2\r\n\r\n{}",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"no colon\r\n\r\n",
        HEAD + b" folded: a\r\n\r\n",
        HEAD + b"a: \x00\r\n\r\n",
        HEAD + b"a: " + b"b" * 65_536 + b"\r\n\r\n",
        HEAD + b"a: " + b"b" * 65_536,
    ],
)
def test_what_is_no_answer_in_http_is_refused(answer: bytes) -> None:
    http, reader, _ = exchange()
    assert http.receive(answer) == NO_HTTP
    assert reader.status == 0


def test_a_chunked_answer_to_http_1_0_is_refused_in_its_own_words() -> None:
    http, reader, _ = exchange()
    assert http.receive(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n") == Unanswered(
        Stage.SENT, "it answered an HTTP/1.0 request with Transfer-Encoding, such as a chunked body"
    )
    assert reader.status == 0


@pytest.mark.parametrize(
    ("framing", "ends"), [(b"", (b"",)), (b"Content-Length: %d\r\n", ()), (b"Content-Length: %d\r\n", (b"",))]
)
def test_work_on_what_was_fed_is_done_step_by_step(framing: bytes, ends: tuple[bytes, ...]) -> None:
    packed = gzip.compress(bytes(3_000_000))
    http, reader, _ = exchange(limit=4_000_000)
    head = HEAD + b"Content-Encoding: gzip\r\n" + (framing % len(packed) if framing else b"") + b"\r\n"
    for chunk in (head + packed, *ends):
        http.feed(chunk)
    steps = 0
    while http.work():
        steps += 1
        assert http.outcome is None
    assert steps > 10
    assert http.outcome == Received(ADDRESS)
    assert reader.body == bytes(3_000_000)
    assert not http.work()


def test_a_step_may_take_what_is_left_of_the_request_and_of_the_patience_with_an_error() -> None:
    http, reader, _ = exchange()
    assert [http.seconds_left(100.0), http.seconds_left(104.0)] == [10.0, 6.0]
    assert http.receive(b"HTTP/1.1 500 No\r\ncontent-length: 9\r\n\r\n") is None
    assert reader.patience == 5.0
    assert [http.seconds_left(104.0), http.seconds_left(108.0)] == [5.0, 1.0]
    with pytest.raises(TimeoutError) as late:
        http.seconds_left(109.0)
    assert http.failed(late.value) == Expired(Stage.ANSWERED)


def test_what_fails_is_an_outcome_that_says_how_far_the_request_got() -> None:
    http, *_ = exchange()
    assert http.failed(ConnectionResetError("secret")) == Unanswered(Stage.SENT, "ConnectionResetError")
    assert http.failed(EOFError("secret")) == Unanswered(Stage.SENT, "EOFError")  # of a runtime that wraps the system's
    assert http.failed(TimeoutError()) == Expired(Stage.SENT)


PARTS = st.sampled_from(
    [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 404 \r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"a: b\r\n", b"\r\n", b"\r", b"\n",
     b"Content-Length: 3\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"abc", b":", b"\x00"]
)  # fmt: skip


@given(st.lists(PARTS | st.binary(max_size=4), max_size=12), st.integers(1, 9))
def test_any_bytes_have_an_outcome_which_does_not_depend_on_how_they_are_split(parts: list[bytes], size: int) -> None:
    data = b"".join(parts)
    whole, read, _ = exchange()
    split, reader, _ = exchange()
    expected = outcome_of(whole, *([data] if data else []))
    assert outcome_of(split, *(data[at : at + size] for at in range(0, len(data), size))) == expected
    assert (reader.status, reader.headers, reader.body) == (read.status, read.headers, read.body)
