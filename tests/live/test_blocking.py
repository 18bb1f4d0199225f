"""Blocking connections over real sockets: where they lead, how long they take, what failures and Ctrl-C leave."""

import os
import random
import signal
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

import httpx
import pytest
from attrs import define, field

from asap_adapters.blocking import interrupts
from asap_adapters.blocking.connecting import BlockingResolver
from asap_adapters.blocking.driver import BlockingDriver
from asap_adapters.blocking.http_options import BlockingHttpOptions
from asap_core import BadReply, NotAllowed, OutboundPolicy, TimedOut, Unreachable
from asap_core.client.places import PlaceQueue
from asap_core.client.requests import Requests

pytestmark = pytest.mark.live

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
AND_CLOSES = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
# Nothing here takes that long, unless it hangs. In seconds.
DEADLOCK = 60.0


class Connection(socketserver.BaseRequestHandler):
    """Reads requests, and lets the server answer each."""

    server: "Server"

    def handle(self) -> None:
        self.server.connections += 1
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):
            while self.head():
                self.server.requests += 1
                if self.server.answer(self.request) is False:
                    return

    def head(self) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            data: bytes = self.request.recv(65_536)
            if not data:
                return b""
            head += data
            if head.startswith(b"\x16"):  # TLS
                break
        self.server.heads.append(head)
        return head


class Server(socketserver.ThreadingTCPServer):
    """Listens on loopback. `answer` writes the response to each request; if it returns False, it closes."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Callable[[socket.socket], object], tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), Connection)
        self.answer = answer
        self.tls = tls
        self.requests = 0
        self.connections = 0
        self.heads: list[bytes] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def port(self) -> int:
        return self.server_address[1]

    def finish_request(self, request: Any, client_address: Any) -> None:
        try:
            wrapped = request if self.tls is None else self.tls.wrap_socket(request, server_side=True)
        except OSError:
            return
        with closing(wrapped):
            super().finish_request(wrapped, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients of these tests break connections off


@contextmanager
def served(answer: Callable[[socket.socket], object] = lambda peer: peer.sendall(OK), tls=None) -> Iterator[Server]:
    server = Server(answer, tls)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@define(eq=False)
class Names:
    """A resolver. Each look-up takes the next answer; the last one stays."""

    answers: list[Sequence[str] | Exception]
    asked: list[str] = field(factory=list)

    def resolve(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@define(eq=False)
class Client:
    driver: BlockingDriver
    requests: Requests

    def get(self, url: str, *, announced: tuple[str, ...] = ()) -> bytes:
        allowed = self.requests.judge(url, announced=announced)
        return self.driver.run(self.requests.get, allowed, (), 10_000_000).body

    def post(self, url: str, content: object) -> int:
        return self.driver.run(self.requests.post, self.requests.judge(url), content, {}, compress=False).status


ANYWHERE = OutboundPolicy(allow_http=["agent.example", "other.example"], allow_networks=["127.0.0.0/8"])


@contextmanager
def client(
    resolver: BlockingResolver | None = None,
    *,
    policy: OutboundPolicy = ANYWHERE,
    verify: ssl.SSLContext | bool = True,
    timeout: float = 2 * DEADLOCK,
    trust_env: bool = False,
    transport: httpx.BaseTransport | None = None,
) -> Iterator[Client]:
    """At its end no file is left open. `transport`: instead of the client's own."""
    before = open_files()
    http = BlockingHttpOptions(transport=transport, resolver=resolver, verify=verify, trust_env=trust_env)
    driver = BlockingDriver(http, owner="Client()")
    driver.open()
    try:
        yield Client(driver, Requests(driver.runtime, policy=policy, timeout=timeout))
        assert not driver._parked
    finally:
        driver.close()
    # The server's sockets are closed a little later.
    end = time.monotonic() + DEADLOCK
    while open_files() > before:
        assert time.monotonic() < end
        time.sleep(0.005)


