"""Invalid arguments of serve, AsgiApp and in_process are refused at once, in one line with the expected form."""

import functools
import threading
from types import MappingProxyType, SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import anyio
import pytest

from asap_adapters import TLS, AsgiApp, Handlers, Redis, StateFile, run, serve
from asap_adapters.server.listener import listen
from asap_adapters.testing import InProcessTransport, in_process

pytestmark = pytest.mark.anyio

BASE = "http://localhost"


async def fine(_request, _context):
    return {"fine": True}


def generator(_request, _context):
    yield


async def async_generator(_request, _context):
    yield


class Generates:
    def __call__(self, _request, _context):
        yield

    def method(self, _request, _context):
        yield


class NoArguments:
    async def __call__(self, _request, _context): ...


HANDLERS: Any = [
    ({"echo": None}, r"handlers\['echo'\]: expected a function \(request, context\), async or not; not NoneType"),
    ({"echo": "mymodule:echo"}, r"handlers\['echo'\]: expected a function .*; not str"),
    ({"echo": lambda: 1}, r"handlers\['echo'\]: expected a function \(request, context\), .* takes other arguments"),
    ({"echo": lambda _request: 1}, "takes other arguments"),
    ({"echo": lambda _request, _context, _more: 1}, "takes other arguments"),
    ({"echo": lambda _request, *, context: context}, "takes other arguments"),
    ({"echo": NoArguments}, "takes other arguments"),
    ({"echo": functools.partial(fine, 1)}, "takes other arguments"),
    ({"echo": generator}, "this is a generator function, with `yield` in it"),
    ({"echo": async_generator}, "this is a generator function, with `yield` in it"),
    ({"echo": Generates()}, "this is a generator function"),
    ({"echo": Generates().method}, "this is a generator function"),
    ({"echo": functools.partial(functools.partial(generator))}, "this is a generator function"),
    ([fine], r'handlers: expected a mapping with keys of str, such as \{"echo": echo\}; not list'),
    (fine, "handlers: expected a mapping with keys of str, .*; not function"),
    (None, "handlers: expected a mapping with keys of str, .*; not NoneType"),
    ({1: fine}, "handlers: expected a mapping with keys of str"),
    ({}, "none for echo"),
    ({"echo": fine, "more": fine}, "lacks more"),
]
OTHERS: Any = [
    (
        {"authenticate": SimpleNamespace(verify="secret", proofs=None)},
        r"authenticate: expected a function \(credential\), async or not; not str",
    ),
    ({"authenticate": "secret"}, "authenticate: expected a function"),
    (
        {"authenticate": SimpleNamespace(verify=len, proofs="all")},
        "authenticate: expected an authenticator whose proofs",
    ),
    ({"authenticate": lambda: None}, "authenticate: .* takes other arguments"),
    ({"authenticate": generator}, "authenticate: .*generator"),
]
SERVED: Any = [
    ({"observe": "log"}, r"observe: expected a function \(decision\) that isn't async; not str"),
    ({"observe": fine}, "observe: .* this is an async one"),
    ({"metrics": "yes"}, "metrics: expected bool or Counters, such as True; not str"),
    ({"storage": "agent.state"}, r'storage: expected StateFile or Redis, such as StateFile\("agent.state"\); not str'),
]
LISTENING: Any = [
    ({"at": ("127.0.0.1", "8000")}, "port: expected a whole number from 0 to 65535; not str"),
    ({"at": ("127.0.0.1", 65_536)}, "port: expected a whole number from 0 to 65535"),
    ({"at": ("127.0.0.1", -1)}, "port: expected a whole number"),
    ({"at": ("127.0.0.1", None)}, "port: expected a whole number"),
    ({"at": (None, 8000)}, 'host: expected str, such as "127.0.0.1"; not NoneType'),
    ({"at": (127, 8000)}, "host: expected str"),
    ({"at": BASE}, r'at: expected tuple or Bound, such as \("127.0.0.1", 8000\); not str'),
    ({"at": ("127.0.0.1",)}, r'at: expected a host and a port, such as \("127.0.0.1", 8000\)'),
    ({"stop": True}, r"stop: expected an event that tasks wait for, such as anyio.Event\(\)"),
    ({"stop": threading.Event()}, "stop: expected an event that tasks wait for"),
    ({"tls": "server.pem"}, r'tls: expected TLS, such as TLS\("server.pem", "server-key.pem"\); not str'),
]
OPTIONS: Any = [
    (Handlers, {"skills": {}, "on": [fine]}, "on: expected a mapping with keys of str, .*; not list"),
    (Handlers, {"skills": {}, "on": {"task.cancel": None}}, r"on\['task.cancel'\]: expected a function"),
    (Handlers, {"skills": {}, "on": {5: fine}}, "on: expected a mapping with keys of str"),
    (Handlers, {"skills": {}, "threads": "8"}, "threads: expected a whole number from 1 to 10000; not str"),
    (Handlers, {"skills": {}, "threads": 0}, "threads: expected a whole number from 1 to 10000"),
    (Handlers, {"skills": {}, "threads": True}, "threads: expected a whole number"),
    (StateFile, {"path": 5}, 'path: expected str or Path, such as "agent.state"; not int'),
    (Redis, {"url": True}, 'url: expected str, such as "redis://localhost:6379/0"; not bool'),
    (Redis, {"url": "redis://h", "share_peer_limits": 1}, "share_peer_limits: expected bool, such as True; not int"),
    (TLS, {"cert": 5}, 'cert: expected str or Path, such as "server.pem"; not int'),
    (TLS, {"cert": "server.pem", "key": 5}, 'key: expected str or Path, such as "server-key.pem"; not int'),
]
REPLACED: Any = [
    ({"port": 0}, r"port= has been replaced: write at=\(host, port\)"),
    ({"bound": None}, "bound= has been replaced: write at=bound"),
    ({"threads": 8}, r"threads= has been replaced: write Handlers\(handlers, threads=…\) for the handlers"),
    ({"tls_key": "key.pem"}, r"tls_key= has been replaced: write tls=TLS\(cert, key\)"),
    ({"state": "agent.state"}, r"state= has been replaced: write storage=StateFile\(path\)"),
    ({"share_peer_limits": True}, r"write storage=Redis\(url, share_peer_limits=True\)"),
]


