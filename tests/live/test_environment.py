"""The environment with `trust_env`: proxies of every form, `NO_PROXY`, certificates."""

import errno
import ssl
from typing import Any

import anyio
import httpx
import pytest

from asap_adapters import AgentClient, NotAllowed, Unreachable
from asap_adapters.cli.echo_agent import ECHO_ID, echo_manifest
from asap_adapters.net import outbound_transport
from asap_core.client.delivery import RetryPolicy
from asap_core.server.wellknown import publish
from tests.clients import make_client

pytestmark = [pytest.mark.anyio, pytest.mark.live]

SECRET = "hunter2"
AGENT = "http://agent.example"
NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR")
UNUSABLE = {
    f"socks5://u:{SECRET}@127.0.0.1:1": r"needs another package; install httpx\[socks\]",
    f"socks4://u:{SECRET}@127.0.0.1:1": "its scheme isn't http, https or socks5",
    f"ftp://u:{SECRET}@127.0.0.1:1": "its scheme isn't http, https or socks5",
    f"http://u:{SECRET}@127.0.0.1:99999": "it isn't a URL with a host and a valid port",
    f"http://u:{SECRET}@127.0.0.1:x": "it isn't a URL with a host and a valid port",
    f"http://u:{SECRET}@127.0.0.1:0": "it isn't a URL with a host and a valid port",
    f"http://u:{SECRET}@": "it isn't a URL with a host and a valid port",
    f"//{SECRET}": "it isn't a URL with a host and a valid port",
    f"http://[::1/{SECRET}": "it isn't a URL with a host and a valid port",
    f"http://xn--\u2603{SECRET}\u0000:1": "it isn't a URL with a host and a valid port",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch.setenv


class Proxy:
    """Answers any request with a manifest, and notes the heads."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.url = ""

    async def take(self, stream) -> None:
        await self.serve(stream)

    async def serve(self, stream) -> None:
        body = publish(echo_manifest(ECHO_ID, AGENT))
        async with stream:
            self.heads.append(await stream.receive())
            await stream.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


@pytest.fixture
async def proxy(anyio_backend):
    made = Proxy()
    listener: Any = await anyio.create_tcp_listener(local_host="127.0.0.1")
    made.url = f"127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, made.take)
        yield made
        group.cancel_scope.cancel()


class Nowhere:
    async def resolve(self, host: str, port: int):
        return ["127.0.0.1"]


def client(**options) -> AgentClient:
    options = {"trust_env": True, "resolver": Nowhere(), "allow_http": ["agent.example", "10.1.2.3"], **options}
    return make_client(retry=RetryPolicy(retries=0), timeout=60.0, **options)


async def is_asked(ours: AgentClient, proxy: Proxy, url: str = AGENT) -> bool:
    """Whether the proxy is asked for this URL; what it resolves to directly is nowhere to go."""
    before = len(proxy.heads)
    ours.forget(url)
    try:
        await ours.discover(url)
    except NotAllowed:
        assert len(proxy.heads) == before
    return len(proxy.heads) > before


class TestProxies:
    @pytest.mark.parametrize("name", ["all_proxy", "http_proxy", "ALL_PROXY"])
    @pytest.mark.parametrize(("text", "says"), UNUSABLE.items(), ids=range(len(UNUSABLE)))
    async def test_an_unusable_proxy_fails_the_requests_that_need_it(
        self, environment, name: str, text: str, says: str
    ) -> None:
        if "\0" in text:
            text = text.replace("\0", " ")
        environment(name, text)
        async with client() as ours:
            for work in (ours.discover(AGENT), ours.send(echo_manifest(ECHO_ID, AGENT), "task.request", {"input": {}})):
                with pytest.raises(NotAllowed, match=says) as caught:
                    await work
                assert f"{name.lower()} names" in str(caught.value)
                assert SECRET not in str(caught.value) + repr(caught.value)

    async def test_an_unusable_proxy_does_not_fail_other_requests(self, environment, proxy: Proxy) -> None:
        environment("https_proxy", "ftp://127.0.0.1:1")
        environment("http_proxy", proxy.url)
        environment("all_proxy", "nonsense://")
        environment("no_proxy", "direct.example")
        async with client(allow_http=["agent.example"]) as ours:
            assert await is_asked(ours, proxy)
            assert (await ours.discover(f"http://{proxy.url}")).id == ECHO_ID, "this machine is asked directly"
            with pytest.raises(NotAllowed, match=r"direct\.example resolves to 127\.0\.0\.1"):
                await ours.discover("https://direct.example")
            with pytest.raises(NotAllowed, match="https_proxy names a proxy"):
                await ours.discover("https://agent.example")

    @pytest.mark.parametrize("form", ["{}", "http://{}", "http://{}/", "HTTP://{}", " http://{} "])
    async def test_any_form_of_a_proxy_url_is_accepted(self, environment, proxy: Proxy, form: str) -> None:
        environment("all_proxy", form.format(proxy.url))
        async with client() as ours:
            assert await is_asked(ours, proxy)

    async def test_proxy_credentials_go_to_the_proxy_and_into_no_error(self, environment, proxy: Proxy) -> None:
        environment("http_proxy", f"http://us%40er:{SECRET}%3A@{proxy.url}")
        async with client() as ours:
            assert await is_asked(ours, proxy)
            assert b"proxy-authorization: basic dxnazxi6ahvudgvymjo=" in proxy.heads[0].lower()
            assert SECRET not in repr(ours)

    @pytest.mark.parametrize(
        "listed",
        ["agent.example", ".example", "example", "EXAMPLE", "other, agent.example ", "agent.example:80", "*"],
    )
    async def test_a_host_in_no_proxy_is_requested_directly(self, environment, proxy: Proxy, listed: str) -> None:
        environment("http_proxy", proxy.url)
        environment("no_proxy", listed)
        async with client() as ours:
            assert not await is_asked(ours, proxy)

    @pytest.mark.parametrize("listed", ["gent.example", "agent.example:81", "other.example", ",", "10.0.0.0/8"])
    async def test_a_host_not_in_no_proxy_is_requested_through_the_proxy(
        self, environment, proxy: Proxy, listed: str
    ) -> None:
        environment("http_proxy", proxy.url)
        environment("no_proxy", listed)
        async with client() as ours:
            assert await is_asked(ours, proxy)

    @pytest.mark.parametrize(("listed", "asked"), [("10.0.0.0/8", False), ("10.1.2.3", False), ("10.2.0.0/16", True)])
    async def test_no_proxy_may_list_networks(
        self, environment, proxy: Proxy, monkeypatch, listed: str, asked: bool
    ) -> None:
        real = outbound_transport.dial

        async def dial(address: str, port: int):
            if address == "10.1.2.3":
                raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
            return await real(address, port)

        monkeypatch.setattr(outbound_transport, "dial", dial)
        environment("http_proxy", proxy.url)
        environment("no_proxy", listed)
        async with client(allow_networks=["10.1.2.3/32"]) as ours:
            if asked:
                await ours.discover("http://10.1.2.3")
            else:
                with pytest.raises(Unreachable, match=r"10\.1\.2\.3: Connection refused"):
                    await ours.discover("http://10.1.2.3")
        assert bool(proxy.heads) is asked

    @pytest.mark.parametrize("there", ["127.0.0.1:1", "no-proxy.invalid:8080"])
    async def test_an_unreachable_proxy_is_named(self, environment, there: str) -> None:
        environment("https_proxy", f"http://u:{SECRET}@{there}")
        async with client() as ours:
            with pytest.raises(Unreachable, match="can't connect: the proxy that https_proxy names: ") as caught:
                await ours.discover("https://agent.example")
        assert not caught.value.sent
        assert SECRET not in str(caught.value)

    async def test_a_proxy_that_refuses_is_named(self, environment, proxy: Proxy) -> None:
        async def refuse(stream) -> None:
            async with stream:
                await stream.receive()
                await stream.send(f"HTTP/1.1 407 {SECRET}\r\ncontent-length: 0\r\n\r\n".encode())

        proxy.serve = refuse  # type: ignore[method-assign]
        environment("https_proxy", proxy.url)
        async with client() as ours:
            with pytest.raises(Exception, match="the proxy doesn't connect to it") as caught:
                await ours.discover("https://agent.example")
        assert not getattr(caught.value, "sent", True)
        assert SECRET not in str(caught.value)


class TestCertificates:
    @pytest.mark.parametrize("text", [None, "", "no certificate"])
    async def test_an_unreadable_certificate_file_is_named_with_its_variable(
        self, environment, tmp_path, text: str | None
    ) -> None:
        file = tmp_path / "cert.pem"
        if text is not None:
            file.write_text(text)
        environment("SSL_CERT_FILE", str(file))
        with pytest.raises(OSError, match="the certificates that SSL_CERT_FILE names can't be read"):
            async with client():
                pass
        async with client(trust_env=False):
            pass

    async def test_the_systems_certificates_are_read_for_the_first_connection_with_tls(
        self, proxy: Proxy, monkeypatch
    ) -> None:
        read: list[dict[str, Any]] = []
        create = httpx.create_ssl_context

        def noting(**how: Any) -> ssl.SSLContext:
            read.append(how)
            return create(**how)

        monkeypatch.setattr(httpx, "create_ssl_context", noting)
        async with client(trust_env=False, allow_networks=["127.0.0.0/8"]) as ours:
            assert (await ours.discover(f"http://{proxy.url}")).id == ECHO_ID
            assert read == []
            for _ in range(2):
                with pytest.raises(Unreachable, match="can't connect: it doesn't speak TLS"):
                    await ours.get_document(f"https://{proxy.url.replace('127.0.0.1', 'agent.example')}")
        assert len(read) == 1
