"""`asap demo`: two agents on this machine are found, called and attacked; each step prints one line.

It's an example of the library: each step uses what users use.
"""

import json
import logging
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import anyio
from attrs import define, evolve, field, frozen

from asap_adapters.cli.command import command, in_event_loop
from asap_adapters.cli.echo_agent import echo, echo_manifest
from asap_adapters.cli.failures import in_words, unwrapped
from asap_adapters.cli.options import backend_option
from asap_adapters.cli.output import say
from asap_adapters.client.agent_client import AgentClient
from asap_adapters.mdns.local_network import Advertiser
from asap_adapters.server.listener import Bound, listen, serve
from asap_adapters.system import LoopClock
from asap_core.admission.policy import Policy
from asap_core.auth.principal import TokenTable
from asap_core.client.delivery import RetryPolicy
from asap_core.client.options import DiscoveryOptions
from asap_core.client.search import Unresolved
from asap_core.clock import Instant
from asap_core.errors import NotAllowed, RemoteError
from asap_core.http.messages import Request
from asap_core.mdns.dnssd import Added
from asap_core.server.agent import Agent
from asap_core.server.exchange import Exchange
from asap_core.wire.codec import to_json
from asap_core.wire.manifest import MANIFEST_PATH, Manifest
from asap_core.wire.registry import make_entry

ALICE: Final = "urn:asap:agent:alice"
GUARDED: Final = "urn:asap:agent:guarded-echo"
MALLORY: Final = "urn:asap:agent:mallory"
OPEN: Final = "urn:asap:agent:open-echo"
# A real token comes from a secret store; this one is valid in this process only.
TOKEN: Final = "demo-token-of-alice"  # noqa: S105
CALLERS: Final = 50
FLOOD: Final = 40
# A refusal is a result of the demo: the client doesn't try again.
ONCE: Final = RetryPolicy(retries=0)
# An announcement takes about one second.
MDNS_SECONDS: Final = 8


@frozen(kw_only=True)
class DemoOptions:
    """The options of `asap demo`."""

    backend: str = backend_option()


@define(eq=False)
class _Stage:
    """What the steps share: two agents, a registry and a client; and which steps failed."""

    guarded: Bound
    open: Bound
    registry: Path
    client: AgentClient
    requests: int = 0
    failed: list[str] = field(factory=list)

    async def run(self, name: str, step: "Step") -> None:
        """Run one step and print its result in one line."""
        try:
            mark, result = "ok", await step(self)
        except Exception as error:  # noqa: BLE001 - the error is printed, and the next step runs
            mark, result = "FAILED", in_words(unwrapped(error))
            self.failed.append(name)
        say(f"{mark:<6}  {name:<22}  {result}")


Step = Callable[[_Stage], Awaitable[str]]


async def _demo(options: DemoOptions) -> int:
    logging.getLogger("asap").setLevel(logging.ERROR)
    began = time.monotonic()
    say(f"two agents on this machine, on {options.backend}")
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(anyio.create_task_group())
        stop = anyio.Event()
        stack.callback(stop.set)
        guarded, unguarded = await listen("127.0.0.1", 0), await listen("127.0.0.1", 0)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        client = await stack.enter_async_context(
            AgentClient(
                ALICE, token=TOKEN, discovery=DiscoveryOptions(registries=[folder / "registry.json"]), retry=ONCE
            )
        )
        stage = _Stage(guarded, unguarded, folder / "registry.json", client)
        await group.start(_serve_guarded, stage, stop)
        await group.start(_serve_open, stage, stop)
        for name, step in STEPS.items():
            await stage.run(name, step)
    seconds = time.monotonic() - began
    outcome = f"all {len(STEPS)} steps as expected" if not stage.failed else f"FAILED: {', '.join(stage.failed)}"
    say(f"{outcome}, in {seconds:.1f} s")
    return 1 if stage.failed else 0


async def _serve_guarded(stage: _Stage, stop: anyio.Event, *, task_status: anyio.abc.TaskStatus[str]) -> None:
    manifest = echo_manifest(GUARDED, stage.guarded.url, auth=True)
    tokens = TokenTable({TOKEN: ALICE})
    agent = Agent(evolve(manifest, name="Guarded Echo"), policy=Policy())
    await serve(agent, {"echo": echo}, authenticate=tokens, at=stage.guarded, stop=stop, task_status=task_status)