def open_files() -> int:
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 - numbers


def hangs(asked: threading.Event, released: threading.Event) -> list[Any]:
    """A look-up that finds nothing, and that late."""
    asked.set()
    released.wait(DEADLOCK)
    return []


def trickling(peer: socket.socket) -> None:
    """A head, and then a byte of the body from time to time, for ever."""
    peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    while True:
        peer.sendall(b"x")
        time.sleep(0.02)


def silent(peer: socket.socket) -> None:
    """No response."""
    while peer.recv(65_536):
        pass


class TestWhereConnectionsLead:
    def test_a_name_is_resolved_once_and_what_was_checked_is_connected_to(self) -> None:
        names = Names([["127.0.0.1"], ["10.0.0.1"]])
        with served() as server, client(names) as here:
            assert here.get(f"http://agent.example:{server.port}/") == b"{}"
            assert names.asked == ["agent.example"]
            assert server.heads[0].lower().count(f"host: agent.example:{server.port}".encode()) == 1

    def test_the_next_connection_resolves_and_checks_anew(self) -> None:
        names = Names([["127.0.0.1"], ["10.0.0.1"]])
        with served(lambda peer: peer.sendall(AND_CLOSES)) as server, client(names) as here:
            assert here.get(f"http://agent.example:{server.port}/") == b"{}"
            with pytest.raises(NotAllowed):
                here.get(f"http://agent.example:{server.port}/")
            assert server.connections == 1

    @pytest.mark.parametrize("answers", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["169.254.169.254"]])
    def test_private_addresses_of_a_name_are_refused(self, answers: list[str]) -> None:
        policy = OutboundPolicy(allow_http=["agent.example"])
        with served() as server, client(Names([answers]), policy=policy) as here:
            with pytest.raises(NotAllowed):
                here.get(f"http://agent.example:{server.port}/")
            assert server.connections == 0

    def test_connections_are_kept_by_host(self) -> None:
        with served() as server, client(Names([["127.0.0.1"]])) as here:
            for host in ("agent.example", "agent.example", "other.example", "agent.example"):
                here.get(f"http://{host}:{server.port}/")
            assert server.connections == 2

    def test_announced_addresses_and_others_never_share_connections(self) -> None:
        with served() as server, client(Names([["127.0.0.1"]])) as here:
            url = f"http://agent.example:{server.port}/"
            here.get(url)
            here.get(url, announced=("127.0.0.1",))
            here.get(url, announced=("127.0.0.2", "127.0.0.1"))
            assert server.connections == 3
            here.get(url, announced=("127.0.0.1",))
            here.get(url)
            assert server.connections == 3

    def test_only_announced_addresses_are_connected_to(self) -> None:
        names = Names([["127.0.0.1"]])
        with served() as server, client(names) as here:
            with pytest.raises(Unreachable, match=r"127\.0\.0\.9: Connection refused"):
                here.get(f"http://agent.example:{server.port}/", announced=("127.0.0.9",))
            assert (names.asked, server.connections) == ([], 0)

    def test_the_next_address_is_tried_if_one_fails(self) -> None:
        with served() as server, client(Names([["127.0.0.9", "127.0.0.1"]])) as here:
            assert here.get(f"http://agent.example:{server.port}/") == b"{}"

    def test_the_next_address_is_tried_if_one_takes_long(self) -> None:
        with served() as server, full(server.port) as slow, client(Names([[slow, "127.0.0.1"]])) as here:
            begun = time.monotonic()
            assert here.get(f"http://agent.example:{server.port}/") == b"{}"
            assert time.monotonic() - begun < DEADLOCK

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
            (UnicodeError("label too long"), "can't be a host's"),
            ([], "it has no address"),
        ],
    )
    def test_a_name_that_cannot_be_resolved_is_said_so(self, answer, words: str) -> None:
        with client(Names([answer])) as here, pytest.raises(Unreachable, match=words) as raised:
            here.get("http://agent.example/")
        assert not raised.value.sent

    def test_the_system_resolves_in_a_thread_that_ends(self, monkeypatch) -> None:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]
        real = socket.getaddrinfo
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *a, **k: found if host == "agent.example" else real(host, *a, **k)
        )
        threads = threading.active_count()
        with served() as server, client() as here:
            assert here.get(f"http://agent.example:{server.port}/") == b"{}"
        assert threading.active_count() <= threads + 2  # the server's
        assert "asap resolver" not in {thread.name for thread in threading.enumerate()}


