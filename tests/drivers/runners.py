"""Drivers as `check_driver` wants them: for each a function that gives it a client, and returns what runs programs."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import anyio
from anyio.from_thread import start_blocking_portal

from asap_adapters.blocking.driver import BlockingDriver
from asap_adapters.blocking.http_options import BlockingHttpOptions
from asap_adapters.driver import ProgramDriver
from asap_adapters.net.outbound_transport import HttpOptions
from asap_core.client import Client, Program
from asap_core.testing import ProgramRunner
from docs.drivers.asyncio_protocol import AsyncioClient
from docs.drivers.lambda_driver import Invocation
from docs.drivers.simulator import Process, SimulatedClient, World
from docs.drivers.threads import Threads


def result_of(run: Callable[[Any], object], program: Program[Any]) -> object:
    """What it returns, or the exception that it raises."""
    try:
        return run(program)
    except Exception as error:  # noqa: BLE001 - it's the result
        return error


def in_threads(run: Callable[[Any], object]) -> ProgramRunner:
    def runner(programs: Sequence[Program[Any]], cancel_after: float | None) -> Sequence[object]:
        assert cancel_after is None, "a thread can't be cancelled"
        with ThreadPoolExecutor(len(programs)) as pool:
            return list(pool.map(lambda program: result_of(run, program), programs))

    return runner


def threads(client: Client, kind: Callable[[Client], Threads] = Threads) -> ProgramRunner:
    return in_threads(kind(client).run)


def function(client: Client) -> ProgramRunner:
    run: Callable[[Any], object] = Invocation(client).run

    def runner(programs: Sequence[Program[Any]], cancel_after: float | None) -> Sequence[object]:
        assert cancel_after is None, "a function can't be cancelled"
        return [result_of(run, program) for program in programs]

    return runner


def asyncio_protocol(client: Client, kind: Callable[[Client], AsyncioClient] = AsyncioClient) -> ProgramRunner:
    driver = kind(client)

    async def main(programs: Sequence[Program[Any]], cancel_after: float | None) -> Sequence[object]:
        tasks = [asyncio.ensure_future(driver.run(program)) for program in programs]
        if cancel_after is not None:
            await asyncio.sleep(cancel_after)
            tasks[0].cancel()
        results: Sequence[object] = await asyncio.gather(*tasks, return_exceptions=True)
        return results

    def runner(programs: Sequence[Program[Any]], cancel_after: float | None) -> Sequence[object]:
        return asyncio.run(main(programs, cancel_after))

    return runner


def simulator(client: Client) -> ProgramRunner:
    world = World(seed=1)
    driver = SimulatedClient(world, client, "192.0.2.1")

    def runner(programs: Sequence[Program[Any]], cancel_after: float | None) -> Sequence[object]:
        results: list[object] = [None] * len(programs)

        def process(number: int, program: Program[Any]) -> Process[None]:
            try:
                results[number] = yield from driver.run(program)
            except Exception as error:  # noqa: BLE001 - it's the result
                results[number] = error

        processes = [process(number, program) for number, program in enumerate(programs)]
        for each in processes:
            world.start(each)
        if cancel_after is not None:
            world.schedule.enter(cancel_after, 0, processes[0].close)
        world.run(until=world.clock.monotonic() + 100.0)
        return results

    return runner


class OnLoop:
    """`AgentClient`'s driver, on a loop in a thread."""

    def __init__(self, client: Client, backend: str) -> None:
        self.driver = ProgramDriver(HttpOptions(trust_env=False), owner="a check")
        client.bind(self.driver.runtime)
        self.after = ExitStack()
        self.portal = self.after.enter_context(start_blocking_portal(backend))
        self.portal.call(self.driver.open)
        self.after.callback(self.portal.call, self.driver.aclose)

    def close(self) -> None:
        self.after.close()

    def __call__(self, programs: Sequence[Program[Any]], cancel_after: float | None) -> Sequence[object]:
        return self.portal.call(self.main, programs, cancel_after)

    async def main(self, programs: Sequence[Program[Any]], cancel_after: float | None) -> Sequence[object]:
        results: list[object] = [None] * len(programs)
        first = anyio.CancelScope()

        async def one(number: int, program: Program[Any]) -> None:
            with anyio.CancelScope() if number else first:
                try:
                    results[number] = await self.driver.run(program)
                except Exception as error:  # noqa: BLE001 - it's the result
                    results[number] = error

        async with anyio.create_task_group() as group:
            for number, program in enumerate(programs):
                group.start_soon(one, number, program)
            if cancel_after is not None:
                await anyio.sleep(cancel_after)
                first.cancel()
        return results


def blocking_client(client: Client) -> ProgramRunner:
    driver = BlockingDriver(BlockingHttpOptions(trust_env=False), owner="a check")
    client.bind(driver.runtime)

    def runner(programs: Sequence[Program[Any]], cancel_after: float | None) -> Sequence[object]:
        driver.open()
        try:
            return in_threads(lambda program: driver.run(lambda: program))(programs, cancel_after)
        finally:
            driver.close()

    return runner
