"""Which connections stay open if there are more than slots: those with a request before idle ones."""

import json
import re
import time
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

from asap_adapters import serve
from asap_adapters.server.connection_limits import ConnectionSlot, ConnectionSlots
from asap_adapters.server.listener import Bound
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


class Listener(anyio.abc.Listener[Any]):
    """Gives the server the streams that are put into it."""

    def __init__(self) -> None:
        self.put, self.taken = anyio.create_memory_object_stream[Any](1000)

    async def accept(self):
        return await self.taken.receive()

    async def serve(self, _handler, _task_group=None) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        self.put.close()
        self.taken.close()


class Connecting:
    """Each call is another address with one connection, unless it says which."""

    def __init__(self, pipe) -> None:
        self.listener, self.stop, self.pipe, self.number = Listener(), anyio.Event(), pipe, 0
        self.stopped_after = 0.0

    async def __call__(self, sends: bytes = b"", *, address: str = ""):
        self.number += 1
        ours, theirs = self.pipe()
        place = address or f"192.0.2.{self.number}"
        theirs.extra = {SocketAttribute.remote_address: (place, 1)}.__getitem__
        theirs.receive_nowait = lambda _most: arrived(theirs)
        await self.listener.put.send(theirs)
        with suppress(anyio.BrokenResourceError):  # it was refused
            await ours.send(sends) if sends else None
        await anyio.wait_all_tasks_blocked()
        return ours


def arrived(stream):
    """What a server's last look finds, as on its own streams."""
    try:
        return stream._incoming.receive_nowait()
    except (anyio.WouldBlock, anyio.EndOfStream):
        return b""


@pytest.fixture
def server(pipe, agent, echo_handlers):
    """`async with server(max_connections=…) as connect`; it is stopped at the end, or by `connect.stop`."""

    @asynccontextmanager
    async def run(handlers=None, **policy):
        connect = Connecting(pipe)

        async def serving() -> None:
            bound = Bound(connect.listener, "http://localhost", "localhost", 0)
            await serve(agent(**policy), handlers or echo_handlers, at=bound, stop=connect.stop)
            connect.stopped_after = anyio.current_time()

        async with anyio.create_task_group() as group:
            with anyio.fail_after(1000):
                group.start_soon(serving)
                yield connect
                connect.stop.set()

    return run


def is_open(stream) -> bool:
    try:
        stream._incoming.receive_nowait()
    except anyio.WouldBlock:
        return True
    except anyio.EndOfStream:
        return False
    return is_open(stream)


@pytest.mark.parametrize("said", [b"", b"G", b"POST /asap HTTP/1.1\r\nHost: a\r\n"])
async def test_peers_that_never_send_a_head_do_not_block_others(server, said) -> None:
    async with server(max_connections=4) as connect:
        silent = [await connect(said) for _ in range(4)]
        began = anyio.current_time()
        honest = await connect(post())
        assert statuses(await honest.receive()) == [200]
        assert anyio.current_time() - began < 1
        # One gave way, the one that had been there longest.
        assert [is_open(one) for one in silent] == [False, True, True, True]


async def test_a_flood_of_silent_connections_does_not_block_others(server) -> None:
    async with server(max_connections=4) as connect:
        flood = []
        for number in range(40):
            flood.append(await connect())
            if number % 10 == 5:
                assert statuses(await (await connect(post(number))).receive()) == [200]
        assert [is_open(one) for one in flood].count(True) <= 4


async def test_single_bytes_do_not_renew_a_timeout(server) -> None:
    async with server(max_connections=2) as connect:
        first = await connect()
        second = await connect()
        await anyio.sleep(1)
        await first.send(b"G")
        await anyio.sleep(1)
        await connect(GET)
        assert [is_open(first), is_open(second)] == [False, True]


async def test_running_requests_are_answered_before_a_connection_is_closed_for_another(server) -> None:
    async def slow(_request, _context):
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


async def test_if_all_slots_are_busy_a_new_connection_gets_the_first_free_one(server) -> None:
    async def slow(_request, _context):
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