@contextmanager
def full(port: int) -> Iterator[str]:
    """An address at which connections to this port are neither accepted nor refused: its queue is full."""
    with socket.socket() as listener, ExitStack() as queue:
        listener.bind(("127.0.0.3", port))
        listener.listen(0)
        for _ in range(4):
            sock = queue.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.3", port))
        time.sleep(0.05)
        yield "127.0.0.3"


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> tuple[str, str]:
    """The files of a certificate for agent.example, and of its key."""
    where = tmp_path_factory.mktemp("example")
    files = str(where / "cert.pem"), str(where / "key.pem")
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-keyout", files[1], "-out", files[0], "-subj", "/CN=x", "-addext", "subjectAltName=DNS:agent.example"],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("openssl, which makes the certificate, isn't installed")
    return files


class TestTls:
    def test_the_urls_host_is_what_the_certificate_must_name(self, example: tuple[str, str]) -> None:
        with served(tls=context(example)) as server, client(Names([["127.0.0.1"]]), verify=trusting(example)) as here:
            assert here.get(f"https://agent.example:{server.port}/") == b"{}"
            assert here.get(f"https://agent.example:{server.port}/") == b"{}"
            assert server.connections == 1
            with pytest.raises(Unreachable, match=r"its certificate isn't trusted: Hostname mismatch"):
                here.get(f"https://other.example:{server.port}/")
            assert here.post(f"https://agent.example:{server.port}/", "x" * 3_000_000) == 200

    def test_a_certificate_of_an_unknown_issuer_is_refused(self, example: tuple[str, str]) -> None:
        with served(tls=context(example)) as server, client(Names([["127.0.0.1"]])) as here:
            with pytest.raises(Unreachable, match="its certificate isn't trusted: self-signed") as raised:
                here.get(f"https://agent.example:{server.port}/")
            assert not raised.value.sent

    def test_a_server_without_tls_is_named_so(self) -> None:
        with served() as server, client() as here, pytest.raises(Unreachable, match="it doesn't speak TLS there"):
            here.get(f"https://127.0.0.1:{server.port}/")

    def test_a_server_with_tls_is_named_so(self, example: tuple[str, str]) -> None:
        with served(tls=context(example)) as server, client() as here, pytest.raises(Unreachable, match="use https://"):
            here.get(f"http://127.0.0.1:{server.port}/")

    def test_the_handshake_is_bounded(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute, client(timeout=0.3) as here:
            begun = time.monotonic()
            with pytest.raises(Unreachable, match=r"can't connect within 0\.3 s"):
                here.get(f"https://127.0.0.1:{mute.getsockname()[1]}/")
            assert time.monotonic() - begun < DEADLOCK / 2


def context(files: tuple[str, str]) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(*files)
    return made


def trusting(files: tuple[str, str]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=files[0])


def times_out(call: Callable[[Client], object], *, own_transport: bool = False) -> None:
    """`call` ends at the client's time limit: the shortest within which this machine connects and sends."""
    for limit in (0.3, 3.0, 30.0):
        transport = httpx.HTTPTransport() if own_transport else None
        with client(timeout=limit, transport=transport) as here:
            begun = time.monotonic()
            with pytest.raises(Unreachable) as raised:
                call(here)
            took = time.monotonic() - begun
        if isinstance(raised.value, TimedOut):
            assert 0.8 * limit < took < limit + DEADLOCK / 2
            return
    pytest.fail("it couldn't be connected to, and sent")


class TestLimits:
    @pytest.mark.parametrize("answer", [trickling, silent])
    def test_the_time_limit_is_absolute(self, answer) -> None:
        with served(answer) as server:
            times_out(lambda here: here.get(f"http://127.0.0.1:{server.port}/"))

    def test_the_time_limit_holds_for_the_body_that_a_transport_of_ones_own_reads(self) -> None:
        with served(trickling) as server:
            times_out(lambda here: here.get(f"http://127.0.0.1:{server.port}/"), own_transport=True)

    def test_the_time_limit_holds_for_what_is_sent(self) -> None:
        def sipping(peer: socket.socket) -> None:
            while not over.is_set():
                peer.recv(50_000)
                over.wait(0.05)

        def post(here: Client) -> None:
            over.clear()
            try:
                here.post(f"http://127.0.0.1:{server.port}/", "x" * 20_000_000)
            finally:
                over.set()

        over = threading.Event()
        with served(sipping) as server:
            times_out(post)

    def test_a_resolver_that_hangs_is_bounded(self, monkeypatch) -> None:
        released = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(DEADLOCK) or [])
        with client(timeout=0.3) as here:
            begun = time.monotonic()
            with pytest.raises(Unreachable, match=r"can't connect within 0\.3 s"):
                here.get("http://agent.example/")
            assert time.monotonic() - begun < DEADLOCK / 2
        released.set()

    def test_a_resolver_of_ones_own_that_hangs_is_bounded(self) -> None:
        class Hanging:
            def resolve(self, host: str, port: int) -> Sequence[str]:
                released.wait(DEADLOCK)
                return []

        released = threading.Event()
        with client(Hanging(), timeout=0.3) as here:
            begun = time.monotonic()
            with pytest.raises(Unreachable, match=r"can't connect within 0\.3 s"):
                here.get("http://agent.example/")
            assert time.monotonic() - begun < DEADLOCK / 2
        released.set()

    def test_an_error_response_is_reported_without_the_body_that_never_ends(self) -> None:
        def failing(peer: socket.socket) -> None:
            peer.sendall(b"HTTP/1.1 500 Oops\r\ncontent-length: 10\r\n\r\nx")
            silent(peer)

        with served(failing) as server, client() as here:
            begun = time.monotonic()
            allowed = here.requests.judge(f"http://127.0.0.1:{server.port}/")
            assert here.driver.run(here.requests.get, allowed, (), 100).status == 500
            assert time.monotonic() - begun < DEADLOCK

    def test_one_host_gets_a_fifth_of_the_connections_and_who_waits_too_long_is_told(self, monkeypatch) -> None:
        monkeypatch.setattr("asap_adapters.blocking.transport.PLACES", 5)
        with served(silent) as server, client() as here:
            url = f"http://127.0.0.1:{server.port}/"
            thread = threading.Thread(target=lambda: _error(here, url))
            thread.start()
            until(lambda: server.requests == 1)
            hurried = Client(here.driver, Requests(here.driver.runtime, policy=ANYWHERE, timeout=0.5))
            crowded = _error(hurried, url)
            assert isinstance(crowded, Unreachable)
            assert crowded.crowded
            assert not isinstance(crowded, TimedOut)
            assert server.connections == 1
            here.driver.close()
            thread.join(DEADLOCK)


