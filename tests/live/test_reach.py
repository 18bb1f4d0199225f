"""The client among hostile servers, certificates and proxies: real sockets, on the real clock."""

import gzip
import logging
import socket
import ssl
import struct
import subprocess
import time
from contextlib import asynccontextmanager, suppress
from threading import Thread
from typing import Any

import anyio
import anyio.lowlevel
import brotli
import pytest
from anyio.streams.tls import TLSListener

from asap_adapters import AgentClient, BadReply, NotAllowed, RemoteError, TimedOut, Unreachable
from asap_adapters.cli.echo_agent import echo_manifest
from asap_core.client.delivery import RetryPolicy
from asap_core.client.fetch_results import Source
from asap_core.server.wellknown import publish
from tests.clients import make_client

pytestmark = [pytest.mark.anyio, pytest.mark.live]

SECRET = "hunter2"
PATH = "/.well-known/asap/manifest.json"
# Nothing here takes that long, unless it hangs.
SECONDS = 60


class Names:
    """A resolver that says that every name is this machine, and notes what it was asked."""

    def __init__(self, *answer: str) -> None:
        self.answer = list(answer) or ["127.0.0.1"]
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int):
        self.asked.append(host)
        return self.answer


def client(**options) -> AgentClient:
    return make_client(retry=RetryPolicy(retries=0), **{"timeout": SECONDS, **options})


@asynccontextmanager
async def server(answer, tls=None):
    """Serve `answer(stream, head)` for each request's head; yields the port, and the heads."""
    heads: list[bytes] = []
    listener: Any = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    listener = listener if tls is None else TLSListener(listener, tls, standard_compatible=False)

    async def serve(stream) -> None:
        try:
            async with stream:
                while True:
                    head = b""
                    while b"\r\n\r\n" not in head:
                        head += await stream.receive()
                    heads.append(head)
                    await answer(stream, head)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError):
            pass

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield port, heads
        group.cancel_scope.cancel()


def saying(data: bytes):
    async def answer(stream, _head: bytes) -> None:
        await stream.send(data)
        await stream.aclose()

    return answer


def dripping(begin: bytes, drop: bytes, pause: float = 0.02):
    async def answer(stream, _head: bytes) -> None:
        await stream.send(begin)
        while True:
            await stream.send(drop)
            await anyio.sleep(pause)

    return answer