async def _serve_open(stage: _Stage, stop: anyio.Event, *, task_status: anyio.abc.TaskStatus[str]) -> None:
    manifest = evolve(echo_manifest(OPEN, stage.open.url), name="Open Echo")

    class Counting(Agent):
        """Counts manifest requests, so that the demo can show how many there were."""

        def open(self, request: Request) -> Exchange:
            stage.requests += request.target == MANIFEST_PATH
            return super().open(request)

    await serve(Counting(manifest, policy=Policy()), {"echo": echo}, at=stage.open, stop=stop, task_status=task_status)


async def _by_url(stage: _Stage) -> str:
    found = await stage.client.look_up(stage.guarded.url, expect=GUARDED)
    again = await stage.client.look_up(stage.guarded.url)
    return f"{found.manifest.id}: first {found.source.value}, then {again.source.value}"


async def _by_registry(stage: _Stage) -> str:
    manifest = echo_manifest(GUARDED, stage.guarded.url)
    entry = to_json(make_entry(manifest, {"http": stage.guarded.url}))
    document = {"version": "1.0", "updated_at": "2026-01-01T00:00:00Z", "agents": [entry, {"id": "not an entry"}]}
    await anyio.Path(stage.registry).write_text(json.dumps(document))
    registry = await stage.client.registry(stage.registry)
    manifest = await stage.client.resolve(GUARDED, wait=0)
    return f"{manifest.id}: {len(registry.agents)} entry verified, {len(registry.skipped)} unreadable one skipped"


async def _by_mdns(stage: _Stage) -> str:
    advertiser = Advertiser(
        agent_id=OPEN,
        name="Open Echo",
        version="1.0.0",
        skills=["echo"],
        manifest_url=stage.open.url + MANIFEST_PATH,
        host=stage.open.host,
        port=stage.open.port,
    )
    with anyio.move_on_after(MDNS_SECONDS):
        async with advertiser, stage.client.browse(interfaces=["127.0.0.1"]) as events:
            async for event in events:
                if isinstance(event, Added) and event.announcement.agent_id == OPEN:
                    manifest = await stage.client.follow(event.announcement)
                    return f"{manifest.id}: announced as {event.announcement.instance}, verified"
    raise AssertionError(f"no announcement within {MDNS_SECONDS} s")


async def _at_once(stage: _Stage) -> str:
    stage.requests = 0
    async with AgentClient(sender=ALICE) as fresh, anyio.create_task_group() as group:
        for _ in range(CALLERS):
            group.start_soon(fresh.discover, stage.open.url)
    if stage.requests != 1:
        raise AssertionError(f"{stage.requests} requests for {CALLERS} callers")
    return f"{CALLERS} callers, 1 request, {CALLERS} manifests"


async def _guarded(stage: _Stage) -> Manifest:
    return await stage.client.discover(stage.guarded.url)


async def _send(stage: _Stage) -> str:
    reply = await stage.client.send(
        await _guarded(stage), "task.request", {"skill_id": "echo", "input": {"text": "hello"}}
    )
    return f"{reply.payload['status']}: {json.dumps(reply.payload['result'])}"


async def _retry(stage: _Stage) -> str:
    payload = {"skill_id": "echo", "input": {"text": "once"}, "conversation_id": "demo"}
    manifest = await _guarded(stage)
    first = await stage.client.send(manifest, "task.request", payload, idempotency_key="demo-key")
    again = await stage.client.send(manifest, "task.request", payload, idempotency_key="demo-key")
    if first.payload["task_id"] != again.payload["task_id"]:
        raise AssertionError("the work was done twice")
    return f"same idempotency key, same answer: {again.payload['task_id']} ran once"


async def _replay(stage: _Stage) -> str:
    manifest = await _guarded(stage)
    payload = {"skill_id": "echo", "input": {}}
    await stage.client.send(manifest, "task.request", payload, nonce="demo-nonce")
    return await _refused(stage.client.send(manifest, "task.request", payload, nonce="demo-nonce"), -32003)


async def _forge(stage: _Stage) -> str:
    payload = {"skill_id": "echo", "input": {}}
    forged = stage.client.send(await _guarded(stage), "task.request", payload, sender=MALLORY)
    return await _refused(forged, -32602)


