"""Only addresses that were judged are connected to. Resolver and network are fakes, time is virtual."""

import json
import socket
import traceback
from typing import Any

import anyio
import anyio.lowlevel
import httpcore
import httpx
import pytest
from hypothesis import given, settings, strategies as st

from asap_adapters.client.agent_client import AgentClient
from asap_adapters.mdns.interfaces import link_networks, link_scopes, links
from asap_adapters.net import outbound_transport
from asap_adapters.net.http_requests import httpx_request
from asap_adapters.net.outbound_transport import HttpOptions, OutboundTransport, connect_first
from asap_adapters.net.resolving import SystemResolver
from asap_core import BadReply, NotAllowed, TimedOut, Unreachable
from asap_core.client.body_reader import BodyReader
from asap_core.client.connections import Progress
from asap_core.client.programs import Fetch, Route
from asap_core.client.requests import announced_addresses
from asap_core.net.addresses import obstacle, read_address
from asap_core.net.outbound import Allowed, OutboundPolicy, UrlRefused
from asap_core.server.wellknown import publish
from tests.clients import Wired

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
AND_CLOSES = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
PUBLIC, OTHER, INSIDE = "8.8.8.8", "2606:4700::1", "10.0.0.5"


class Network(httpcore.AsyncNetworkStream):
    """A resolver, and servers at all addresses; notes what it's asked. Everything that waits calls `pause` first."""

    def __init__(self, *answers, reply: bytes = OK, **ways) -> None:
        self.answers = list(answers) or [[PUBLIC]]
        self.reply = reply
        # By address: an error to raise, or seconds to take.
        self.ways: dict[str, Any] = ways.get("ways", {})
        self.asked: list[str] = []
        self.dialled: list[str] = []
        self.streams: list[Stream] = []
        self.pauses = 0

    async def pause(self) -> None:
        self.pauses += 1
        await anyio.lowlevel.checkpoint()

    async def resolve(self, host: str, port: int):
        await self.pause()
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def dial(self, address: str, port: int):
        self.dialled.append(address)
        await self.pause()
        way = self.ways.get(address)
        if isinstance(way, Exception):
            raise way
        if way is not None:
            await anyio.sleep(way)
        self.streams.append(Stream(self))
        return self.streams[-1]

    @property
    def open(self) -> int:
        return sum(not stream.closed for stream in self.streams)


class Stream(httpcore.AsyncNetworkStream):
    def __init__(self, network: Network) -> None:
        self.network = network
        self.sent = b""
        self.tls_name: Any = None
        self.closed = False

    async def read(self, max_bytes: int, timeout=None) -> bytes:  # noqa: ASYNC109 - httpcore's
        await self.network.pause()
        if self.closed:
            raise httpcore.ReadError
        return self.network.reply

    async def write(self, buffer: bytes, timeout=None) -> None:  # noqa: ASYNC109 - httpcore's
        await self.network.pause()
        self.sent += buffer

    async def start_tls(self, ssl_context, server_hostname=None, timeout=None):  # noqa: ASYNC109 - httpcore's
        await self.network.pause()
        self.tls_name = server_hostname
        return self

    async def aclose(self) -> None:
        self.closed = True

    def get_extra_info(self, info: str):
        return False if info == "is_readable" else None


@pytest.fixture
def connected(monkeypatch):
    """Make requests that can be awaited, over this network."""

    def make(network: Network, *, token=None, timeout=60.0, transport=None, **policy) -> Wired:
        monkeypatch.setattr(outbound_transport, "dial", network.dial)
        http = Wired(
            HttpOptions(transport=transport, resolver=network),
            token=token,
            policy=OutboundPolicy(**policy),
            timeout=timeout,
        )
        http.driver.open()
        return http

    return make


async def get(http, url: str = "https://agent.example/x", **options):
    return (await http.get(http.judge(url, **options), (), 1000)).status