def with_body(body: bytes, *fields: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"\r\n".join([b"HTTP/1.1 " + status, b"content-length: %d" % len(body), *fields])
    return head + b"\r\n\r\n" + body


OK = b"HTTP/1.1 200 OK\r\n"


# Made when it's needed: not by each process that only collects tests. 200 KB as gzip, some 150 bytes as brotli.
def gzip_bomb():
    return with_body(gzip.compress(bytes(200_000_000)), b"content-encoding: gzip")


def brotli_bomb():
    return with_body(brotli.compress(bytes(200_000_000), quality=1), b"content-encoding: br")


class TestHostileServers:
    @pytest.mark.parametrize(
        ("data", "says"),
        [
            (OK + b"x: y\r\n" * 101 + b"\r\n", "at most 100 header fields"),
            (OK + (b"x: " + b"y" * 30_000 + b"\r\n") * 3 + b"content-length: 0\r\n\r\n", "at most 100 header fields"),
            (OK + b"x: " + b"y" * 1_000_000, "isn't an HTTP answer"),
            (OK + b"x" * 1_000_000, "isn't an HTTP answer"),
            (b"\r\n" * 100_000, "isn't an HTTP answer"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "isn't an HTTP answer"),
            (b"", "isn't an HTTP answer"),
            (OK + b"content-length: 10\r\n\r\nx", "isn't an HTTP answer, or ended early"),
            (OK + b"content-length: 10\r\ncontent-length: 11\r\n\r\nx", "isn't an HTTP answer"),
            (OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n", "isn't an HTTP answer"),
            (OK + b"transfer-encoding: chunked\r\n\r\n1;" + b"x" * 1_000_000, "isn't an HTTP answer"),
            (OK + b"content-length: 999999999999\r\n\r\n" + bytes(2_000_000), "at most 1048576 bytes"),
            (OK + b"\r\n" + bytes(2_000_000), "at most 1048576 bytes"),
            (gzip_bomb, "at most 1048576 bytes"),
            (brotli_bomb, "at most 1048576 bytes"),
            (with_body(b"{}", b"content-encoding: zstd"), "expected a body in gzip, br, or plain"),
            (with_body(b"nonsense", b"content-encoding: gzip"), "gzip"),
        ],
        ids=[
            "many-fields", "large-fields", "endless-value", "endless-name", "endless-lines", "ssh", "nothing", "short",
            "two-lengths", "bad-chunk", "endless-extension", "long-by-length", "long-to-the-end", "gzip-bomb",
            "brotli-bomb", "unknown-coding", "no-gzip",
        ],
    )  # fmt: skip
    async def test_a_hostile_response_is_an_error_within_the_timeout(self, data, says) -> None:
        response = data() if callable(data) else data
        async with server(saying(response)) as (port, _), client() as ours:
            with pytest.raises((BadReply, Unreachable), match=says) as caught:
                await ours.discover(f"http://127.0.0.1:{port}")
        assert not isinstance(caught.value, TimedOut)

    @pytest.mark.parametrize(
        ("begin", "drop"),
        [
            (b"", b"H"),
            (OK, b"x: y\r\n"),
            (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
            (OK + b"content-length: 100000\r\n\r\n", b"x"),
            (OK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
            (OK + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n", b""),
        ],
        ids=["status-line", "fields", "1xx", "body", "chunks", "silence"],
    )
    async def test_a_slow_response_ends_at_the_timeout(self, begin, drop) -> None:
        async with server(dripping(begin, drop)) as (port, _), client(timeout=0.5) as ours:
            began = time.monotonic()
            with pytest.raises((TimedOut, Unreachable)):
                await ours.discover(f"http://127.0.0.1:{port}")
            assert time.monotonic() - began < SECONDS

    async def test_a_flood_of_interim_responses_ends_at_the_timeout(self) -> None:
        flood = dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000, pause=0)
        async with server(flood) as (port, _), client(timeout=0.5) as ours:
            began = time.monotonic()
            with pytest.raises(TimedOut):
                await ours.discover(f"http://127.0.0.1:{port}")
            assert time.monotonic() - began < SECONDS

    @pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
    async def test_a_server_that_resets_at_once_is_unreachable(self, name: str) -> None:
        listening = socket.create_server(("127.0.0.1", 0), backlog=100)

        def reset() -> None:
            with suppress(OSError):
                while True:
                    taken = listening.accept()[0]
                    taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    taken.close()

        async def dawdle() -> None:
            """So that the loop looks when the connection is there and gone."""
            while True:
                time.sleep(0.002)  # noqa: ASYNC251 - it's meant to hold the loop up
                await anyio.lowlevel.checkpoint()

        thread = Thread(target=reset)
        thread.start()
        try:
            async with client() as ours, anyio.create_task_group() as group:
                group.start_soon(dawdle)
                for _ in range(20):
                    url = f"http://{name}:{listening.getsockname()[1]}"
                    ours.forget(url)
                    with pytest.raises(Unreachable):
                        await ours.discover(url)
                group.cancel_scope.cancel()
        finally:
            with socket.create_connection(listening.getsockname()):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()
            thread.join()

    async def test_cookies_are_not_kept(self) -> None:
        answer = with_body(b"{}", b"set-cookie: id=%s" % SECRET.encode(), status=b"404 Not Found")
        async with server(saying(answer)) as (port, heads), client() as ours:
            for path in ("a", "b"):
                with pytest.raises(BadReply):
                    await ours.get_manifest(f"http://127.0.0.1:{port}/{path}")
        assert len(heads) == 2
        assert b"cookie" not in b"".join(heads).lower()


MANIFEST = publish(echo_manifest("urn:asap:agent:echo", "http://127.0.0.1:1"))
UNREADABLE = {
    "gzip without a body": with_body(b"", b"content-encoding: gzip", status=b"%s"),
    "no gzip": with_body(b"nonsense", b"content-encoding: gzip", status=b"%s"),
    "a br cut off": with_body(brotli.compress(b"x" * 999)[:-3], b"content-encoding: br", status=b"%s"),
    "a coding nobody knows": with_body(b"x", b"content-encoding: aes128gcm, zstd", status=b"%s"),
    "too large": b"HTTP/1.1 %s\r\ncontent-length: 99999999\r\n\r\n" + bytes(200_000),
    "a bomb": with_body(gzip.compress(bytes(20_000_000)), b"content-encoding: gzip", status=b"%s"),
    "cut off": b"HTTP/1.1 %s\r\ncontent-length: 10\r\n\r\nx",
}


def in_turn(*answers: bytes):
    left = list(answers)

    async def answer(stream, _head: bytes) -> None:
        data = left.pop(0) if len(left) > 1 else left[0]
        await stream.send(data)
        if data.endswith(b"\nx") or len(data) > 100_000:  # it's cut off there
            await stream.aclose()

    return answer


class TestResponsesWithoutADocument:
    """If the status decides what a response means, its body doesn't matter."""

    async def test_the_content_encoding_of_a_304_is_ignored(self) -> None:
        kept = with_body(MANIFEST, b'etag: "1"', b"cache-control: max-age=0")
        valid = b'HTTP/1.1 304 Not Modified\r\ncontent-encoding: gzip\r\netag: "1"\r\ncache-control: max-age=0\r\n\r\n'
        async with server(in_turn(kept, valid)) as (port, heads), client() as ours:
            found = [await ours.look_up(f"http://127.0.0.1:{port}") for _ in range(3)]
        assert [each.source for each in found] == [Source.FETCHED, Source.REVALIDATED, Source.REVALIDATED]
        assert len(heads) == 3

    @pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
    async def test_a_503_lets_the_stale_document_serve(self, body) -> None:
        kept = with_body(MANIFEST, b"cache-control: max-age=0")
        async with server(in_turn(kept, body.replace(b"%s", b"503 Busy"))) as (port, _), client() as ours:
            await ours.discover(f"http://127.0.0.1:{port}")
            assert (await ours.look_up(f"http://127.0.0.1:{port}")).source is Source.STALE_ERROR

    @pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
    async def test_a_404_removes_the_cached_document(self, body) -> None:
        kept = with_body(MANIFEST, b"cache-control: max-age=0")
        async with server(in_turn(kept, body.replace(b"%s", b"404 Gone"))) as (port, _), client() as ours:
            await ours.discover(f"http://127.0.0.1:{port}")
            for _ in range(2):
                with pytest.raises(BadReply, match="expected the document") as caught:
                    await ours.discover(f"http://127.0.0.1:{port}")
                assert (caught.value.status, caught.value.kept_age) == (404, None)

    @pytest.mark.parametrize("status", [401, 429, 503])
    @pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
    async def test_a_message_answered_with_that_status_raises_an_error(self, body, status: int) -> None:
        async with server(in_turn(body.replace(b"%s", b"%d No" % status))) as (port, _), client() as ours:
            manifest = echo_manifest("urn:asap:agent:echo", f"http://127.0.0.1:{port}")
            with pytest.raises((BadReply, RemoteError)) as caught:
                await ours.send(manifest, "task.request", {"skill_id": "echo", "input": {}})
        assert getattr(caught.value, "status", None) == status

    async def test_an_endless_body_of_an_error_is_not_waited_for(self) -> None:
        kept = with_body(MANIFEST, b"cache-control: max-age=0")
        endless = b"HTTP/1.1 503 Busy\r\ncontent-length: 10\r\n\r\n"
        async with server(in_turn(kept, endless)) as (port, _), client(timeout=2 * SECONDS) as ours:
            await ours.discover(f"http://127.0.0.1:{port}")
            began = time.monotonic()
            assert (await ours.look_up(f"http://127.0.0.1:{port}")).source is Source.STALE_ERROR
        assert time.monotonic() - began < SECONDS

    @pytest.mark.parametrize("coding", ["gzip", "x-gzip", "X-GZip", "gzip, identity", "identity"])
    @pytest.mark.parametrize("padding", [0, 1, 60_000])
    async def test_gzip_is_read_by_both_its_names_and_with_padding(self, coding: str, padding: int) -> None:
        coded = MANIFEST if coding == "identity" else gzip.compress(MANIFEST) + bytes(padding)
        answer = saying(with_body(coded, b"content-encoding: " + coding.encode()))
        async with server(answer) as (port, _), client() as ours:
            assert (await ours.discover(f"http://127.0.0.1:{port}")).name

    async def test_the_padding_after_gzip_is_bounded(self) -> None:
        coded = gzip.compress(MANIFEST) + bytes(70_000)
        async with server(saying(with_body(coded, b"content-encoding: gzip"))) as (port, _), client() as ours:
            with pytest.raises(BadReply, match="at most 65536 zero bytes"):
                await ours.discover(f"http://127.0.0.1:{port}")


class TestRedirects:
    async def test_a_redirect_to_the_metadata_service_is_not_followed(self) -> None:
        there = with_body(b"", b"location: http://169.254.169.254/latest/meta-data", status=b"302 Found")
        async with server(saying(there)) as (port, heads), client(redirects=2) as ours:
            with pytest.raises(BadReply, match=r"redirects to http://169\.254\.169\.254:80/latest/meta-data;"):
                await ours.discover(f"http://127.0.0.1:{port}")
        assert len(heads) == 1

    async def test_a_redirect_within_the_origin_is_followed_if_allowed(self) -> None:
        async def answer(stream, head: bytes) -> None:
            port = stream.extra(anyio.abc.SocketAttribute.local_port)
            if PATH.encode() in head:
                await stream.send(with_body(b"", b"location: /moved", status=b"308 Permanent Redirect"))
            else:
                await stream.send(with_body(publish(echo_manifest("urn:asap:agent:a", f"http://127.0.0.1:{port}"))))

        async with server(answer) as (port, heads), client(redirects=1) as ours, client() as other:
            assert (await ours.discover(f"http://127.0.0.1:{port}")).id == "urn:asap:agent:a"
            with pytest.raises(BadReply, match="redirects aren't followed; allow it with redirects=2"):
                await other.discover(f"http://127.0.0.1:{port}")
        assert [head.split()[1] for head in heads] == [PATH.encode(), b"/moved", PATH.encode()]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for agent.example and for 127.0.0.2, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    names = "subjectAltName=DNS:agent.example,IP:127.0.0.2"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=agent.example", "-addext", names],
        cwd=folder, capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("openssl, which makes the certificate, isn't installed")
    return folder / "cert.pem", folder / "key.pem"


class TestTls:
    @pytest.fixture
    def trusted(self, certificate):
        return ssl.create_default_context(cafile=str(certificate[0]))

    @pytest.fixture
    def serving(self, certificate):
        """Serve a manifest over TLS; yields the port, the heads, and the names asked for in TLS."""

        @asynccontextmanager
        async def run():
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*certificate)
            names: list[Any] = []
            context.sni_callback = lambda _socket, name, _context: names.append(name)
            manifest = publish(echo_manifest("urn:asap:agent:a", "https://agent.example"))
            async with server(saying(with_body(manifest)), tls=context) as (port, heads):
                yield port, heads, names

        return run

    @pytest.mark.parametrize("host", ["agent.example", "AGENT.example", "agent.example."])
    async def test_the_server_name_of_tls_is_the_host_of_the_url(self, serving, trusted, host) -> None:
        names = Names("127.0.0.1")
        options = {"verify": trusted, "resolver": names, "allow_networks": ["127.0.0.0/8"]}
        async with serving() as (port, heads, asked_for), client(**options) as ours:
            assert (await ours.discover(f"https://{host}:{port}")).id == "urn:asap:agent:a"
        assert asked_for == ["agent.example"]
        assert f"Host: {host.lower()}:{port}\r\n".encode() in heads[0]

    @pytest.mark.parametrize("url", ["https://other.example", "https://127.0.0.1"])
    async def test_a_certificate_for_another_name_is_not_trusted(self, serving, trusted, url) -> None:
        options = {"verify": trusted, "resolver": Names("127.0.0.1"), "allow_networks": ["127.0.0.0/8"]}
        async with serving() as (port, heads, _), client(**options) as ours:
            with pytest.raises(Unreachable, match=r"its certificate isn't trusted: (Hostname|IP address) mismatch"):
                await ours.discover(f"{url}:{port}")
        assert heads == []

    async def test_no_connection_is_made_to_a_name_that_resolves_to_a_private_address(self, serving, trusted) -> None:
        options = {"verify": trusted, "resolver": Names("127.0.0.1")}
        async with serving() as (port, heads, asked_for), client(**options) as ours:
            with pytest.raises(NotAllowed, match="name this machine localhost"):
                await ours.discover(f"https://agent.example:{port}")
        assert (heads, asked_for) == ([], [])

    async def test_a_certificate_of_an_unknown_authority_is_not_trusted(self, serving) -> None:
        options = {"resolver": Names("127.0.0.1"), "allow_networks": ["127.0.0.0/8"]}
        async with serving() as (port, _, _), client(**options) as ours:
            with pytest.raises(Unreachable, match="its certificate isn't trusted: self-signed"):
                await ours.discover(f"https://agent.example:{port}")

    async def test_a_server_without_tls_is_an_error(self, trusted) -> None:
        async with server(saying(with_body(b"{}"))) as (port, _), client(verify=trusted, timeout=1.0) as ours:
            with pytest.raises(Unreachable):
                await ours.discover(f"https://127.0.0.1:{port}")


class TestProxies:
    async def test_proxies_of_the_environment_are_used_if_trust_env_is_set(self, monkeypatch) -> None:
        manifest = publish(echo_manifest("urn:asap:agent:a", "http://agent.lan"))
        names = Names()
        async with server(saying(with_body(manifest))) as (port, heads):
            for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
                monkeypatch.delenv(name, raising=False)
            monkeypatch.setenv("http_proxy", f"127.0.0.1:{port}")
            monkeypatch.setenv("no_proxy", "direct.lan")
            options: Any = {"allow_http": ["agent.lan", "direct.lan"], "resolver": names}
            async with client(trust_env=True, **options) as ours:
                # The proxy resolves: we don't, and so what it resolves to is the proxy's to judge.
                assert (await ours.discover("http://agent.lan")).id == "urn:asap:agent:a"
                assert (heads[0].split()[1], names.asked) == (b"http://agent.lan" + PATH.encode(), [])
                with pytest.raises(NotAllowed, match=r"direct\.lan resolves to 127\.0\.0\.1"):
                    await ours.discover("http://direct.lan")
                # What the text of a URL tells is ours to judge.
                with pytest.raises(NotAllowed, match="link-local"):
                    await ours.discover("https://169.254.169.254")
                # This machine isn't asked of another.
                await ours.discover(f"http://127.0.0.1:{port}")
                assert heads[-1].split()[1] == PATH.encode()
            async with client(**options) as ours:
                with pytest.raises(NotAllowed, match=r"agent\.lan resolves to 127\.0\.0\.1"):
                    await ours.discover("http://agent.lan")


class TestLogs:
    async def test_logs_contain_no_secret_of_a_request_at_any_level(self, caplog) -> None:
        caplog.set_level(logging.DEBUG)
        async with server(saying(with_body(b"{}"))) as (port, heads), client(token=SECRET) as ours:
            with pytest.raises(Exception, match="manifest"):
                await ours.get_manifest(f"http://127.0.0.1:{port}/m?key={SECRET}")
            agent = echo_manifest("urn:asap:agent:a", f"http://127.0.0.1:{port}")
            with pytest.raises(BadReply):
                await ours.send(agent, "task.request", {"skill_id": "echo", "input": {"password": SECRET}})
        sent = b"".join(heads)
        assert sent.count(SECRET.encode()) >= 2  # as the query, and as the token
        assert b"Bearer " + SECRET.encode() in sent
        assert caplog.records  # httpcore's, of what it does
        assert not any(SECRET in record.getMessage() for record in caplog.records)


class TestSeveralAddresses:
    async def test_the_next_address_is_tried_if_one_refuses(self) -> None:
        manifest = publish(echo_manifest("urn:asap:agent:a", "http://agent.lan"))
        async with server(saying(with_body(manifest))) as (port, _):
            options: Any = {"allow_http": ["agent.lan"], "allow_networks": ["127.0.0.0/8", "::1"]}
            async with client(resolver=Names("::1", "127.0.0.2", "127.0.0.1"), timeout=2 * SECONDS, **options) as ours:
                began = time.monotonic()
                assert (await ours.discover(f"http://agent.lan:{port}")).id == "urn:asap:agent:a"
                assert time.monotonic() - began < SECONDS
            async with client(resolver=Names("::1", "127.0.0.2"), **options) as ours:
                with pytest.raises(Unreachable, match=r"::1: Connection refused; 127\.0\.0\.2: Connection refused"):
                    await ours.discover(f"http://agent.lan:{port}")
