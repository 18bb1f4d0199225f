"""Answers of gateways and providers, over real sockets: a message is sent again if that's safe."""

import time
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from asap_adapters import AgentClient, AsapError, BadReply, RemoteError, serve
from asap_adapters.auth import IntrospectionAuthenticator, IntrospectionUnavailable
from asap_adapters.cli.echo_agent import echo_manifest
from asap_adapters.server.listener import listen
from asap_core import Agent, Authenticated, Policy, StartPolicy
from asap_core.auth.claims import BySubject
from asap_core.auth.client_credentials import ClientSecret
from asap_core.auth.introspection_response import IntrospectionPolicy
from asap_core.auth.principal import Credential
from asap_core.client.delivery import RetryPolicy
from asap_core.wire.json import write_json

pytestmark = [pytest.mark.anyio, pytest.mark.live]

ME = "urn:asap:agent:me"
ASK = {"skill_id": "echo", "input": {}}


async def read_request(stream) -> bytes:
    """One request, whole."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive()
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += await stream.receive()
    return head + b"\r\n\r\n" + body


def answer(status: int, body: bytes, *fields: bytes) -> bytes:
    head = b"\r\n".join(
        [b"HTTP/1.1 %d Said" % status, b"content-length: %d" % len(body), b"connection: close", *fields]
    )
    return head + b"\r\n\r\n" + body


@asynccontextmanager
async def listening(serve_one):
    listener: Any = await anyio.create_tcp_listener(local_host="127.0.0.1")

    async def handle(stream) -> None:
        async with stream:
            try:
                await serve_one(stream)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, handle)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        group.cancel_scope.cancel()


@asynccontextmanager
async def gateway(answers: list[bytes], *, passes_on: bool):
    """An echo agent behind a gateway, which has these answers for the first messages, passed on or not.

    Yields its URL, when messages came to it, and which the agent ran.
    """
    came: list[float] = []
    ran: list[Any] = []
    inner: Any = {}

    async def through(request: bytes) -> bytes:
        async with await anyio.connect_tcp("127.0.0.1", inner["port"]) as stream:
            await stream.send(request.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
            data = b""
            try:
                while True:
                    data += await stream.receive()
            except anyio.EndOfStream:
                return data

    async def one(stream) -> None:
        request = await read_request(stream)
        if not request.startswith(b"POST"):
            await stream.send(await through(request))
            return
        came.append(time.monotonic())
        said = answers.pop(0) if answers else None
        real = await through(request) if said is None or passes_on else b""
        await stream.send(said or real)

    def echo(request, _context):
        ran.append(request)
        return {"ran": len(ran)}

    bound = await listen("127.0.0.1", 0)
    inner["port"] = bound.port
    async with listening(one) as port, anyio.create_task_group() as group:
        manifest = echo_manifest("urn:asap:agent:echo", f"http://127.0.0.1:{port}")
        agent = Agent(manifest, policy=Policy(start=StartPolicy.OPEN, peer_limits=()))

        async def main(*, task_status) -> None:
            await serve(agent, {"echo": echo}, at=bound, task_status=task_status)

        await group.start(main)
        yield f"http://127.0.0.1:{port}", came, ran
        group.cancel_scope.cancel()


PAGE = b"<html><body><h1>Sorry</h1></body></html>"
DETAIL = write_json({"detail": "upstream request timeout"})


async def sending(url: str, **options):
    """The result of `send`, or its exception."""
    retry = RetryPolicy(first_delay=0.05)
    async with AgentClient(sender=ME, retry=retry) as client:
        try:
            return (await client.send(url, "task.request", ASK, **options)).payload["result"]
        except AsapError as error:
            return error


class TestAMessage:
    @pytest.mark.parametrize(("status", "body"), [(502, PAGE), (503, DETAIL), (504, b"")])
    async def test_a_message_that_a_gateway_passed_on_is_resent_under_a_key_and_done_once(self, status, body) -> None:
        async with gateway([answer(status, body)] * 2, passes_on=True) as (url, came, ran):
            assert await sending(url, idempotency_key="k") == {"ran": 1}
            assert (len(came), len(ran)) == (3, 1)

    @pytest.mark.parametrize(("status", "body"), [(502, PAGE), (503, DETAIL), (504, b"")])
    async def test_without_a_key_a_message_is_sent_once(self, status, body) -> None:
        async with gateway([answer(status, body)] * 2, passes_on=True) as (url, came, ran):
            assert isinstance(await sending(url), BadReply | RemoteError)
            assert (len(came), len(ran)) == (1, 1)

    @pytest.mark.parametrize("body", [PAGE, DETAIL, b""])
    async def test_a_message_over_a_limit_waits_for_retry_after(self, body) -> None:
        async with gateway([answer(429, body, b"retry-after: 1")], passes_on=False) as (url, came, ran):
            assert await sending(url) == {"ran": 1}
            assert (len(came), len(ran)) == (2, 1)
            assert came[1] - came[0] >= 1


async def test_failures_for_an_unknown_token_do_not_affect_other_clients() -> None:
    """A provider that answers an odd token with 400, 500 or a page, and all others as it should."""
    odd = {b"odd-400": answer(400, b""), b"odd-500": answer(500, PAGE), b"odd-200": answer(200, PAGE)}

    async def provider(stream) -> None:
        request = await read_request(stream)
        said = next((said for name, said in odd.items() if name in request), None)
        known = {"active": True, "sub": "7", "exp": int(time.time()) + 300}
        await stream.send(said or answer(200, write_json(known if b"token=good" in request else {"active": False})))

    async with listening(provider) as port:
        policy = IntrospectionPolicy(audience=None, agent=BySubject({"7": ME}))
        client, endpoint = ClientSecret("c", "s"), f"http://127.0.0.1:{port}/introspect"
        async with IntrospectionAuthenticator(policy, client, endpoint=endpoint) as asking:
            assert await asking.verify(Credential("unknown")) is None
            for number in range(5):
                for name in odd:
                    with pytest.raises(IntrospectionUnavailable):
                        await asking.verify(Credential(f"{name.decode()}-{number}"))
                assert await asking.verify(Credential(f"good{number}")) == Authenticated(ME)