class TestRebinding:
    async def test_the_second_answer_of_a_name_is_judged_like_the_first(self, connected) -> None:
        network = Network([PUBLIC], ["127.0.0.1"], reply=AND_CLOSES)
        http = connected(network)
        assert await get(http) == 200
        with pytest.raises(NotAllowed, match=r"agent\.example resolves to 127\.0\.0\.1, which is this machine"):
            await get(http)
        assert network.dialled == [PUBLIC]

    async def test_a_name_is_resolved_once_in_a_call(self, connected) -> None:
        network = Network([PUBLIC], ["127.0.0.1"], reply=AND_CLOSES)
        assert await get(connected(network)) == 200
        assert (network.asked, network.dialled) == (["agent.example"], [PUBLIC])

    async def test_a_good_address_beside_a_bad_one_is_not_connected_to(self, connected) -> None:
        network = Network([PUBLIC, INSIDE])
        with pytest.raises(NotAllowed, match=r"allow_networks=\['10\.0\.0\.0/8'\]"):
            await get(connected(network))
        assert network.dialled == []

    async def test_a_kept_connection_needs_no_second_lookup(self, connected) -> None:
        network = Network([PUBLIC], ["127.0.0.1"])
        http = connected(network)
        assert [await get(http), await get(http)] == [200, 200]
        assert len(network.asked) == len(network.dialled) == 1

    async def test_an_address_in_an_allowed_network_is_connected_to(self, connected) -> None:
        network = Network([INSIDE])
        assert await get(connected(network, allow_networks=["10.0.0.0/8"])) == 200
        assert network.dialled == [INSIDE]

    async def test_all_waiters_for_a_name_that_resolves_to_a_private_address_are_refused(
        self, client_of, monkeypatch
    ) -> None:
        network = Network([INSIDE])
        monkeypatch.setattr(outbound_transport, "dial", network.dial)
        refused = []
        async with client_of(None, resolver=network) as client:

            async def one() -> None:
                try:
                    await client.discover("https://agent.example")
                except NotAllowed as error:
                    refused.append(error)

            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(one)
        assert len(refused) == 50
        assert len(network.asked) == 1


ANSWERS = st.lists(
    st.sampled_from([PUBLIC, OTHER, INSIDE, "127.0.0.1", "::1", "fe80::1%eth0", "::ffff:127.0.0.1", "64:ff9b::7f00:1",
                     "169.254.169.254", "0.0.0.0", "nonsense"]),
    min_size=1, max_size=4,
)  # fmt: skip


POLICY = OutboundPolicy(allow_networks=["10.0.0.0/8"])


def is_allowed(answer: str) -> bool:
    address = read_address(answer)
    return address is not None and obstacle(address, allowed=POLICY.allow_networks) is None


def check_rebinding(answers, *, keeps: bool) -> None:
    """Send a request for each answer of the resolver: exactly the allowed addresses are connected to."""
    network = Network(*answers, reply=OK if keeps else AND_CLOSES)
    came: list[bool] = []

    async def main() -> None:
        transport = OutboundTransport(HttpOptions(resolver=network, verify=False))
        transport._dial = network.dial
        route = Route("a.example", 443, "https", policy=POLICY)
        for _ in answers:
            asked = Fetch("GET", "https://a.example", (), None, 60.0, 60.0, route, BodyReader(10))
            try:
                await transport.exchange(asked, Progress(route=route))
                came.append(True)
            except NotAllowed:
                came.append(False)
        await transport.aclose()

    anyio.run(main)
    assert all(map(is_allowed, network.dialled))
    good = [all(map(is_allowed, answer)) for answer in answers]
    assert came == ([any(good[: number + 1]) for number in range(len(good))] if keeps else good)


@given(st.lists(ANSWERS, min_size=1, max_size=5), st.booleans())
@settings(max_examples=50)
def test_only_allowed_addresses_are_connected_to_for_any_answers_of_a_resolver(answers, keeps) -> None:
    check_rebinding(answers, keeps=keeps)


class ResolvesAgain(outbound_transport._Backend):
    """Judges one answer and connects to another."""

    async def connect_tcp(self, host, port, *_, **__):
        stream = await super().connect_tcp(host, port)
        await self.dial((await self.resolver.resolve("a.example", port))[0], port)
        return stream


class JudgesOnlyTheFirstAnswer(outbound_transport._Backend):
    """Lets the first answer speak for all."""

    async def connect_tcp(self, host, port, *_, **__):
        answers = await self.resolver.resolve("a.example", port)
        if not is_allowed(answers[0]):
            return await super().connect_tcp(host, port)
        return (await connect_first(answers, port, self.dial))[1]