async def _misaddress(stage: _Stage) -> str:
    manifest = evolve(await _guarded(stage), id="urn:asap:agent:somebody-else")
    return await _refused(stage.client.send(manifest, "task.request", {"skill_id": "echo", "input": {}}), -32060)


async def _no_token(stage: _Stage) -> str:
    async with AgentClient(sender=ALICE, retry=ONCE) as stranger:
        sent = stranger.send(stage.guarded.url, "task.request", {"skill_id": "echo", "input": {}})
        return await _refused(sent, -32600)


async def _forged_entry(stage: _Stage) -> str:
    """Resolve by a registry that lists the URL of one agent under the id of another."""
    entry = to_json(make_entry(echo_manifest(MALLORY, stage.open.url), {"http": stage.open.url}))
    document = json.dumps({"version": "1.0", "updated_at": "2026-01-01T00:00:00Z", "agents": [entry]})
    registry = stage.registry.with_name("forged.json")
    await anyio.Path(registry).write_text(document)
    async with AgentClient(ALICE, discovery=DiscoveryOptions(registries=[registry])) as client:
        end = await client.explain(MALLORY, wait=0)
    if not isinstance(end, Unresolved):
        raise AssertionError("it was accepted")  # noqa: TRY004 - a step that failed
    return f"refused: the URL listed for {MALLORY} {end.trace[-1].why}"


class _FastForward(LoopClock):
    """The loop's clock, `ahead` by some seconds."""

    ahead = 0.0

    def monotonic(self) -> Instant:
        return Instant(super().monotonic() + self.ahead)


async def _registry_down(_stage: _Stage) -> str:
    """Let an hour pass for the client, after its registry has gone."""
    document = b'{"version":"1.0","updated_at":"2026-01-01T00:00:00Z","agents":[]}'
    answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(document), document)

    async def serve_once(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(answer)

    clock = _FastForward()
    async with AgentClient(sender=ALICE, clock=clock) as client:
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as group,
        ):
            url = f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}/registry.json"  # noqa: S610 - anyio's
            group.start_soon(listener.serve, serve_once)
            first = await client.registry(url)
            group.cancel_scope.cancel()
        clock.ahead = 3_600
        again = await client.registry(url)
    if again is not first:
        raise AssertionError("another registry was returned")
    return "an hour later it doesn't answer: the cached copy is used"


async def _internal_address(stage: _Stage) -> str:
    try:
        await stage.client.discover("https://169.254.169.254")  # where clouds keep credentials
    except NotAllowed as error:
        return f"refused: {error.url}: {error.reason}"
    raise AssertionError("the request was sent")


async def _flood(stage: _Stage) -> str:
    manifest = await stage.client.discover(stage.open.url)
    passed, limited = 0, 0
    for _ in range(FLOOD):
        try:
            await stage.client.send(manifest, "task.request", {"skill_id": "echo", "input": {}})
            passed += 1
        except RemoteError as error:
            limited += error.status == 429  # noqa: PLR2004 - RFC 6585 §4
    if not limited or not passed:
        raise AssertionError(f"{passed} passed, {limited} limited")
    return f"{FLOOD} requests: {passed} answered, {limited} limited (HTTP 429)"


async def _refused(call: Awaitable[object], code: int) -> str:
    try:
        await call
    except RemoteError as error:
        if error.code != code:
            raise
        return f"refused: {error.message} [{error.code} {error.taxonomy}]"
    raise AssertionError("it was accepted")


STEPS: Final[dict[str, Step]] = {
    "discover by URL": _by_url,
    "discover by registry": _by_registry,
    "discover by mDNS": _by_mdns,
    f"{CALLERS} at once": _at_once,
    "send": _send,
    "retry": _retry,
    "replay": _replay,
    "forged sender": _forge,
    "wrong recipient": _misaddress,
    "no token": _no_token,
    "forged registry entry": _forged_entry,
    "registry down": _registry_down,
    "internal address": _internal_address,
    "flood": _flood,
}

COMMANDS: Final = (
    command(
        "demo",
        DemoOptions,
        in_event_loop(_demo),
        "show two agents on this machine: found, called and attacked, in about a dozen lines",
    ),
)
