"""https:// to a port that speaks plain HTTP, and the reverse: both sides say so, in words that help."""

import functools
import ssl
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
from anyio.streams.tls import TLSStream

from asap_adapters import TLS, AgentClient, Unreachable, serve
from asap_adapters.cli.echo_agent import ECHO_ID, echo, echo_manifest
from asap_adapters.server.listener import listen
from asap_core import Agent, Policy, StartPolicy
from asap_core.client.delivery import RetryPolicy
from tests.clients import make_client

pytestmark = [pytest.mark.anyio, pytest.mark.live]

TASK = ("task.request", {"skill_id": "echo", "input": {}})
NO_TLS = "it doesn't speak TLS there: use http:// if this is intended"
SPEAKS_TLS = "it speaks TLS there: use https://"


def client(**options) -> AgentClient:
    return make_client(retry=RetryPolicy(retries=0), **{"timeout": 5.0, **options})


async def told(url: str, **options) -> list[Unreachable]:
    """The exceptions of the client for a look-up and for a message."""
    errors = []
    async with client(**options) as ours:
        with pytest.raises(Unreachable) as caught:
            await ours.discover(url)
        errors.append(caught.value)
        with pytest.raises(Unreachable) as caught:
            await ours.send(echo_manifest(ECHO_ID, url), *TASK)
        errors.append(caught.value)
    return errors


@pytest.fixture
def serving():
    @asynccontextmanager
    async def run(*, tls=None):
        bound = await listen("127.0.0.1", 0, tls=tls is not None)
        agent = Agent(echo_manifest(ECHO_ID, bound.url), policy=Policy(peer_limits=(), start=StartPolicy.OPEN))
        async with anyio.create_task_group() as group:
            group.start_soon(functools.partial(serve, agent, {"echo": echo}, at=bound, tls=tls and TLS(*tls)))
            yield bound
            group.cancel_scope.cancel()

    return run


class Peer:
    """Takes connections, and answers the first bytes with these, if any."""

    def __init__(self, says: bytes | None, *, after: float = 0.0) -> None:
        self.says = says
        self.after = after

    async def __call__(self, stream) -> None:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            async with stream:
                await stream.receive()
                await anyio.sleep(self.after)
                if self.says is not None:
                    await stream.send(self.says)
                    with anyio.move_on_after(0.2):
                        await stream.receive()


@pytest.fixture
def told_by():
    async def ask(peer: Peer, scheme: str, **options) -> list[Unreachable]:
        listener: Any = await anyio.create_tcp_listener(local_host="127.0.0.1")
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, peer)
            errors = await told(
                f"{scheme}://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}", **options
            )
            group.cancel_scope.cancel()
        return errors

    return ask


class TestHttpsToAPlainPort:
    async def test_a_server_of_this_library_is_recognised(self, serving) -> None:
        async with serving() as bound:
            for error in await told(bound.url.replace("http://", "https://")):
                assert NO_TLS in str(error)
                assert not error.sent

    @pytest.mark.parametrize("after", [0.0, 0.3])
    async def test_another_plain_server_is_recognised_by_its_early_or_late_response(
        self, told_by, after: float
    ) -> None:
        for says in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"HTTP/1.1 408 Request Timeout\r\n\r\n", b"SSH-2.0-x\r\n"):
            for error in await told_by(Peer(says, after=after), "https"):
                assert NO_TLS in str(error)
                assert not error.sent

    async def test_a_silent_server_counts_as_not_connected(self, told_by) -> None:
        for error in await told_by(Peer(None, after=60), "https", timeout=0.3):
            assert "can't connect within 0.3 s" in str(error)
            assert not error.sent


class TestHttpToAPortThatSpeaksTls:
    async def test_a_server_of_this_library_is_recognised(self, serving, certificate) -> None:
        async with serving(tls=certificate) as bound:
            for error in await told(bound.url.replace("https://", "http://")):
                assert SPEAKS_TLS in str(error)
                assert not error.sent

    async def test_a_server_that_answers_with_a_tls_alert_is_recognised(self, told_by) -> None:
        for error in await told_by(Peer(b"\x15\x03\x01\x00\x02\x02\x28"), "http"):
            assert SPEAKS_TLS in str(error)

    async def test_a_server_that_hangs_up_gets_a_hint_to_use_https(self, told_by) -> None:
        for error in await told_by(Peer(None), "http"):
            assert "if it speaks TLS, use https://" in str(error)
            assert error.sent


class TestCertificates:
    async def test_an_untrusted_certificate_is_named_in_the_error(self, serving, certificate) -> None:
        async with serving(tls=certificate) as bound:
            for error in await told(bound.url):
                assert "its certificate isn't trusted: self-signed certificate" in str(error)
                assert not error.sent

    async def test_a_missing_client_certificate_is_reported_in_plain_words(self, certificate) -> None:
        wants = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        wants.load_cert_chain(*certificate)
        wants.load_verify_locations(certificate[0])
        wants.verify_mode = ssl.CERT_REQUIRED
        trusts = ssl.create_default_context(cafile=certificate[0])
        listener: Any = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)

        async def shake(stream) -> None:
            async with stream:
                try:
                    await TLSStream.wrap(stream, server_side=True, ssl_context=wants)
                except (ssl.SSLError, anyio.BrokenResourceError):
                    pass

        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, shake)
            for error in await told(f"https://localhost:{port}", verify=trusts):
                assert "SSL" not in str(error)
                assert "_ssl.c" not in str(error)
            group.cancel_scope.cancel()