def _error(here: Client, url: str) -> BaseException:
    try:
        here.get(url)
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return error
    raise AssertionError


class TestFailures:
    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n",
            b"nonsense\r\n\r\n",
        ],
    )
    def test_a_response_that_is_cut_off_is_an_error(self, answer: bytes) -> None:
        def cut_off(peer: socket.socket) -> bool:
            peer.sendall(answer)
            return False

        with served(cut_off) as server, client() as here:
            for _ in range(10):
                with pytest.raises(Unreachable):
                    here.get(f"http://127.0.0.1:{server.port}/")
            assert server.connections == 10

    def test_a_refused_connection_is_named(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            port = gone.getsockname()[1]
        with client() as here, pytest.raises(Unreachable, match=r"127\.0\.0\.1: Connection refused") as raised:
            here.get(f"http://127.0.0.1:{port}/")
        assert not raised.value.sent

    def test_a_connection_that_the_server_closed_meanwhile_is_not_used(self) -> None:
        def closing_later(peer: socket.socket) -> bool:
            peer.sendall(OK)
            return False

        with served(closing_later) as server, client() as here:
            for _ in range(3):
                assert here.get(f"http://127.0.0.1:{server.port}/") == b"{}"
                time.sleep(0.1)
            assert server.connections == 3

    def test_a_body_that_is_too_large_ends_the_connection(self) -> None:
        def large(peer: socket.socket) -> None:
            peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 20000000\r\n\r\n" + b"x" * 20_000_000)

        with served(large) as server, client() as here, pytest.raises(BadReply):
            here.get(f"http://127.0.0.1:{server.port}/")

    def test_many_threads_at_once(self) -> None:
        def many() -> None:
            bodies.extend(here.get(url) for _ in range(50))

        bodies: list[bytes] = []
        with served() as server, client() as here:
            url = f"http://127.0.0.1:{server.port}/"
            threads = [threading.Thread(target=many) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(DEADLOCK)
            assert bodies == [b"{}"] * 400
            assert server.connections <= 8


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLOCK
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def lined_up(monkeypatch) -> threading.Event:
    """Set when a caller waits for a place."""
    event, line_up = threading.Event(), PlaceQueue.line_up

    def noted(queue: PlaceQueue[Any], *place: Any) -> Any:
        waiter = line_up(queue, *place)
        event.set()
        return waiter

    monkeypatch.setattr(PlaceQueue, "line_up", noted)
    return event


class TestClosing:
    """`close` ends what other threads wait for. Each raises the same error, at once."""

    @pytest.mark.parametrize("answer", [silent, trickling])
    def test_a_response(self, answer) -> None:
        with served(answer) as server, client(timeout=60) as here:
            self.ends(here, f"http://127.0.0.1:{server.port}/", lambda: until(lambda: server.requests == 1))

    def test_what_is_sent(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute, client(timeout=60) as here:
            url = f"http://127.0.0.1:{mute.getsockname()[1]}/"
            self.ends(here, url, call=lambda: here.post(url, "x" * 20_000_000))

    def test_a_connection_that_is_neither_accepted_nor_refused(self) -> None:
        with served() as server, full(server.port) as slow, client(Names([[slow]]), timeout=60) as here:
            self.ends(here, f"http://agent.example:{server.port}/")
            assert server.connections == 0

    def test_several_such_connections(self) -> None:
        with served() as server, full(server.port) as slow, client(Names([[slow, slow, slow]]), timeout=60) as here:
            self.ends(here, f"http://agent.example:{server.port}/")

    def test_a_handshake(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute, client(timeout=60) as here:
            self.ends(here, f"https://127.0.0.1:{mute.getsockname()[1]}/")

    def test_a_look_up_by_the_system(self, monkeypatch) -> None:
        asked, released = threading.Event(), threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: hangs(asked, released))
        with client(timeout=60) as here:
            self.ends(here, "http://agent.example/", lambda: asked.wait(DEADLOCK))
        released.set()

    def test_a_look_up_by_a_resolver_of_ones_own_after_which_nothing_is_sent(self) -> None:
        class Slow:
            def resolve(self, host: str, port: int) -> Sequence[str]:
                asked.set()
                released.wait(DEADLOCK)
                return ["127.0.0.1"]

        asked, released = threading.Event(), threading.Event()
        with served() as server, client(Slow(), timeout=60) as here:
            self.ends(here, f"http://agent.example:{server.port}/", lambda: asked.wait(DEADLOCK))
            released.set()
            time.sleep(0.1)
            assert server.connections == 0

    def test_the_wait_for_a_look_up(self, monkeypatch, lined_up: threading.Event) -> None:
        monkeypatch.setattr("asap_adapters.blocking.connecting.THREADS", 5)
        asked, released = threading.Event(), threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: hangs(asked, released))
        with client(timeout=60) as here:
            url = "http://agent.example/"
            first = threading.Thread(target=lambda: _error(here, url))
            first.start()
            asked.wait(DEADLOCK)
            self.ends(here, url, lambda: lined_up.wait(DEADLOCK))
            first.join(DEADLOCK)
        released.set()

    def test_the_wait_for_a_connection(self, monkeypatch, lined_up: threading.Event) -> None:
        monkeypatch.setattr("asap_adapters.blocking.transport.PLACES", 5)
        with served(silent) as server, client(timeout=60) as here:
            url = f"http://127.0.0.1:{server.port}/"
            first = threading.Thread(target=lambda: _error(here, url))
            first.start()
            until(lambda: server.requests == 1)
            self.ends(here, url, lambda: lined_up.wait(DEADLOCK))
            first.join(DEADLOCK)
            assert server.connections == 1

    def test_at_any_moment(self) -> None:
        """On new connections and on kept ones: an answer, or the error, and no socket is left open."""
        rng = random.Random(11)
        with served() as server:
            url = f"http://127.0.0.1:{server.port}/"
            for _ in range(100):
                with client(timeout=60) as here:
                    self.ends(here, url, lambda: time.sleep(rng.uniform(0, 0.003)), lambda: loop(here, url))

    def ends(
        self,
        here: Client,
        url: str,
        begun: Callable[[], object] | None = None,
        call: Callable[[], object] | None = None,
    ) -> None:
        errors: list[BaseException] = []
        before = open_files()

        def caller() -> None:
            try:
                (call or (lambda: here.get(url)))()
            except Exception as error:  # noqa: BLE001 - compared below
                errors.append(error)

        thread = threading.Thread(target=caller)
        thread.start()
        if begun is None:
            until(lambda: open_files() > before)
            time.sleep(0.1)
        else:
            begun()
        here.driver.close()
        closed = time.monotonic()
        thread.join(DEADLOCK)
        assert time.monotonic() - closed < DEADLOCK / 2
        assert [(type(error), "closed while the call ran" in str(error)) for error in errors] == [(RuntimeError, True)]


def loop(here: Client, url: str) -> None:
    while here.driver.is_open:
        here.get(url)
    raise RuntimeError("this client was closed while the call ran")


class TestProxies:
    def test_a_proxy_of_the_environment_is_used(self, monkeypatch) -> None:
        with served() as proxy:
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
            with client(trust_env=True) as here:
                assert here.get("http://agent.example/there") == b"{}"
            assert proxy.heads[0].startswith(b"GET http://agent.example/there HTTP/1.1\r\n")

    def test_a_proxy_that_is_gone_is_named(self, monkeypatch) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        with client(trust_env=True) as here, pytest.raises(Unreachable, match="the proxy that http_proxy names"):
            here.get("http://agent.example/")

    def test_https_through_an_https_proxy_is_refused_in_words(self, monkeypatch, certificate) -> None:
        with served(tls=context(certificate)) as proxy:
            monkeypatch.setenv("https_proxy", f"https://localhost:{proxy.port}")
            verify, words = trusting(certificate), "through a proxy that is reached by https"
            with client(trust_env=True, verify=verify) as here, pytest.raises(Unreachable, match=words):
                here.get("https://agent.example/")


class TestCtrlC:
    @pytest.mark.parametrize("answer", [silent, trickling])
    def test_it_interrupts_a_response(self, answer) -> None:
        with served(answer) as server, client() as here:
            self.interrupted(lambda: here.get(f"http://127.0.0.1:{server.port}/"), once=lambda: server.requests == 1)

    @pytest.mark.parametrize("answer", [silent, trickling])
    def test_it_interrupts_a_transport_of_ones_own(self, answer) -> None:
        with served(answer) as server, client(timeout=DEADLOCK, transport=httpx.HTTPTransport()) as here:
            self.interrupted(lambda: here.get(f"http://127.0.0.1:{server.port}/"), once=lambda: server.requests == 1)

    def test_it_interrupts_what_is_sent(self) -> None:
        with served(silent) as server, client() as here:
            self.interrupted(lambda: here.post(f"http://127.0.0.1:{server.port}/", "x" * 20_000_000))

    def test_it_interrupts_connecting(self) -> None:
        with served() as server, full(server.port) as slow, client() as here:
            self.interrupted(lambda: here.get(f"http://agent.example:{server.port}/", announced=(slow,)))

    def test_it_interrupts_a_handshake(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute, client() as here:
            self.interrupted(lambda: here.get(f"https://127.0.0.1:{mute.getsockname()[1]}/"))

    def test_it_interrupts_the_systems_resolver(self, monkeypatch) -> None:
        released = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(DEADLOCK) or [])
        with client() as here:
            self.interrupted(lambda: here.get("http://agent.example/"))
        released.set()

    def test_it_interrupts_a_resolver(self) -> None:
        class Slow:
            def resolve(self, host: str, port: int) -> Sequence[str]:
                released.wait(DEADLOCK)
                return []

        released = threading.Event()
        with client(Slow()) as here:
            self.interrupted(lambda: here.get("http://agent.example/"))
        released.set()

    def test_it_interrupts_the_wait_for_a_connection(self, monkeypatch) -> None:
        monkeypatch.setattr("asap_adapters.blocking.transport.PLACES", 5)
        released = threading.Event()
        with served(lambda _: released.wait(DEADLOCK) and False) as server, client() as here:
            url = f"http://127.0.0.1:{server.port}/"
            thread = threading.Thread(target=lambda: _error(here, url))
            thread.start()
            until(lambda: server.requests == 1)
            self.interrupted(lambda: here.get(url))
            released.set()
            thread.join(DEADLOCK)
            # Its place in the queue is gone: the next one isn't late.
            server.answer = lambda peer: peer.sendall(OK)
            assert here.get(url) == b"{}"

    def test_at_any_moment_it_leaves_nothing_behind(self) -> None:
        """Both kinds of requests, on new connections and on kept ones."""
        rng = random.Random(7)

        def answer(peer: socket.socket) -> bool:
            response = rng.choice([OK, AND_CLOSES])
            peer.sendall(response[:20])
            peer.sendall(response[20:])
            return response is OK

        with served(answer) as server, client() as here:
            url = f"http://127.0.0.1:{server.port}/"
            here.get(url)
            begun = time.monotonic()
            here.get(url)
            usual = time.monotonic() - begun
            for _ in range(300):
                self.interrupted(lambda: here.get(url), after=rng.uniform(0, 3 * usual))
                assert here.get(url) == b"{}"
            assert interrupts._hold is None

    def interrupted(
        self, call: Callable[[], object], after: float = 0.1, once: Callable[[], bool] = lambda: True
    ) -> None:
        """Ctrl-C to this process, as a terminal sends it, while `call` runs or soon afterwards."""
        here = threading.get_ident()

        def interrupt() -> None:
            until(once)
            signal.pthread_kill(here, signal.SIGINT)

        timer = threading.Timer(after, interrupt)
        begun = time.monotonic()
        with suppress(KeyboardInterrupt):
            timer.start()
            call()
            # Python doesn't notice a signal that arrives when it's about to begin a system call, so in small pieces.
            for _ in range(1_000):
                time.sleep(0.01)
        timer.join()
        assert time.monotonic() - begun < after + DEADLOCK / 2
