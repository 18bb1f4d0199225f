"""Our client against the reference's server, on both backends: the same script as theirs against ours."""

import time
from typing import Any

import anyio
import pytest

from asap_adapters import AgentClient
from asap_adapters.system import new_id
from asap_core import Envelope, RemoteError
from tests.clients import make_client

pytestmark = [pytest.mark.interop, pytest.mark.anyio]

AGENT = "urn:asap:agent:reference-server"
ME = "urn:asap:agent:our-client"
ECHO = {"skill_id": "echo", "input": {"text": "hi"}}


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request):
    return request.param


@pytest.fixture(params=[None, "t"], ids=["open", "with-token"])
def served(request, reference_server):
    """The reference's server, open and with tokens: its base URL, and what our client needs to speak with it."""
    token = request.param
    return (reference_server() if token is None else reference_server(token, ME)), {"sender": ME, "token": token}


async def test_our_client_completes_the_whole_script(served) -> None:
    base, options = served
    async with make_client(**options) as client:
        manifest = await client.discover(base, expect=AGENT)
        assert (await client.get_manifest(f"{base}/.well-known/asap/manifest.json")) is manifest
        assert (await client.health_check(base)).healthy
        reply = await client.send(manifest, "task.request", ECHO)
        assert reply.payload["result"] == {"echoed": {"text": "hi"}}
        reply = await client.send(manifest, "task.request", {"skill_id": "echo", "input": {"text": "x" * 50_000}})
        assert len(reply.payload["result"]["echoed"]["text"]) == 50_000
        outcomes = await client.send_batch(manifest, [("task.request", ECHO)] * 5)
        assert [type(outcome) for outcome in outcomes] == [Envelope] * 5
        replies = []

        async def one() -> None:
            replies.append(await client.send(manifest, "task.request", ECHO))

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(one)
        assert len({reply.correlation_id for reply in replies}) == 20


async def test_refusals_of_the_reference_are_read(served) -> None:
    base, options = served
    async with make_client(**options) as client:
        manifest = await client.discover(base)
        nonce = new_id()
        await client.send(manifest, "task.request", ECHO, nonce=nonce)
        with pytest.raises(RemoteError) as caught:
            await client.send(manifest, "task.request", ECHO, nonce=nonce)
        assert (caught.value.code, caught.value.taxonomy) == (-32003, "asap:protocol/invalid_nonce")
        with pytest.raises(RemoteError) as caught:
            await client.send(manifest, "no.such.type", {"a": 1})
        assert (caught.value.code, caught.value.taxonomy) == (-32012, "asap:transport/handler_not_found")
        fresh = Envelope.new(
            sender=ME, recipient=AGENT, payload_type="task.request",
            payload={"conversation_id": "c", **ECHO}, ids=lambda: "old", wall=time.time() - 3600,  # type: ignore[arg-type]
        )  # fmt: skip
        with pytest.raises(RemoteError) as caught:
            await client.post(manifest, fresh)
        assert (caught.value.code, caught.value.recoverable) == (-32002, True)


async def test_a_token_authenticates_at_the_reference(reference_server) -> None:
    base = reference_server("t", ME)
    async with AgentClient(sender=ME, token="t") as client:
        assert (await client.send(base, "task.request", ECHO)).payload["status"] == "completed"
        with pytest.raises(RemoteError, match="Sender does not match"):
            await client.send(base, "task.request", ECHO, sender="urn:asap:agent:mallory")
    async with AgentClient(sender=ME) as client:
        manifest: Any = await client.discover(base)
        assert manifest.auth.schemes == ("bearer",)
        with pytest.raises(RemoteError, match="Authentication required"):
            await client.send(manifest, "task.request", ECHO)


async def test_the_manifest_of_the_reference_is_revalidated_by_its_etag(reference_server) -> None:
    base = reference_server()
    async with AgentClient(sender=ME) as client:
        first = await client.look_up(base)
        again = await client._driver.run(client._client._discovery._manifests.find(first.url, cool_down=0))
        assert (again.source.value, again.document.manifest) == ("revalidated", first.manifest)
