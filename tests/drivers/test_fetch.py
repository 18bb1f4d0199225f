"""One request by the example drivers: the outcome of each kind of answer. `check_driver` checks the other rules."""

import asyncio
from collections.abc import Callable
from gzip import compress
from importlib import import_module

import pytest

from asap_core.client import BodyReader, Client, Fetch, Outcome, Received, Route, Stage, Unanswered
from docs.drivers import asyncio_protocol, lambda_driver, threads
from tests.drivers.demo_agent import ELSEWHERE, SENDER, raw_server

pytestmark = pytest.mark.live


def by_gevent(asked: Fetch) -> Outcome:
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
    # Here, before a test starts a server, which would wait for the request.
    if request.param == "gevent":
        pytest.importorskip("gevent", reason=f"{ELSEWHERE} gevent isn't installed here")
    return DRIVERS[request.param]


def asked_of(url: str, *, addresses: tuple[str, ...] = ("127.0.0.1",)) -> Fetch:
    route = Route("127.0.0.1", int(url.rpartition(":")[2]), "http", announced=addresses)
    return Fetch("POST", url, (), b"", 5.0, 5.0, route, BodyReader(1_000))


def test_if_no_address_answers_nothing_was_sent(fetching: Fetching) -> None:
    with raw_server() as url:
        outcome = fetching(asked_of(url, addresses=("127.0.0.2", "127.0.0.3")))
        assert outcome == Unanswered(Stage.CONNECTING, "ConnectionRefusedError")
        fetching(asked_of(url))  # so that the server ends


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