def one_line(caught) -> bool:
    return "\n" not in str(caught.value)


@pytest.mark.parametrize(("handlers", "expected"), HANDLERS)
async def test_invalid_handlers_are_refused(agent, handlers, expected) -> None:
    made = agent()
    for start in (lambda: serve(made, handlers), lambda: in_process(made, handlers).__aenter__()):
        with pytest.raises(ValueError, match=expected) as caught:
            await start()
        assert one_line(caught)
    with pytest.raises(ValueError, match=expected):
        AsgiApp(agent(), handlers)


@pytest.mark.parametrize(("options", "expected"), OTHERS)
async def test_invalid_options_of_all_servers_are_refused(agent, options, expected) -> None:
    handlers = {"echo": fine}
    for start in (serve, lambda *args, **kwargs: in_process(*args, **kwargs).__aenter__()):
        with pytest.raises(ValueError, match=expected) as caught:
            await start(agent(auth="authenticate" in options), handlers, **options)
        assert one_line(caught)
    with pytest.raises(ValueError, match=expected):
        AsgiApp(agent(auth="authenticate" in options), handlers, **options)


@pytest.mark.parametrize(("options", "expected"), SERVED)
async def test_invalid_options_of_servers_are_refused(agent, options, expected) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        await serve(agent(), {"echo": fine}, **options)
    assert one_line(caught)
    if "metrics" not in options:
        with pytest.raises(ValueError, match=expected):
            AsgiApp(agent(), {"echo": fine}, **options)


@pytest.mark.parametrize(("options", "expected"), LISTENING)
async def test_an_invalid_address_is_refused_and_leaves_the_agent_unbound(agent, options, expected) -> None:
    made = agent()
    with pytest.raises(ValueError, match=expected) as caught:
        await serve(made, {"echo": fine}, **options)
    assert one_line(caught)
    # What's mended can be tried again.
    assert not made.bound