class IgnoresRefusedAddresses(outbound_transport._Backend):
    """Connects to a name that has a bad address too, at a good one."""

    async def _ask(self, name, port):
        answers = await super()._ask(name, port)
        return [answer for answer in answers if is_allowed(answer)] or answers


@pytest.mark.planted
@pytest.mark.parametrize("broken", [ResolvesAgain, JudgesOnlyTheFirstAnswer, IgnoresRefusedAddresses])
def test_a_planted_bug_that_connects_elsewhere_is_caught(broken, monkeypatch) -> None:
    monkeypatch.setattr(outbound_transport, "_Backend", broken)
    with pytest.raises(AssertionError):
        check_rebinding([[PUBLIC], ["127.0.0.1"], [PUBLIC, "127.0.0.1"], [PUBLIC]], keeps=False)


class TestNames:
    @pytest.mark.parametrize(
        ("url", "name", "header"),
        [
            ("https://agent.example/x", "agent.example", b"Host: agent.example\r\n"),
            ("https://agent.example:8443/x", "agent.example", b"Host: agent.example:8443\r\n"),
            ("https://agent.example./x", "agent.example", b"Host: agent.example.\r\n"),
        ],
    )
    async def test_tls_and_the_host_header_have_the_host_of_the_url(self, connected, url, name, header) -> None:
        network = Network()
        assert await get(connected(network), url) == 200
        assert network.streams[0].tls_name == name
        assert header in network.streams[0].sent

    async def test_names_of_this_machine_are_not_resolved(self, connected) -> None:
        network = Network(ways={"127.0.0.1": ConnectionRefusedError(111, "Connection refused")})
        assert await get(connected(network), "http://x.localhost:8000/") == 200
        assert (network.asked, network.dialled) == ([], ["127.0.0.1", "::1"])

    @pytest.mark.parametrize("url", ["https://8.8.8.8/", "https://[2606:4700::1]/"])
    async def test_address_literals_are_not_resolved(self, connected, url) -> None:
        network = Network()
        assert await get(connected(network), url) == 200
        assert network.asked == []

    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            (socket.gaierror(-2, "Name or service not known"), "can't be resolved: Name or service not known"),
            ([], "its name can't be resolved: it has no address"),
            (UnicodeError("encoding with 'idna' codec failed"), "it can't be a host's"),
        ],
    )
    async def test_an_unknown_name_is_reported_as_not_sent(self, connected, answer, says) -> None:
        with pytest.raises(Unreachable, match=says) as caught:
            await get(connected(Network(answer)))
        assert not caught.value.sent

    async def test_a_hanging_resolver_ends_at_the_timeout_of_the_request(self, connected) -> None:
        class Hanging(Network):
            async def resolve(self, host: str, port: int):
                await anyio.sleep_forever()

        network = Hanging()
        before = anyio.current_time()
        with pytest.raises((TimedOut, Unreachable)):
            await get(connected(network, timeout=5))
        assert anyio.current_time() - before == pytest.approx(5)


def request_for(allowed: Allowed) -> httpx.Request:
    route = Route(allowed.host, 443, "https")
    return httpx_request(Fetch("GET", allowed.url, (), None, 1.0, 1.0, route, BodyReader(10)))


@given(st.text(alphabet="abz019.-_:@/\\?#[]%é☃ ", max_size=30), st.sampled_from(["https://", "http://", "https://a.b"]))
@settings(max_examples=500)
def test_httpx_and_the_policy_read_the_same_host_in_a_url(text, begin) -> None:
    """Or the request isn't made."""
    match OutboundPolicy(allow_networks=["0.0.0.0/0", "::/0"]).judge(begin + text):
        case Allowed() as allowed:
            try:
                request = request_for(allowed)
            except NotAllowed:
                return
            port = request.url.port or {"http": 80, "https": 443}[request.url.scheme]
            shown = f"[{request.url.host}]" if ":" in request.url.host else request.url.raw_host.decode()
            assert f"{request.url.scheme}://{shown}:{port}" == allowed.origin
        case UrlRefused():
            pass


def test_no_request_is_sent_if_httpx_reads_another_host() -> None:
    allowed = Allowed("https://b.example/", "https://a.example:443", "a.example", encrypted=True)
    with pytest.raises(NotAllowed, match="its host is not a valid host name"):
        request_for(allowed)


