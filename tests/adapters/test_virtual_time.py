"""The virtual clocks that the other tests here stand on."""

import anyio
import pytest

pytestmark = pytest.mark.anyio


async def test_an_hour_passes_at_once_and_exactly() -> None:
    before = anyio.current_time()
    await anyio.sleep(3600)
    assert anyio.current_time() - before == pytest.approx(3600)


async def test_a_deadline_cancels_at_its_instant() -> None:
    before = anyio.current_time()
    with pytest.raises(TimeoutError), anyio.fail_after(7):
        await anyio.sleep(8)
    assert anyio.current_time() - before == pytest.approx(7)


async def test_tasks_wake_in_the_order_of_their_times() -> None:
    woken = []

    async def sleeper(seconds) -> None:
        await anyio.sleep(seconds)
        woken.append(seconds)

    async with anyio.create_task_group() as group:
        for seconds in (30, 10, 20):
            group.start_soon(sleeper, seconds)
    assert woken == [10, 20, 30]
