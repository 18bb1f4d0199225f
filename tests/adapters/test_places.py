"""Who has a connection when there are more than places: whoever asks for something, before whoever doesn't."""

import json
import re
import time
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

from asap_adapters.drive import Driver
from asap_adapters.handlers import Handlers
from asap_adapters.places import Place, Places
from asap_adapters.serve import _Server, bind_agent
from asap_core import Envelope, encode_envelope

pytestmark = pytest.mark.anyio

GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"


def post(number: int = 1) -> bytes:
    envelope = Envelope.new(
        sender="urn:asap:agent:tester", recipient="urn:asap:agent:echo-agent", payload_type="task.request",
        payload={"conversation_id": "c", "skill_id": "echo", "input": {}}, ids=lambda: f"id-{number}",
        wall=time.time(),  # type: ignore[arg-type]
    )  # fmt: skip
    params = {"envelope": encode_envelope(envelope)}
    body = json.dumps({"jsonrpc": "2.0", "method": "asap.send", "id": number, "params": params}).encode()
    return b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


class Listener:
    """Gives the server what is put into it."""

    def __init__(self) -> None:
        self.put, self.taken = anyio.create_memory_object_stream[Any](100)

    async def accept(self) -> Any:
        return await self.taken.receive()

    async def aclose(self) -> None:
        self.put.close()
        self.taken.close()


@pytest.fixture
def server(pipe: Any, agent: Any, echo_handlers: Any) -> Any:
    """`async with server(max_connections=…) as connect`: each `connect()` is another address with one connection."""

    @asynccontextmanager
    async def run(handlers: Any = None, **policy: Any) -> Any:
        listener, stop, number = Listener(), anyio.Event(), 0
        driver = Driver(bind_agent(agent(**policy)), Handlers(handlers or echo_handlers))

        async def connect(sends: bytes = b"") -> Any:
            nonlocal number
            number += 1
            ours, theirs = pipe()
            theirs.extra = {SocketAttribute.remote_address: (f"192.0.2.{number}", 1)}.__getitem__
            await listener.put.send(theirs)
            if sends:
                await ours.send(sends)
            await anyio.wait_all_tasks_blocked()
            return ours

        async with anyio.create_task_group() as group:
            with anyio.fail_after(1000):
                group.start_soon(_Server(driver, listener, None, stop).run, lambda: None)  # type: ignore[arg-type]
                yield connect
                stop.set()

    return run


def is_open(stream: Any) -> bool:
    try:
        stream._incoming.receive_nowait()
    except anyio.WouldBlock:
        return True
    except anyio.EndOfStream:
        return False
    return is_open(stream)


@pytest.mark.parametrize("said", [b"", b"G", b"POST /asap HTTP/1.1\r\nHost: a\r\n"])
async def test_who_never_sends_a_head_keeps_nobody_out(server: Any, said: Any) -> None:
    async with server(max_connections=4) as connect:
        silent = [await connect(said) for _ in range(4)]
        began = anyio.current_time()
        honest = await connect(post())
        assert statuses(await honest.receive()) == [200]
        assert anyio.current_time() - began < 1
        # One gave way, the one that had been there longest.
        assert [is_open(one) for one in silent] == [False, True, True, True]


async def test_a_flood_of_them_neither(server: Any) -> None:
    async with server(max_connections=4) as connect:
        flood = []
        for number in range(40):
            flood.append(await connect())
            if number % 10 == 5:
                assert statuses(await (await connect(post(number))).receive()) == [200]
        assert [is_open(one) for one in flood].count(True) <= 4


async def test_a_byte_now_and_then_renews_nothing(server: Any) -> None:
    async with server(max_connections=2) as connect:
        first = await connect()
        second = await connect()
        await anyio.sleep(1)
        await first.send(b"G")
        await anyio.sleep(1)
        await connect(GET)
        assert [is_open(first), is_open(second)] == [False, True]


async def test_what_was_asked_is_answered_before_anybody_gives_way(server: Any) -> None:
    async def slow(_request: Any, _context: Any) -> Any:
        await anyio.sleep(5)
        return {}

    async with server({"echo": slow}, max_connections=3) as connect:
        busy = await connect(post(1))
        body = await connect(post(2)[:-5])
        kept = await connect(GET)
        await connect(GET)
        assert statuses(await kept.receive()) == [200]
        assert not is_open(kept)
        began = anyio.current_time()
        assert statuses(await busy.receive()) == [200]
        assert anyio.current_time() - began == pytest.approx(5, abs=1)
        assert is_open(body)


async def test_while_all_are_busy_the_next_has_the_first_place_that_is_done(server: Any) -> None:
    async def slow(_request: Any, _context: Any) -> Any:
        await anyio.sleep(5)
        return {}

    async with server({"echo": slow}, max_connections=2) as connect:
        busy = [await connect(post(number)) for number in range(2)]
        began = anyio.current_time()
        late = await connect(post(3))
        answer = await busy[0].receive()
        # It's told, so that it doesn't send into a closed connection.
        assert (statuses(answer), b"connection: close" in answer) == ([200], True)
        await late.receive()
        assert anyio.current_time() - began == pytest.approx(10, abs=1)


async def test_where_nobody_waits_nobody_gives_way(server: Any) -> None:
    async with server(max_connections=2) as connect:
        idle = [await connect(GET) for _ in range(2)]
        for one in idle:
            answer = await one.receive()
            assert (statuses(answer), b"connection: close" in answer) == ([200], False)
        await anyio.sleep(50)
        assert all(map(is_open, idle))
        await anyio.sleep(20)
        assert not any(map(is_open, idle))


async def test_whose_request_comes_at_the_very_moment_stays_and_another_goes() -> None:
    places = Places(2)
    first, second = await places.take(), await places.take()
    ended = []

    async def holds(place: Place) -> None:
        with place.waiting():
            await anyio.sleep_forever()
        ended.append(place)
        place.give_back()

    async with anyio.create_task_group() as group:
        with first.waiting():
            group.start_soon(holds, second)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(places.take)
            # The others run; this one is told, and is done before it notices.
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
            told = first.leaving
        assert (told, first.leaving) == (True, False)
        await anyio.wait_all_tasks_blocked()
    assert ended == [second]
    assert not first.wanted