class TestSeveralAddresses:
    async def test_the_next_address_is_tried_if_one_fails(self, connected) -> None:
        network = Network([PUBLIC, OTHER], ways={PUBLIC: ConnectionRefusedError(111, "Connection refused")})
        before = anyio.current_time()
        assert await get(connected(network)) == 200
        assert anyio.current_time() == before
        assert network.dialled == [PUBLIC, OTHER]

    async def test_the_next_address_is_tried_after_a_quarter_of_a_second(self, connected) -> None:
        network = Network([PUBLIC, OTHER], ways={PUBLIC: 30})
        before = anyio.current_time()
        assert await get(connected(network)) == 200
        assert anyio.current_time() - before == pytest.approx(0.25)
        assert network.open == 1

    async def test_the_first_connection_is_used_and_the_others_are_closed(self, connected) -> None:
        network = Network([PUBLIC, OTHER, "1.1.1.1"], ways={PUBLIC: 0.5, OTHER: 0.25})
        assert await get(connected(network)) == 200
        assert network.open == 1

    async def test_if_no_address_answers_the_error_lists_each_attempt(self, connected) -> None:
        ways = {PUBLIC: ConnectionRefusedError(111, "Connection refused"), OTHER: TimeoutError()}
        with pytest.raises(Unreachable) as caught:
            await get(connected(Network([PUBLIC, OTHER], ways=ways)))
        assert f"can't connect: {PUBLIC}: Connection refused; {OTHER}: no connection" in str(caught.value)
        assert not caught.value.sent


class Cut(Network):
    """Cancels the task that waits, at the n-th wait."""

    def __init__(self, at: int, *answers, **ways) -> None:
        super().__init__(*answers, **ways)
        self.at = at
        self.scope: Any = None

    async def pause(self) -> None:
        self.pauses += 1
        if self.pauses == self.at:
            self.scope.cancel()
        await anyio.lowlevel.checkpoint()


async def test_cancelled_at_any_await_nothing_stays_open_and_the_next_request_works(connected) -> None:
    at, cancelled = 0, True
    while cancelled:
        at += 1
        network = Cut(at, [PUBLIC, OTHER, "1.1.1.1"], ways={PUBLIC: ConnectionRefusedError(), OTHER: 0.3})
        http = connected(network)
        with anyio.CancelScope() as network.scope:
            await get(http)
        cancelled = network.scope.cancelled_caught
        if cancelled:
            assert network.open == 0, f"cut at {at}"
        assert await get(http) == 200
        await http.aclose()
        assert network.open == 0
    assert at >= 7  # the resolver, three dials, TLS, writing, reading


REGISTRY = "https://registry.example/lite.json"