@pytest.mark.parametrize(("make", "options", "expected"), OPTIONS)
def test_invalid_values_of_option_objects_are_refused(make, options, expected) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        make(**options)
    assert one_line(caught)


@pytest.mark.parametrize(("options", "expected"), REPLACED)
async def test_a_replaced_keyword_is_refused_with_its_replacement(agent, options, expected) -> None:
    with pytest.raises(TypeError, match=expected):
        await serve(agent(), {"echo": fine}, **options)


async def test_the_application_and_the_client_in_process_refuse_replaced_keywords_too(agent) -> None:
    with pytest.raises(TypeError, match=r"state= has been replaced: write storage=StateFile\(path\)"):
        AsgiApp(agent(), {"echo": fine}, state="agent.state")  # type: ignore[call-arg]
    makers: Any = (in_process, InProcessTransport)
    for make in makers:
        with pytest.raises(TypeError, match=r"on= has been replaced: write Handlers\(handlers, on=…\)"):
            make(agent(), {"echo": fine}, on={})


async def test_an_invalid_port_of_a_listener_is_refused() -> None:
    with pytest.raises(ValueError, match="port: expected a whole number"):
        await listen("127.0.0.1", "8000")  # type: ignore[arg-type]


@pytest.mark.parametrize("made", [{}, None, "urn:asap:agent:a"], ids=repr)
async def test_a_value_that_is_no_agent_is_refused(made, manifest) -> None:
    for given in (made, manifest()):
        with pytest.raises(ValueError, match=r"agent: expected Agent, such as Agent\(manifest\); not "):
            await serve(given, {"echo": fine})
        with pytest.raises(ValueError, match="agent: expected Agent"):
            AsgiApp(given, {"echo": fine})
        with pytest.raises(ValueError, match="agent: expected Agent"):
            await in_process(given, {"echo": fine}).__aenter__()


def test_a_coroutine_instead_of_a_function_is_refused(agent) -> None:
    with pytest.raises(ValueError, match=r"run\(serve, agent, handlers\)"):
        run(serve(agent(), {"echo": fine}))  # type: ignore[arg-type]
    for main in (None, "serve"):
        with pytest.raises(ValueError, match="expected a function and its arguments"):
            run(main)  # type: ignore[arg-type]


class Object:
    async def __call__(self, _request, _context):
        return {"fine": True}

    async def method(self, _request, _context):
        return {"fine": True}

    @classmethod
    async def of_class(cls, _request, _context):
        return {"fine": True}

    @staticmethod
    async def static(_request, _context):
        return {"fine": True}


def wrapped(function):
    """Calls a function of one argument; `wraps` makes it look like that."""

    @functools.wraps(function)
    async def wrapper(request, _context):
        return function(request)

    return wrapper


async def with_more(_first, _request, _context, *, more=None):
    return {"fine": True}


async def with_defaults(_request, _context=None, _more=1):
    return {"fine": True}


@pytest.mark.parametrize(
    "handler",
    [
        fine,
        with_defaults,
        Object(),
        Object().method,
        Object.of_class,
        Object.static,
        functools.partial(with_more, 1),
        functools.partial(functools.partial(with_more, 1), more=2),
        functools.partial(Object()),
        functools.partial(Object().method),
        wrapped(lambda _request: {"fine": True}),
        AsyncMock(return_value={"fine": True}),
        AsyncMock(spec=fine, return_value={"fine": True}),
    ],
)
async def test_any_callable_may_be_a_handler(agent, handler) -> None:
    async with in_process(agent(), MappingProxyType({"echo": handler})) as client:
        reply = await client.send(BASE, "task.request", {"skill_id": "echo", "input": {}})
    assert reply.payload["result"] == {"fine": True}


async def test_a_callable_with_any_arguments_or_no_signature_may_be_a_handler(agent) -> None:
    for handler in (lambda *_arguments: None, lambda *_arguments, **_more: None, Mock(), max):
        AsgiApp(agent(), {"echo": handler})


async def test_an_event_of_the_loop_may_stop_a_server(agent) -> None:
    stop = anyio.Event()
    stop.set()
    await serve(agent(), {"echo": fine}, at=("127.0.0.1", 0), stop=stop)
