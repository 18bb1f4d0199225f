"""Python in a browser (Pyodide): an agent that a service worker calls, and a client on the browser's own `fetch`.

    agent.bind(clock=CLOCK, ids=lambda: uuid.uuid4().hex, key=secrets.token_bytes(32))
    respond = create_proxy(PageAgent(agent, handle).respond)
    # In JavaScript: self.onfetch = (event) => event.respondWith(respond(event.request))

    mine = PageClient(Client("urn:asap:agent:me"))
    manifest = await mine.run(mine.client.discover("https://agent.example"))

The core runs there as it is, without msgspec: micropip installs it with attrs and cattrs, which are pure Python. A page
has one event loop, so nothing here needs a lock. `pyodide_driver.mjs` runs the same under node.

A guarantee is gone: the browser resolves names, and doesn't say which address it connects to. `OutboundPolicy` judges
each URL, and an address that is written in it, but not the addresses of a name. A name may lead into a private network
(DNS rebinding), and only the browser's own rules stop that. An agent that was announced on the local network can't be
requested at all, since the browser can't be told its address.

What it leaves out:

* Redirects fail. A page can't read where they lead, so `OutboundPolicy(redirects=…)` has no effect.
* Agents on other origins must allow the page (CORS; `Policy.origins`). If they don't, `fetch` fails without a reason.
* A failed request counts as sent, since `fetch` doesn't say how far it got.
* There are no files and no local network, so registries must be URLs.
* A browser stops a service worker that is idle, and with it the memory of nonces and keys. Bind the agent again then:
  it refuses envelopes from before that.
* No tokens are verified and no store is shared; docs/embedding.md says what to do in these states.
"""

import asyncio
import logging
import random
import secrets
import time
import uuid
from asyncio import Future
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, assert_never
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import js
from pyodide.ffi import JsException, to_js

from asap_core import (
    HANDLER_TIMEOUT,
    Advice,
    Agent,
    Answered,
    Authenticate,
    CallState,
    ClaimProof,
    Dispatch,
    Done,
    Exchange,
    Fork,
    FunctionClock,
    Hold,
    Payload,
    ReadBody,
    Refusal,
    Request,
    Respond,
    TakeLimit,
    broken_call,
)
from asap_core.client import (
    Barred,
    Client,
    Completed,
    Dial,
    Effect,
    Expired,
    Fetch,
    Next,
    Outcome,
    Program,
    ReadFile,
    Received,
    Returned,
    Runtime,
    Sleep,
    Stage,
    Unanswered,
    Unavailable,
    Wait,
    WriteFile,
    step,
)

T = TypeVar("T")

# --- both ------------------------------------------------------------------------------------------------------------


CLOCK = FunctionClock(time.monotonic, time.time)
Waiting = WeakValueDictionary[object, Future[None]]


def wake(owner: Agent | Client, waiting: Waiting) -> None:
    """Wake those who need not wait any longer."""
    for ticket in owner.take_wakes():
        waiting.pop(ticket, Future()).set_result(None)


def js_object(**fields: object) -> Any:
    """Return a JavaScript object."""
    return to_js(fields, dict_converter=js.Object.fromEntries)


# --- server ----------------------------------------------------------------------------------------------------------