class TestSources:
    async def test_a_registry_does_not_open_an_allowed_network(self, connected) -> None:
        network = Network([INSIDE])
        http = connected(network, allow_networks=["10.0.0.0/8"])
        with pytest.raises(
            NotAllowed, match="a document from a more distant network may not name it; allow it with allow_endpoints"
        ):
            await get(http, named_by=REGISTRY)
        assert network.dialled == []
        http.name_origin("https://agent.example")
        assert await get(http) == 200

    async def test_the_remedy_names_the_origin_with_its_scheme(self, connected) -> None:
        http = connected(Network([INSIDE]), allow_networks=["10.0.0.0/8"], allow_http=["agent.example"])
        with pytest.raises(NotAllowed, match=r"allow_endpoints=\['http://agent\.example:80'\]"):
            await get(http, "http://agent.example/x", named_by=REGISTRY)

    async def test_a_registry_in_an_allowed_network_opens_it(self, connected) -> None:
        network = Network([INSIDE])
        http = connected(network, allow_networks=["10.0.0.0/8"])
        assert await get(http, REGISTRY) == 200
        assert await get(http, named_by=REGISTRY) == 200

    async def test_a_registry_of_the_caller_may_list_itself(self, client_of, monkeypatch) -> None:
        network = Network([INSIDE])
        monkeypatch.setattr(outbound_transport, "dial", network.dial)
        async with client_of(None, resolver=network, registries=[REGISTRY], allow_networks=["10.0.0.0/8"]) as client:
            client._client._requests.judge(
                "https://registry.example/agent", named_by="https://elsewhere.example/lite.json"
            )
            assert (await client.get_document(REGISTRY)) == b"{}"

    async def test_the_caller_opens_an_allowed_network_by_listing_the_origin(self, connected) -> None:
        network = Network([INSIDE])
        http = connected(network, allow_networks=["10.0.0.0/8"], allow_endpoints=["https://agent.example"])
        assert await get(http, named_by=REGISTRY) == 200

    async def test_a_listed_agent_whose_address_becomes_private_is_refused_by_send(
        self, client_of, manifest, monkeypatch, tmp_path
    ) -> None:
        from attrs import evolve

        from asap_core import Endpoints

        found = publish(evolve(manifest(), endpoints=Endpoints(asap="https://agent.example/asap")))
        entry = {
            "id": "urn:asap:agent:echo-agent", "name": "", "description": "", "asap_version": "0.1", "skills": ["echo"],
            "endpoints": {"http": "https://agent.example/asap"},
        }  # fmt: skip
        listing = json.dumps({"version": "1", "updated_at": "2026-01-01T00:00:00Z", "agents": [entry]}).encode()
        network = Network([PUBLIC], [PUBLIC], [INSIDE])
        head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        network.reply = head % len(listing) + listing
        monkeypatch.setattr(outbound_transport, "dial", network.dial)
        async with client_of(None, resolver=network, registries=[REGISTRY], allow_networks=["10.0.0.0/8"]) as client:
            await client.registry(REGISTRY)
            network.reply = head % len(found) + found
            agent = await client.resolve("urn:asap:agent:echo-agent", wait=0)
            with pytest.raises(NotAllowed, match="allow_endpoints"):
                await client.send(agent, "task.request", {"skill_id": "echo", "input": {}})
        assert network.dialled == [PUBLIC, PUBLIC]


def on_this_link(host: str, addresses, networks=None) -> tuple[str, ...]:
    here, scopes = links()
    return announced_addresses(host, addresses, networks=here if networks is None else networks, scopes=scopes)


class TestTheLink:
    NETWORKS = ["192.168.1.2/24", "fe80::2/64"]

    @staticmethod
    async def follow(http, url: str, host: str, addresses, networks=NETWORKS):
        announced = on_this_link(host, addresses, networks=networks)
        return (await http.get(http.judge(url, announced=announced), (), 1000)).status

    async def test_an_announced_host_is_connected_to_at_its_announced_address(self, connected) -> None:
        network = Network([PUBLIC])
        http = connected(network)
        found = ["10.9.9.9", "192.168.1.9"]
        assert await self.follow(http, "http://agent.local:8000/", "agent.local", found) == 200
        assert (network.asked, network.dialled) == ([], ["192.168.1.9"])

    async def test_an_announced_address_opens_nothing_else(self, connected) -> None:
        """No other port, no other name of the address, and no other use of the open connection."""
        network = Network([INSIDE])
        http = connected(network)
        for scheme in ("http", "https"):
            for host in ("agent.local", "192.168.1.9"):
                assert await self.follow(http, f"{scheme}://{host}:8000/", host, ["192.168.1.9"]) == 200
                for port in (8000, 9000):
                    for named_by in (None, "https://r.example/registry"):
                        with pytest.raises(NotAllowed):
                            await get(http, f"{scheme}://{host}:{port}/admin", named_by=named_by)
        assert network.dialled == ["192.168.1.9"] * 4

    async def test_an_announced_address_is_not_used_for_another_announcement_of_the_name(self, connected) -> None:
        network = Network()
        http = connected(network)
        for address in ("192.168.1.9", "192.168.1.66", "192.168.1.9"):
            assert await self.follow(http, "http://agent.local:8000/", "agent.local", [address]) == 200
        assert network.dialled == ["192.168.1.9", "192.168.1.66"]

    async def test_an_address_literal_is_connected_to_with_its_scope(self, connected, monkeypatch) -> None:
        monkeypatch.setattr("asap_adapters.mdns.interfaces.link_scopes", lambda _link: frozenset({"eth0"}))
        network = Network()
        http = connected(network)
        found = ["192.168.1.9", "fe80::9%eth0", "fe80::9%eth9"]
        assert await self.follow(http, "http://[fe80::9]:8000/", "fe80::9", found) == 200
        assert network.dialled == ["fe80::9%eth0"]

    @pytest.mark.parametrize(
        ("host", "addresses"),
        [
            ("agent.local", ["10.9.9.9"]),
            ("agent.local", []),
            ("agent.local", ["169.254.169.254"]),
            ("192.168.1.8", ["192.168.1.9"]),
            ("10.9.9.9", ["10.9.9.9"]),
            ("agent.example", ["192.168.1.9"]),
        ],
    )
    async def test_an_announced_address_that_is_not_on_the_link_is_refused(self, connected, host, addresses) -> None:
        http = connected(Network([INSIDE]))
        with pytest.raises(NotAllowed, match="announced on the local network, and isn't on it"):
            on_this_link(host, addresses, networks=self.NETWORKS)
        with pytest.raises(NotAllowed):
            await get(http, f"https://{host}/")

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "agent.local"])
    async def test_loopback_is_accepted_on_the_loopback_link_only(self, connected, host) -> None:
        http = connected(Network())
        with pytest.raises(NotAllowed):  # a neighbour's word for it
            on_this_link(host, ["127.0.0.1"], networks=self.NETWORKS)
        assert await self.follow(http, f"http://{host}:8000/", host, ["127.0.0.1"], ["127.0.0.1/8"]) == 200

    async def test_an_announced_address_may_be_on_any_link_of_this_machine_by_default(self, connected) -> None:
        network = Network()
        http = connected(network)
        assert await self.follow(http, "http://agent.local:8000/", "agent.local", ["127.0.0.1"], None) == 200
        with pytest.raises(NotAllowed):
            on_this_link("agent.local", ["8.8.8.8"])


