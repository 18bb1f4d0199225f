"""The agent that the example drivers serve and call, made of public names only, and a server for it that counts."""

import json
import secrets
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest

from asap_core import (
    Agent,
    Answered,
    Capabilities,
    Dispatch,
    Endpoints,
    Fork,
    Instant,
    Manifest,
    ManualClock,
    Payload,
    ReadBody,
    Registry,
    RegistryEntry,
    Request,
    Respond,
    Skill,
    TaskRequest,
    TaskResponse,
    TaskStatus,
    WallTime,
    to_json,
)

ELSEWHERE = "run by .ci/run in an environment of its own:"

URN = "urn:asap:agent:echo"
SENDER = "urn:asap:agent:caller"


def needs(package: str) -> None:
    """Skip this module if a package of the extra `drivers` isn't installed."""
    if find_spec(package) is None:
        pytest.skip(f"{ELSEWHERE} {package} isn't installed here", allow_module_level=True)


class SystemClock:
    def monotonic(self) -> Instant:
        return Instant(time.monotonic())

    def wall(self) -> WallTime:
        return WallTime(time.time())


def new_id() -> str:
    return uuid.uuid4().hex


def make_agent(
    base_url: str,
    *,
    clock: SystemClock | ManualClock | None = None,
    ids: Callable[[], str] = new_id,
    key: bytes | None = None,
    shared_admission=False,
) -> Agent:
    """An agent with one skill, `echo`, bound and ready to be served at `base_url`."""
    return Agent(echo_manifest(base_url)).bind(
        clock=clock or SystemClock(),
        ids=ids,
        key=key or secrets.token_bytes(32),
        shared_admission=shared_admission,
    )


def echo_manifest(base_url: str) -> Manifest:
    """The manifest of an agent at `base_url` with one skill, `echo`."""
    return Manifest(
        id=URN,
        name="Echo",
        version="1.0.0",
        description="Echoes task input",
        capabilities=Capabilities(skills=[Skill(id="echo", description="Echo back the input")]),
        endpoints=Endpoints(asap=f"{base_url}/asap"),
    )


def echo(call: Dispatch, ids: Callable[[], str] = new_id) -> Payload:
    """The handler: what the caller sent as its task's input."""
    assert isinstance(call.request, TaskRequest)
    return TaskResponse(task_id=f"task_{ids()}", status=TaskStatus.COMPLETED, result=call.request.input)


def task(**given: object) -> dict[str, object]:
    """The payload of a `task.request` for `echo`."""
    return {"skill_id": "echo", "input": given}


def registry_json(manifest: Manifest, base_url: str) -> bytes:
    """A registry that lists this agent alone."""
    entry = RegistryEntry(
        id=manifest.id,
        name=manifest.name,
        description=manifest.description,
        endpoints={"http": f"{base_url}/asap", "manifest": f"{base_url}/.well-known/asap/manifest.json"},
        skills=["echo"],
        asap_version="0.1",
    )
    return json.dumps(to_json(Registry(version="1.0", updated_at="2026-01-01T00:00:00Z", agents=[entry]))).encode()


class Demo:
    """The echo agent on a server of its own, in threads, for the clients of drivers.

    url: its base URL. `registry`: the URL of a registry that lists it.
    hits: how often each path was requested.
    open: cleared, manifests are requested and not answered until it's set again.
    arrived: is set by each request for a manifest.
    """

    def __init__(self, url: str) -> None:
        self.url, self.registry = url, f"{url}/registry.json"
        self.agent = make_agent(url)
        self.hits: Counter[str] = Counter()
        self.open, self.arrived = threading.Event(), threading.Event()
        self.open.set()
        self._lock = threading.Lock()

    def __call__(self, environ, start_response) -> list[bytes]:
        path = environ["PATH_INFO"]
        with self._lock:
            self.hits[path] += 1
        if path == "/registry.json":
            start_response("200 OK", [("content-type", "application/json")])
            return [registry_json(self.agent.manifest, self.url)]
        if path.endswith("manifest.json"):
            self.arrived.set()
            self.open.wait(60)
        with self._lock:
            response = serve_whole(self.agent, environ["REQUEST_METHOD"], path, *request_of(environ))
        start_response(f"{response.status} -", [(name.decode(), value.decode()) for name, value in response.headers])
        return [response.body]


def request_of(environ) -> tuple[tuple[tuple[bytes, bytes], ...], bytes]:
    named = {k.removeprefix("HTTP_"): v for k, v in environ.items() if k.startswith(("HTTP_", "CONTENT_")) and v}
    headers = tuple((k.replace("_", "-").lower().encode(), v.encode("latin-1")) for k, v in named.items())
    return headers, environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))


def serve_whole(agent: Agent, method: str, target: str, headers, body: bytes, *, peer: str = "127.0.0.1"):
    """Drive one whole request to its response."""
    state = agent.open(Request(method=method, target=target, headers=headers, peer=peer))
    if isinstance(state, ReadBody):
        fed = state.feed(body)
        state = fed.end() if isinstance(fed, ReadBody) else fed
    if isinstance(state, Fork):
        calls = [call.replied(echo(call)) if isinstance(call, Dispatch) else call for call in state.calls]
        state = state.answered([call for call in calls if isinstance(call, Answered)])
    assert isinstance(state, Respond)
    response = state.response
    state.sent()
    return response


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64


class _Quiet(WSGIRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def wsgi_server(make: Callable[[str], Callable[..., list[bytes]]]) -> Iterator[str]:
    """Serve the WSGI application that `make` returns for a base URL, in threads. Yields the base URL."""
    server = make_server("127.0.0.1", 0, lambda *_: [], server_class=_Server, handler_class=_Quiet)
    url = f"http://127.0.0.1:{server.server_port}"
    server.set_app(make(url))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serve_demo() -> Iterator[Demo]:
    """Serve the echo agent."""
    served: list[Demo] = []

    def make(url: str) -> Demo:
        served.append(Demo(url))
        return served[0]

    with wsgi_server(make):
        try:
            yield served[0]
        finally:
            served[0].open.set()


@contextmanager
def raw_server(*chunks: bytes, pause: float = 0.0) -> Iterator[str]:
    """Answer one connection with these bytes, with pauses between them, and close it. Yields the base URL."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.recv(65_536)
                for chunk in chunks:
                    connection.sendall(chunk)
                    if ended.wait(pause):
                        return

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            thread.join(60)


def until(happened: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until something has happened in another thread."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it hasn't happened"
        time.sleep(0.005)