class PageAgent:
    """An agent as a function from a JavaScript `Request` to a `Response`."""

    def __init__(self, agent: Agent, handle: Callable[[Dispatch], Awaitable[Payload]]) -> None:
        self.agent, self.handle, self.held = agent, handle, Waiting()

    async def respond(self, asked: Any) -> Any:
        """Drive one exchange. All requests come from this browser, so from this machine."""
        headers = [(name.encode(), value.encode("latin-1")) for name, value in asked.headers]
        target = urlsplit(asked.url)._replace(scheme="", netloc="").geturl()
        request = Request(method=asked.method, target=target, headers=headers, peer="127.0.0.1", local="127.0.0.1")
        state: Exchange = self.agent.open(request)
        try:
            while True:
                match state:
                    case ReadBody():
                        fed = state.feed((await asked.arrayBuffer()).to_bytes())
                        state = fed.end() if isinstance(fed, ReadBody) else fed
                    case Fork(calls):
                        state = state.answered(await asyncio.gather(*map(self.answer, calls)))
                    case Respond(response):
                        fields = [[name.decode(), value.decode("latin-1")] for name, value in response.headers]
                        body, state = to_js(response.body) if response.body else None, state.sent()
                        return js.Response.new(body, js_object(status=response.status, headers=fields))
                    case TakeLimit() | Authenticate():
                        state = state.unavailable()
                    case ClaimProof() | Done():
                        raise AssertionError("no proofs are verified here, and each exchange ends with a response")
                    case _:
                        assert_never(state)
        finally:
            if not isinstance(state, Done):
                state.abandon()
            wake(self.agent, self.held)

    async def answer(self, call: CallState) -> Answered:
        """Drive one call to its answer."""
        while isinstance(call, Dispatch | Hold):
            call = await self.work(call) if isinstance(call, Dispatch) else call.again()
            if isinstance(call, Hold):
                await asyncio.wait([self.held.setdefault(call.ticket, Future())], timeout=call.seconds)
        return call if isinstance(call, Answered) else broken_call(call)

    async def work(self, call: Dispatch) -> CallState:
        """Run the handler, and wake those who wait for its answer."""
        try:
            return call.replied(await asyncio.wait_for(self.handle(call), call.deadline))
        except TimeoutError:
            return call.failed(Refusal(kind=HANDLER_TIMEOUT))
        except Exception:
            logging.getLogger(__name__).exception("a handler failed")
            return broken_call(call)
        finally:
            wake(self.agent, self.held)


# --- client ----------------------------------------------------------------------------------------------------------

# Without the browser's cookies and cache: the core decides what is sent, and what is kept.
ALONE = {"redirect": "error", "credentials": "omit", "cache": "no-store"}


class PageClient:
    """Runs the programs of `client`, each in the task of its caller."""

    def __init__(self, client: Client) -> None:
        self.client = client.bind(Runtime(CLOCK, lambda: uuid.uuid4().hex, secrets.token_hex, random.random))
        self.waiting = Waiting()

    async def run(self, program: Program[T]) -> T:
        """Run one program. If this task is cancelled, another one that waits for the same takes over."""
        outcome: Outcome | None = None
        try:
            while not isinstance(moved := step(program, outcome), Returned):
                self.settle()
                outcome = await self.perform(moved)
            return moved.value
        finally:
            program.close()
            self.settle()

    def settle(self) -> None:
        """Wake those who need not wait any longer, and log what programs noted."""
        wake(self.client, self.waiting)
        for remark in self.client.take_remarks():
            getattr(logging.getLogger(remark.logger), remark.level)("%s", remark.text)

    async def perform(self, effect: Effect) -> Outcome:
        """Carry out one effect."""
        match effect:
            case Fetch():
                return await fetch(effect)
            case Wait(ticket, seconds):
                await asyncio.wait([self.waiting.setdefault(ticket, Future())], timeout=0 if ticket.ready else seconds)
                return Completed() if ticket.ready else Expired()
            case Sleep(seconds):
                return await asyncio.sleep(seconds, Completed())
            case Next() | ReadFile() | WriteFile():
                return Unavailable("a page has neither files nor the local network")
            case _:
                assert_never(effect)


async def fetch(asked: Fetch) -> Received | Unanswered | Expired | Barred:
    """Make one request by the browser's `fetch`. Only an address that is written in the URL can be judged."""
    if asked.route.announced:
        return Barred("a browser can't be told its address", Advice("use an agent with a name in the DNS"))
    if asked.route.name is None and not isinstance(chosen := asked.route.choose(), Dial):
        return chosen
    abort, body = js.AbortController.new(), None if asked.body is None else to_js(asked.body)
    options = js_object(method=asked.method, headers=list(asked.headers), body=body, signal=abort.signal, **ALONE)
    try:
        async with asyncio.timeout(asked.seconds):
            response = await js.fetch(asked.url, options)
            asked.reader.begin(response.status, [(name, value) for name, value in response.headers], decoded=True)
            chunks = response.body.getReader()
            while asked.reader.wants and not (chunk := await chunks.read()).done:
                asked.reader.feed(chunk.value.to_bytes())
                while asked.reader.work():  # noqa: ASYNC110 - it lets others run between pieces of work
                    await asyncio.sleep(0)
            asked.reader.end()
            return Received()
    except (JsException, TimeoutError) as error:
        stage = Stage.ANSWERED if asked.reader.status else Stage.SENT
        return Expired(stage) if isinstance(error, TimeoutError) else Unanswered(stage, "fetch failed")
    finally:
        abort.abort()