class TestRedirects:
    @staticmethod
    def redirecting(*replies):
        left = list(replies)
        seen: list[str] = []

        def handle(request: httpx.Request) -> httpx.Response:
            seen.append(f"{request.method} {request.url}")
            status, location = left.pop(0) if len(left) > 1 else left[0]
            return httpx.Response(status, headers={} if location is None else {"location": location}, content=b"{}")

        return httpx.MockTransport(handle), seen

    async def test_redirects_are_refused_and_the_error_says_where_they_point(self, connected) -> None:
        transport, seen = self.redirecting((302, "http://u:hunter2@169.254.169.254/latest?hunter2"))
        with pytest.raises(
            BadReply, match=r"it redirects to http://169\.254\.169\.254:80/latest; redirects aren't"
        ) as caught:
            await get(connected(Network(), transport=transport))
        assert caught.value.status == 302
        assert "hunter2" not in str(caught.value)
        assert len(seen) == 1

    async def test_redirects_within_their_origin_are_followed_up_to_two(self, connected) -> None:
        transport, seen = self.redirecting((301, "/y"), (307, "z"), (200, None))
        assert await get(connected(Network(), transport=transport, redirects=2)) == 200
        assert seen == [f"GET https://agent.example/{path}" for path in "xyz"]

    async def test_a_loop_of_redirects_ends(self, connected) -> None:
        transport, seen = self.redirecting((302, "/x"))
        with pytest.raises(BadReply, match="no more than 2 redirects"):
            await get(connected(Network(), transport=transport, redirects=2))
        assert len(seen) == 3

    async def test_a_redirect_without_a_location_is_an_answer(self, connected) -> None:
        transport, _ = self.redirecting((302, None))
        assert await get(connected(Network(), transport=transport)) == 302

    async def test_redirects_of_a_post_are_not_followed(self, connected) -> None:
        transport, seen = self.redirecting((307, "/y"))
        http = connected(Network(), transport=transport, redirects=2)
        with pytest.raises(BadReply, match="redirects aren't followed by a POST"):
            await http.post(http.judge("https://agent.example/x"), {}, {})
        assert seen == ["POST https://agent.example/x"]


SECRET = "hunter2"
NASTY = f"GET https://u:{SECRET}@agent.example/?key={SECRET} authorization: Bearer {SECRET}"


