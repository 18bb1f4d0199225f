"""A network in memory that breaks by script: our client and server over it keep their promise, on both backends."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Any

import anyio
import pytest
from hypothesis import Phase, given, settings, strategies as st

from asap_adapters import serve
from asap_adapters.testing import MemoryNetwork
from asap_core import AsapError, OutboundPolicy
from asap_core.client.sending import Sender
from asap_core.testing import ConnectionFaults, DirectionFaults, network_scripts
from asap_core.testing.network_faults import Cut
from tests import builders
from tests.adapters.conftest import VirtualLoop, virtual_trio
from tests.core.testing.measured import examples_of

URL = "http://127.0.0.1"
# Longer than a client waits for all its attempts.
LONG = 1_000.0


class TestStreams:
    pytestmark = pytest.mark.anyio

    async def pair(self, **faults: Any) -> tuple[Any, Any]:
        network = MemoryNetwork([ConnectionFaults(**faults)])
        ours = await network.connect()
        return ours, await network.listener.accept()

    async def test_bytes_arrive_in_pieces_after_a_delay(self) -> None:
        ours, theirs = await self.pair(to_server=DirectionFaults(delay=2.0, piece=2))
        began = anyio.current_time()
        await ours.send(b"abcde")
        assert [await theirs.receive(), await theirs.receive(1), await theirs.receive()] == [b"ab", b"c", b"d"]
        assert anyio.current_time() - began == pytest.approx(2.0)
        await theirs.send(b"x")
        assert await ours.receive() == b"x"
        await ours.send_eof()
        assert await theirs.receive() == b"e"
        with pytest.raises(anyio.EndOfStream):
            await theirs.receive()

    @pytest.mark.parametrize(
        ("cut", "read", "written"),
        [
            (Cut.RESET, anyio.BrokenResourceError, anyio.BrokenResourceError),
            (Cut.CLOSED, anyio.EndOfStream, anyio.BrokenResourceError),
            (Cut.LOST, TimeoutError, None),
        ],
    )
    async def test_a_connection_is_cut_after_so_many_bytes(self, cut, read, written) -> None:
        ours, theirs = await self.pair(to_server=DirectionFaults(cut_after=3, cut=cut))
        await ours.send(b"abcde")
        assert await theirs.receive() == b"abc"
        with pytest.raises(read), anyio.fail_after(60):
            await theirs.receive()
        if written is None:
            await ours.send(b"f")
        else:
            with pytest.raises(written):
                await ours.send(b"f")

    async def test_a_refused_connection_is_refused_after_its_delay(self) -> None:
        began = anyio.current_time()
        with pytest.raises(ConnectionRefusedError):
            await self.pair(refused=True, connect_delay=3.0)
        assert anyio.current_time() - began == pytest.approx(3.0)

    async def test_a_cancelled_reader_loses_nothing(self) -> None:
        ours, theirs = await self.pair(to_server=DirectionFaults(delay=5.0))
        await ours.send(b"abc")
        with anyio.move_on_after(1):
            await theirs.receive()
        assert await theirs.receive() == b"abc"

    async def test_a_writer_waits_for_a_slow_reader(self) -> None:
        ours, theirs = await self.pair()
        with anyio.move_on_after(1) as scope:
            for _ in range(3):
                await ours.send(bytes(60_000))
        assert scope.cancelled_caught
        read = 0
        while read < 120_000:
            read += len(await theirs.receive())
        await theirs.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await theirs.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await ours.send(b"x")


# --- our client and our server --------------------------------------------------------------------------------

CALLS = st.lists(st.tuples(st.sampled_from([0.0, 0.0, 1.0, 40.0]), st.booleans()), min_size=1, max_size=3)
Calls = Sequence[tuple[float, bool]]


async def promise(script: Sequence[ConnectionFaults], calls: Calls) -> list[str]:
    """Each call ends, with the right answer or one clear error, and its work is done once at most."""
    done, ends = Counter[int](), dict[int, str]()

    async def echo(request: Any, _context: Any) -> dict[str, Any]:
        await anyio.sleep(0.1)
        done[request.input["n"]] += 1
        return {"echoed": request.input}

    network, stop = MemoryNetwork(script), anyio.Event()
    agent = builders.agent(builders.manifest(url=f"{URL}/asap"))
    outbound = OutboundPolicy(allow_http=["127.0.0.1"])

    async def call(client: Any, number: int, after: float, keyed: bool) -> None:
        await anyio.sleep(after)
        work = {"skill_id": "echo", "input": {"n": number}}
        try:
            reply = await client.send(URL, "task.request", work, idempotency_key=f"key-{number}" if keyed else None)
        except AsapError as error:
            ends[number] = type(error).__name__
        else:
            assert reply.payload["result"] == {"echoed": {"n": number}}
            assert done[number] == 1, "an answer without the work"
            ends[number] = "answered"

    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as group:
            group.start_soon(partial(serve, agent, {"echo": echo}, at=network.bound, stop=stop))
            calling = network.client("urn:asap:agent:tester", outbound=outbound)
            async with calling as client, anyio.create_task_group() as callers:
                for number, (after, keyed) in enumerate(calls):
                    callers.start_soon(call, client, number, after, keyed)
            stop.set()
    assert len(ends) == len(calls)
    assert max(done.values(), default=0) <= 1, "done twice"
    return [ends[number] for number in range(len(calls))]


def run(backend: str, script: Sequence[ConnectionFaults], calls: Calls) -> list[str]:
    name, options = virtual_trio() if backend == "trio" else ("asyncio", {"loop_factory": VirtualLoop})
    return anyio.run(promise, script, calls, backend=name, backend_options=options)


BACKENDS = pytest.mark.parametrize("backend", ["trio", "asyncio"])


@BACKENDS
@settings(deadline=None)
@given(network_scripts(), CALLS)
def test_each_call_ends_with_one_answer_or_one_error(backend, script, calls) -> None:
    run(backend, script, calls)


@BACKENDS
def test_without_faults_each_call_is_answered(backend) -> None:
    assert run(backend, [], [(0.0, True), (0.0, False), (1.0, True)]) == ["answered"] * 3


@BACKENDS
def test_a_call_whose_reply_is_lost_is_sent_again_only_with_a_key(backend) -> None:
    # The manifest is fetched over the first connection, which its cut ends before the call.
    cut = ConnectionFaults(to_client=DirectionFaults(cut_after=900))
    assert run(backend, [cut], [(0.0, True)]) == ["answered"]
    assert run(backend, [cut], [(0.0, False)]) == ["Unreachable"]


# --- what is drawn, counted --------------------------------------------------------------------------------


def test_connections_are_refused_delayed_and_cut_in_each_way() -> None:
    drawn = [each for script in examples_of(network_scripts()) for each in script]
    directions = [way for each in drawn for way in (each.to_server, each.to_client)]
    cuts = Counter(way.cut for way in directions if way.cut_after is not None)
    assert 0.1 <= sum(each.refused for each in drawn) / len(drawn) <= 0.5
    assert 0.2 <= cuts.total() / len(directions) <= 0.7
    assert min(cuts[cut] for cut in Cut) >= 0.15 * cuts.total(), cuts
    assert sum(way.delay > 0 for way in directions) >= 0.2 * len(directions)
    assert sum(way.piece < 1_000 for way in directions) >= 0.2 * len(directions)


def test_calls_end_well_and_badly() -> None:
    drawn = examples_of(st.tuples(network_scripts(), CALLS), 60)
    ends = Counter(end for script, calls in drawn for end in run("asyncio", script, calls))
    assert ends["answered"] >= 0.3 * ends.total(), ends
    assert min(ends["TimedOut"], ends["Unreachable"]) >= 0.03 * ends.total(), ends


# --- planted defects --------------------------------------------------------------------------------


def another_key_each_time(self, to, envelope, key, *, keyed, nonce):
    """Send again what may have been carried out, and don't say that it's the same."""
    del keyed
    numbers = count()

    def post(renewed):
        return self.once(to, renewed[0], f"{key}-{next(numbers)}")

    return self._until_answered(to, [envelope], post, keyed=True, nonces=[nonce])


@pytest.mark.planted
def test_work_that_is_done_twice_is_noticed(monkeypatch) -> None:
    monkeypatch.setattr(Sender, "deliver", another_key_each_time)

    @settings(max_examples=200, deadline=None, phases=[Phase.generate], derandomize=True, database=None)
    @given(st.integers(0, 1_500))
    def hunt(cut_after) -> None:
        run("asyncio", [ConnectionFaults(to_client=DirectionFaults(cut_after=cut_after))], [(0.0, False)])

    with pytest.raises((BaseExceptionGroup, AssertionError)):
        hunt()
