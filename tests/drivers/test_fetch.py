"""One request by the example drivers: an answer that comes early, a body that isn't worth waiting for, a time limit."""

import asyncio
import time
from collections.abc import Callable
from gzip import compress
from importlib import import_module

import pytest

from asap_core.client import BodyReader, Client, Expired, Fetch, Outcome, Received, Route, Stage, Unanswered
from asap_core.http.body import BodyTooLarge
from docs.drivers import asyncio_protocol, lambda_driver, threads
from tests.drivers.demo_agent import ELSEWHERE, SENDER, raw_server

pytestmark = pytest.mark.live
TOO_LARGE = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\n{}"


def by_gevent(asked: Fetch) -> Outcome:
    pytest.importorskip("gevent", reason=f"{ELSEWHERE} gevent isn't installed here")
    outcome: Outcome = import_module("docs.drivers.gevent_driver").Greenlets(Client(SENDER)).perform(asked)
    return outcome


Fetching = Callable[[Fetch], Outcome]
DRIVERS: dict[str, Fetching] = {
    "threads": threads.fetch,
    "lambda": lambda_driver.fetch,
    "asyncio": lambda asked: asyncio.run(asyncio_protocol.fetch(asked)),
    "gevent": by_gevent,
}


@pytest.fixture(params=DRIVERS)
def fetching(request: pytest.FixtureRequest) -> Fetching:
    return DRIVERS[request.param]


def asked_of(
    url: str,
    *,
    seconds: float = 5.0,
    body: bytes = b"",
    drain: bool = False,
    addresses: tuple[str, ...] = ("127.0.0.1",),
) -> Fetch:
    route = Route("127.0.0.1", int(url.rpartition(":")[2]), "http", announced=addresses)
    return Fetch("POST", url, (), body, seconds, seconds, route, BodyReader(1_000, drain=drain))


def test_an_answer_that_comes_before_all_is_sent_is_read(fetching: Fetching) -> None:
    with raw_server(TOO_LARGE) as url:
        asked = asked_of(url, body=bytes(12_000_000))
        assert fetching(asked) == Received("127.0.0.1")
    assert (asked.reader.status, asked.reader.body) == (413, b"{}")


def test_an_address_that_refuses_is_followed_by_the_next(fetching: Fetching) -> None:
    with raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}") as url:
        assert fetching(asked_of(url, addresses=("127.0.0.2", "127.0.0.1"))) == Received("127.0.0.1")


def test_if_no_address_answers_nothing_was_sent(fetching: Fetching) -> None:
    with raw_server() as url:
        outcome = fetching(asked_of(url, addresses=("127.0.0.2", "127.0.0.3")))
        assert outcome == Unanswered(Stage.CONNECTING, "ConnectionRefusedError")
        fetching(asked_of(url))  # so that the server ends


def test_a_body_that_nobody_needs_is_not_waited_for(fetching: Fetching) -> None:
    begun = time.monotonic()
    with raw_server(TOO_LARGE[:-1], pause=10) as url:
        assert fetching(asked_of(url, drain=True)) == Expired(Stage.ANSWERED)
    assert time.monotonic() - begun < 2


def test_a_peer_that_does_not_read_is_given_up_at_the_time_limit(fetching: Fetching) -> None:
    begun = time.monotonic()
    with raw_server(b"", pause=10) as url:
        assert fetching(asked_of(url, seconds=0.3, body=bytes(12_000_000))) == Expired(Stage.SENT)
    assert time.monotonic() - begun < 2


OK = b"HTTP/1.1 200 OK\r\n"
CLOSED = "it closed the connection without an answer"


@pytest.mark.parametrize(
    ("pieces", "outcome", "read"),
    [
        ((OK + b"content-length: 2\r\n\r\n{", b"}"), Received("127.0.0.1"), b"{}"),
        ((b"HTTP/1.0 200 OK\r\n\r\n{", b"}"), Received("127.0.0.1"), b"{}"),  # it ends with the connection
        ((b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK, b"content-length: 2\r\n\r\n{}"), Received("127.0.0.1"), b"{}"),
        ((OK + b"content-encoding: gzip\r\n\r\n" + compress(b"{}" * 400),), Received("127.0.0.1"), b"{}" * 400),
        ((b"HTTP/1.1 204 No\r\n\r\n",), Received("127.0.0.1"), b""),
        ((OK + b"content-length: 3\r\n\r\n{}",), Unanswered(Stage.ANSWERED, "the answer ended early"), b""),
        ((OK + b"content-len",), Unanswered(Stage.SENT, CLOSED), b""),
        ((), Unanswered(Stage.SENT, CLOSED, silent=True), b""),
        ((b"SSH-2.0-OpenSSH_9.6\r\n\r\n",), Unanswered(Stage.SENT, "what came back isn't an HTTP answer"), b""),
        (
            (OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",),
            Unanswered(Stage.SENT, "it answered an HTTP/1.0 request with Transfer-Encoding, such as a chunked body"),
            b"",
        ),
    ],
)
def test_each_answer_has_its_outcome(
    fetching: Fetching, pieces: tuple[bytes, ...], outcome: Outcome, read: bytes
) -> None:
    with raw_server(*pieces, pause=0.005) as url:
        asked = asked_of(url)
        assert fetching(asked) == outcome
    assert asked.reader.body == read


def test_a_body_that_is_too_large_is_not_read_to_its_end(fetching: Fetching) -> None:
    with raw_server(OK + b"\r\n" + bytes(2_000), pause=10) as url:
        asked = asked_of(url)
        assert fetching(asked) == Received("127.0.0.1")
    assert isinstance(asked.reader.failed, BodyTooLarge)


def test_a_body_that_trickles_in_ends_at_the_time_limit(fetching: Fetching) -> None:
    begun = time.monotonic()
    with raw_server(OK + b"content-length: 99\r\n\r\n", *[b"{"] * 90, pause=0.05) as url:
        assert fetching(asked_of(url, seconds=0.4)) == Expired(Stage.ANSWERED)
    assert time.monotonic() - begun < 2