class TestTheQueue:
    """New connections are accepted while all slots are busy, and get the slots that are freed in their order."""

    @pytest.fixture(name="slow")
    def slow_handlers(self):
        async def slow(_request, _context):
            await anyio.sleep(5)
            return {}

        return {"echo": slow}

    async def test_idle_connections_end_for_all_that_queue_at_once(self) -> None:
        slots, gone = ConnectionSlots(3), []
        for number in range(3):
            slots.enter().waits(lambda number=number: gone.append(number), 0.0)  # type: ignore[misc]
        new = [slots.enter() for _ in range(2)]
        assert gone == [0, 1]
        with anyio.move_on_after(1) as waiting:
            await new[0].taken()
        assert waiting.cancelled_caught

    async def test_those_that_queue_are_served_in_their_order(self, server, slow) -> None:
        async with server(slow, max_connections=2) as connect:
            for number in range(2):
                await connect(post(number))
            late = [await connect(post(number)) for number in range(2, 5)]
            assert connect.listener.taken.statistics().current_buffer_used == 0
            ended = []
            for one in late:
                assert statuses(await one.receive()) == [200]
                ended.append(anyio.current_time())
            assert ended == [pytest.approx(10, abs=1), pytest.approx(10, abs=1), pytest.approx(15, abs=1)]

    async def test_a_peer_that_leaves_the_queue_holds_up_nobody(self, server, slow) -> None:
        async with server(slow, max_connections=1) as connect:
            await connect(post(1))
            gone, late = await connect(post(2)[:-5]), await connect(post(3))
            await gone.aclose()
            assert statuses(await late.receive()) == [200]
            assert anyio.current_time() == pytest.approx(10, abs=1)

    async def test_the_queue_is_bounded_and_the_rest_is_accepted_later(self, server, slow, monkeypatch) -> None:
        monkeypatch.setattr("asap_adapters.server.connection_limits._QUEUE", 2)
        async with server(slow, max_connections=1) as connect:
            await connect(post(0))
            late = [await connect(post(number)) for number in range(1, 6)]
            left = connect.listener.taken.statistics
            assert left().current_buffer_used == 3
            assert statuses(await late[0].receive()) == [200]
            assert left().current_buffer_used == 2
            assert statuses(await late[-1].receive()) == [200]

    async def test_a_server_that_stops_answers_those_that_queue_with_their_request(self, server, slow) -> None:
        async with server(slow, max_connections=1) as connect:
            await connect(post(1))
            late, silent = await connect(post(2)), await connect()
            connect.stop.set()
            assert statuses(await late.receive()) == [200]
            await anyio.sleep(0.1)
            assert not is_open(silent)

    async def test_those_that_still_queue_after_the_drain_are_closed(self, server) -> None:
        async def endless(_request, _context):
            await anyio.sleep_forever()

        async with server({"echo": endless}, max_connections=1, drain=30, handler_deadline=30) as connect:
            late = [await connect(post(number)) for number in range(3)]
            connect.stop.set()
            await anyio.sleep(31)
            assert not any(map(is_open, late))
        assert connect.stopped_after <= 31


async def test_no_connection_is_closed_if_no_other_waits(server) -> None:
    async with server(max_connections=2) as connect:
        idle = [await connect(GET) for _ in range(2)]
        for one in idle:
            answer = await one.receive()
            assert (statuses(answer), b"connection: close" in answer) == ([200], False)
        await anyio.sleep(50)
        assert all(map(is_open, idle))
        await anyio.sleep(20)
        assert not any(map(is_open, idle))


class TestOneAddress:
    """Connections of one address have a limit; at the limit the one idle longest is closed for a new one."""

    @pytest.mark.parametrize("said", [b"", b"G", b"POST /asap HTTP/1.1\r\nHost: a\r\n", GET])
    async def test_at_the_limit_of_an_address_its_longest_idle_connection_is_closed(self, server, said) -> None:
        async with server(connections_per_peer=3) as connect:
            other = await connect()
            own = [await connect(said, address="198.51.100.1") for _ in range(3)]
            honest = await connect(post(), address="198.51.100.1")
            assert statuses(await honest.receive()) == [200]
            assert [is_open(one) for one in own] == [False, True, True]
            assert is_open(other)

    async def test_hundreds_of_silent_connections_do_not_block_their_address(self, server) -> None:
        async with server(connections_per_peer=100, head_timeout=1000, idle_timeout=1000) as connect:
            half = b"POST /asap HTTP/1.1\r\nHost: a\r\n"
            flood = [await connect(half if number % 2 else b"", address="198.51.100.1") for number in range(500)]
            assert [is_open(one) for one in flood].count(True) == 100
            honest = await connect(post(), address="198.51.100.1")
            assert statuses(await honest.receive()) == [200]
            assert [is_open(one) for one in flood].count(True) == 99

    async def test_an_ipv6_network_counts_as_one_address(self, server) -> None:
        async with server(connections_per_peer=1) as connect:
            first = await connect(address="2001:db8::1")
            second = await connect(GET, address="2001:db8::2")
            assert (statuses(await second.receive()), is_open(first)) == ([200], False)

    async def test_a_new_connection_is_refused_if_all_of_its_address_are_busy(self, server) -> None:
        async def slow(_request, _context):
            await anyio.sleep(5)
            return {}

        async with server({"echo": slow}, connections_per_peer=2) as connect:
            busy = [await connect(post(1), address="198.51.100.1"), await connect(post(2)[:-5], address="198.51.100.1")]
            refused = await connect(GET, address="198.51.100.1")
            assert not is_open(refused)
            assert statuses(await busy[0].receive()) == [200]
            # It's idle now, and gives way.
            assert statuses(await (await connect(GET, address="198.51.100.1")).receive()) == [200]
            assert [is_open(one) for one in busy] == [False, True]

    async def test_each_of_many_new_connections_replaces_one(self, server) -> None:
        async with server(connections_per_peer=4) as connect:
            old = [await connect(address="198.51.100.1") for _ in range(4)]
            new = []
            async with anyio.create_task_group() as group:

                async def one() -> None:
                    new.append(await connect(GET, address="198.51.100.1"))

                for _ in range(20):
                    group.start_soon(one)
            assert not any(map(is_open, old))
            # Those are served that found one to take the place of, and never more than there may be.
            assert 0 < [is_open(one) for one in new].count(True) <= 4

    async def test_if_all_slots_are_taken_a_connection_of_the_same_address_is_closed(self, server) -> None:
        async with server(max_connections=4, connections_per_peer=2) as connect:
            other = [await connect() for _ in range(2)]
            own = [await connect(address="198.51.100.1") for _ in range(2)]
            honest = await connect(GET, address="198.51.100.1")
            assert statuses(await honest.receive()) == [200]
            assert [is_open(one) for one in (*other, *own)] == [True, True, False, True]

    async def test_trusted_proxies_have_no_limit(self, server) -> None:
        async with server(connections_per_peer=1, trusted_proxies=("198.51.100.1",)) as connect:
            many = [await connect(address="198.51.100.1") for _ in range(5)]
            assert all(map(is_open, many))


