"""Tests of docs/drivers/pyodide_driver.py, which test_pyodide.py runs in Pyodide. Prints what came of each, as JSON.

`listen` is from pyodide_driver.mjs.
"""

import asyncio
import json
import secrets
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any

import js
from pyodide.ffi import create_proxy
from pyodide_driver import CLOCK, PageAgent, PageClient, js_object

from asap_core import (
    Agent,
    Capabilities,
    Dispatch,
    Endpoints,
    Manifest,
    NotAllowed,
    Payload,
    Registry,
    RegistryEntry,
    RemoteError,
    Skill,
    TaskResponse,
    TaskStatus,
    TimedOut,
    Unreachable,
    to_json,
)
from asap_core.client import Client, DiscoveryOptions, RequestOptions, RetryPolicy

listen: Callable[[object], Awaitable[str]] = js.undefined  # set by who runs this
URN = "urn:asap:agent:echo"
MANIFEST = "/.well-known/asap/manifest.json"


class Page:
    """The echo agent, and a registry that lists it, at `url`. `open`: cleared, manifests aren't answered."""

    async def start(self) -> "Page":
        self.hits, self.ran = Counter[str](), 0
        self.open, self.arrived = asyncio.Event(), asyncio.Event()
        self.open.set()
        self.url = await listen(create_proxy(self.respond))
        manifest = Manifest(
            id=URN,
            name="Echo",
            version="1.0.0",
            description="Echoes task input",
            capabilities=Capabilities(skills=[Skill(id="echo", description="Echo back the input")]),
            endpoints=Endpoints(asap=f"{self.url}/asap"),
        )
        agent = Agent(manifest).bind(clock=CLOCK, ids=lambda: secrets.token_hex(16), key=secrets.token_bytes(32))
        self.page = PageAgent(agent, self.handle)
        return self

    async def handle(self, call: Dispatch) -> Payload:
        self.ran += 1
        given: dict[str, Any] = call.request.input  # type: ignore[union-attr]
        if "fail" in given:
            raise ValueError("secret")
        await asyncio.sleep(given.get("seconds", 0))
        return TaskResponse(task_id=secrets.token_hex(8), status=TaskStatus.COMPLETED, result=given)

    async def respond(self, asked: Any) -> Any:
        path = asked.url.removeprefix(self.url)
        self.hits[path] += 1
        if path == "/registry.json":
            return js.Response.new(json.dumps(self.registry()))
        if path == "/moved":
            return js.Response.new(None, js_object(status=302, headers={"location": f"{self.url}{MANIFEST}"}))
        if path == MANIFEST:
            self.arrived.set()
            await self.open.wait()
        return await self.page.respond(asked)

    def registry(self) -> Any:
        entry = RegistryEntry(
            id=URN,
            name="Echo",
            description="Echoes task input",
            endpoints={"http": f"{self.url}/asap", "manifest": f"{self.url}{MANIFEST}"},
            skills=["echo"],
            asap_version="0.1",
        )
        return to_json(Registry(version="1.0", updated_at="2026-01-01T00:00:00Z", agents=[entry]))


def client(**options: Any) -> PageClient:
    return PageClient(Client("urn:asap:agent:page", retry=RetryPolicy(retries=0), **options))


def task(**given: object) -> dict[str, object]:
    return {"skill_id": "echo", "input": given}


async def the_core_runs_without_msgspec(page: Page) -> None:
    assert find_spec("msgspec") is None


async def twenty_callers_make_one_request(page: Page) -> None:
    mine = client()
    found = await asyncio.gather(*(mine.run(mine.client.discover(page.url, expect=URN)) for _ in range(20)))
    assert len({id(manifest) for manifest in found}) == 1
    assert page.hits == {MANIFEST: 1}, page.hits


async def another_caller_takes_over_from_a_cancelled_leader(page: Page) -> None:
    page.open.clear()
    mine = client()
    leader, *others = [asyncio.ensure_future(mine.run(mine.client.discover(page.url))) for _ in range(20)]
    await page.arrived.wait()
    leader.cancel()
    page.open.set()
    assert {manifest.id for manifest in await asyncio.gather(*others)} == {URN}
    assert page.hits == {MANIFEST: 2}, page.hits


async def a_task_is_sent_and_a_replay_refused(page: Page) -> None:
    mine = client()
    reply = await mine.run(mine.client.send(page.url, "task.request", task(text="ü"), nonce="once"))
    assert reply.payload["result"] == {"text": "ü"}
    error = await refused(mine.run(mine.client.send(page.url, "task.request", task(), nonce="once")), RemoteError)
    assert "nonce" in str(error)


async def three_retries_at_once_are_answered_by_one_run(page: Page) -> None:
    mine = client()
    manifest = await mine.run(mine.client.discover(page.url))
    sends = [mine.client.send(manifest, "task.request", task(seconds=0.1), idempotency_key="k") for _ in range(3)]
    replies = await asyncio.gather(*map(mine.run, sends))
    assert len({reply.payload["task_id"] for reply in replies}) == page.ran == 1


async def a_handler_that_fails_is_answered_by_an_error(page: Page) -> None:
    mine = client()
    error = await refused(mine.run(mine.client.send(page.url, "task.request", task(fail=True))), RemoteError)
    assert "secret" not in str(error)


async def an_agent_is_found_in_a_registry(page: Page) -> None:
    mine = client(discovery=DiscoveryOptions(registries=[f"{page.url}/registry.json"]))
    assert (await mine.run(mine.client.resolve(URN))).id == URN


async def a_request_ends_at_its_time_limit(page: Page) -> None:
    page.open.clear()
    mine = client(http=RequestOptions(timeout=0.2))
    await refused(mine.run(mine.client.discover(page.url)), TimedOut)
    page.open.set()


async def a_redirect_is_not_followed(page: Page) -> None:
    mine = client()
    await refused(mine.run(mine.client.get_document(f"{page.url}/moved")), Unreachable)
    assert page.hits == {"/moved": 1}, page.hits


async def a_private_address_in_a_url_is_not_requested(page: Page) -> None:
    mine = client()
    await refused(mine.run(mine.client.discover("https://10.0.0.1")), NotAllowed)


async def refused(run: Awaitable[object], kind: type[Exception]) -> Exception:
    try:
        await run
    except kind as error:
        return error
    raise AssertionError("nothing was raised")


TESTS = (
    the_core_runs_without_msgspec,
    twenty_callers_make_one_request,
    another_caller_takes_over_from_a_cancelled_leader,
    a_task_is_sent_and_a_replay_refused,
    three_retries_at_once_are_answered_by_one_run,
    a_handler_that_fails_is_answered_by_an_error,
    an_agent_is_found_in_a_registry,
    a_request_ends_at_its_time_limit,
    a_redirect_is_not_followed,
    a_private_address_in_a_url_is_not_requested,
)


async def main() -> None:
    outcomes = {}
    for test in TESTS:
        try:
            async with asyncio.timeout(20):
                await test(await Page().start())
            outcomes[test.__name__] = "passed"
        except Exception:  # noqa: BLE001 - it's reported
            outcomes[test.__name__] = traceback.format_exc()
    print(json.dumps(outcomes))