class TestSecrets:
    """In no message, no representation and no traceback of anything that's raised."""

    @pytest.mark.parametrize(
        "error",
        [
            *(kind(NASTY) for kind in (
                httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError, httpx.LocalProtocolError,
                httpx.CloseError, httpx.ReadTimeout, httpx.ConnectTimeout, httpx.PoolTimeout,
                httpx.DecodingError, httpx.UnsupportedProtocol, httpx.ProxyError, httpx.TooManyRedirects,
            )),
            TimeoutError(NASTY),
        ],
        ids=lambda error: type(error).__name__,
    )  # fmt: skip
    async def test_errors_of_a_failure_show_no_secret(self, connected, error) -> None:
        def handle(_request):
            raise error

        http = connected(Network(), transport=httpx.MockTransport(handle), token=SECRET)
        url = f"https://agent.example/x?key={SECRET}#{SECRET}"
        http.name_origin(url)
        for call in (
            lambda: http.get(http.judge(url), [("x-key", SECRET)], 10),
            lambda: http.post(http.judge(url), {}, {"x-key": SECRET}),
        ):
            with pytest.raises(Unreachable) as caught:
                await call()
            self.check(caught.value)

    @pytest.mark.parametrize(
        "reply",
        [
            f"HTTP/9.9 {SECRET}\r\n\r\n", f"{SECRET}\r\n\r\n", f"HTTP/1.1 200 OK\r\n{SECRET}\r\n\r\n",
            f"HTTP/1.1 200 OK\r\ncontent-length: {SECRET}\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\nx",
            f"HTTP/1.1 200 OK\r\ncontent-encoding: {SECRET}\r\ncontent-length: 1\r\n\r\nx",
            f"HTTP/1.1 302 Found\r\nlocation: https://u:{SECRET}@b/?{SECRET}\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n" + SECRET * 200,
            "HTTP/1.1 200 OK\r\n" + f"x: {SECRET}\r\n" * 101 + "\r\n",
        ],
    )  # fmt: skip
    async def test_errors_of_a_response_show_no_secret(self, connected, reply) -> None:
        http = connected(Network(reply=reply.encode()))
        with pytest.raises((Unreachable, BadReply)) as caught:
            await get(http, f"https://agent.example/x?key={SECRET}")
        self.check(caught.value)

    @pytest.mark.parametrize("answer", [[INSIDE], [], socket.gaierror(-2, "Name or service not known"), [SECRET]])
    async def test_errors_of_a_name_lookup_show_no_secret(self, connected, answer) -> None:
        with pytest.raises((Unreachable, NotAllowed)) as caught:
            await get(connected(Network(answer)), f"https://agent.example/x?key={SECRET}")
        self.check(caught.value)

    @pytest.mark.parametrize(
        "url",
        [
            f"https://u:{SECRET}@a.example/", f"http://a.example/?{SECRET}", f"ftp://{SECRET}@a.example",
            f"https://10.0.0.1/?{SECRET}", f"https://xn--a/?{SECRET}", f"https://{SECRET}@[::1",
        ],
    )  # fmt: skip
    async def test_errors_of_a_url_show_no_secret(self, connected, url) -> None:
        with pytest.raises(NotAllowed) as caught:
            await get(connected(Network()), url)
        self.check(caught.value)

    async def test_no_repr_shows_the_token(self, connected) -> None:
        http = connected(Network(), token=SECRET)
        assert SECRET not in repr(http)
        assert SECRET not in repr(AgentClient(sender="urn:asap:agent:me", token=SECRET, auth={"https://a": SECRET}))

    def check(self, error: BaseException) -> None:
        told = [str(error), repr(error), *traceback.format_exception(error)]
        # A traceback quotes lines of source, which here name the constant and never its value.
        assert not any(SECRET in text for text in told)


class TestSystemResolver:
    async def test_the_system_resolver_resolves_this_machine(self) -> None:
        assert await SystemResolver().resolve("127.0.0.1", 80) == ["127.0.0.1"]

    async def test_the_system_resolver_raises_os_error_for_an_unknown_name(self) -> None:
        with pytest.raises(OSError, match=r"."):
            await SystemResolver().resolve("no-such-name.invalid", 80)


class TestLinksOfThisMachine:
    def test_a_link_has_its_own_networks_and_scopes(self) -> None:
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        assert "127.0.0.1/8" in link_networks(loopback)
        assert set(link_networks(loopback)) <= set(link_networks())
        assert loopback in link_scopes(loopback) <= link_scopes()
        assert link_networks("nothing") == ()
        assert link_scopes("nothing") == frozenset()
        assert not any(network.startswith("127.") for network in set(link_networks()) - set(link_networks(loopback)))