class TestStopping:
    @pytest.mark.parametrize("sent", [b"G", b"POST /asap HTTP/1.1\r\nHost: a\r\n", post()[:-5]])
    @pytest.mark.parametrize(("policy", "seconds"), [({}, 5), ({"drain_incomplete": 2.0}, 2)])
    async def test_incomplete_requests_have_a_few_seconds_after_a_stop(self, server, sent, policy, seconds) -> None:
        async with server(**policy) as connect:
            slow = await connect(sent)
            await anyio.sleep(1)
            connect.stop.set()
            began = anyio.current_time()
            answer = await slow.receive()
            assert anyio.current_time() - began == pytest.approx(seconds)
            assert (statuses(answer), b"before this server stops" in answer) == ([408], True)
        assert connect.stopped_after - began == pytest.approx(seconds + 1)  # and it lingers, that it may be read

    async def test_trickling_bytes_do_not_renew_a_timeout(self, server) -> None:
        async with server() as connect:
            slow, body = await connect(post()[:20]), post()
            connect.stop.set()
            for at in range(20, 40):
                if not is_open(slow):
                    break
                await slow.send(body[at : at + 1])
                await anyio.sleep(1)
            assert 24 <= at <= 27

    async def test_requests_completed_in_time_are_answered_within_the_drain(self, server) -> None:
        async def slow(_request, _context):
            await anyio.sleep(20)
            return {}

        async with server({"echo": slow}) as connect:
            begun, half = await connect(post(1)), await connect(post(2)[:-5])
            connect.stop.set()
            await anyio.sleep(3)
            await half.send(post(2)[-5:])
            for one in (begun, half):
                answer = await one.receive()
                assert (statuses(answer), b"connection: close" in answer) == ([200], True)

    async def test_idle_connections_are_closed_at_once(self, server) -> None:
        async with server() as connect:
            idle, kept = await connect(), await connect(GET)
            await kept.receive()
            connect.stop.set()
            await anyio.sleep(0.1)
            assert [is_open(idle), is_open(kept)] == [False, False]
        assert connect.stopped_after < 1

    async def test_work_that_takes_longer_than_the_drain_is_cut_off(self, server) -> None:
        async def endless(_request, _context):
            await anyio.sleep_forever()

        async with server({"echo": endless}, drain=30, handler_deadline=30) as connect:
            await connect(post())
            await anyio.sleep(10)
            connect.stop.set()
        assert connect.stopped_after <= 40


async def test_a_connection_whose_request_just_arrived_stays_and_another_is_closed() -> None:
    places = ConnectionSlots(2)
    first, second = places.enter(), places.enter()
    ended = []

    async def holds(place: ConnectionSlot) -> None:
        with place.waiting():
            await anyio.sleep_forever()
        ended.append(place)
        place.give_back()

    async with anyio.create_task_group() as group:
        with first.waiting():
            group.start_soon(holds, second)
            await anyio.wait_all_tasks_blocked()
            places.enter()
            # The others run; this one is told, and is done before it notices.
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
            told = first.leaving
        assert (told, first.leaving) == (True, False)
        await anyio.wait_all_tasks_blocked()
    assert ended == [second]
    assert not first.wanted


async def test_a_waiter_is_woken_if_the_connection_to_close_stays() -> None:
    places = ConnectionSlots(2)
    place = places.enter("192.0.2.1")
    assert (places.dismiss("192.0.2.1"), places.dismiss("192.0.2.2")) == (None, None)
    with place.waiting():
        settled = places.dismiss("192.0.2.1")  # and its request is there, before it notices
    assert settled is not None
    assert (settled.is_set(), place.leaving) == (True, False)
    with place.waiting():
        settled = places.dismiss("192.0.2.1")
        again = places.dismiss("192.0.2.1")
        await anyio.sleep_forever()
    assert settled is not None
    assert (settled.is_set(), again, place.leaving) == (False, None, True)
    place.give_back()
    assert settled.is_set()
