"""What a server does when it starts: binds its agent to the system, warns its operator, loads what is rarely used.

An agent is bound in the loop that serves it: to its clocks, its randomness, and the log of decisions.
"""

import gc
import logging
import socket
from collections.abc import Collection
from contextlib import suppress
from typing import Final

import anyio
import anyio.lowlevel

from asap_adapters.coding import CODINGS
from asap_adapters.server.heap import forget_generated_sources, give_back_free_blocks
from asap_adapters.server.logs import log_decision
from asap_adapters.system import LoopClock, new_id, new_secret
from asap_core.arguments import expect_kind
from asap_core.net.urls import is_loopback, leads_elsewhere, read_url
from asap_core.server.agent import Agent
from asap_core.server.events import Observer
from asap_core.server.exchange import ASAP_PATH
from asap_core.server.metrics import Counters
from asap_core.server.serving import Scope
from asap_core.wire.codec import warm_up


def bind_agent(
    agent: Agent,
    *,
    observe: Observer = log_decision,
    metrics: bool | Counters = False,
    shared_admission: bool = False,
    shared_limits: Collection[Scope] = (),
) -> Agent:
    """Give an agent the system's clock and randomness, and return it. Does nothing if it's bound already.

    observe: is told every decision of admission; by default each is logged.
    metrics: True counts the decisions and shows them at /asap/metrics; `Counters` with memory that processes share show
        the sum of all of them.
    shared_admission: the driver has a store, and is asked (`Admit`, `Record`, `ClaimProof`).
    shared_limits: the scopes for which the driver has a limiter, and is asked (`TakeLimit`).
    """
    expect_kind("agent", agent, Agent, "Agent(manifest)")
    expect_kind("metrics", metrics, bool | Counters, "True")
    if not agent.bound:
        counters = Counters() if metrics is True else metrics or None
        key = new_secret()
        agent.bind(
            clock=LoopClock(),
            ids=new_id,
            key=key,
            codings=CODINGS,
            observe=observe,
            counters=counters,
            shared_admission=shared_admission,
            shared_limits=shared_limits,
        )
    return agent


NO_ADDRESS: Final = (
    "callers whose address isn't known have one share together, and idempotency keys take authentication. AgentClient "
    "sends one with every message: have callers authenticate, or have a proxy tell their addresses "
    '(Policy.trusted_proxies; "unix:" is a proxy on a UNIX socket)'
)
"""What follows for callers without an address, for the log."""


_ELSEWHERE: Final = (
    "the manifest says %s, and this server listens on %s, port %d: callers don't reach it there, unless something "
    "passes them on"
)


def warn_if_elsewhere(
    agent: Agent, log: logging.Logger, *, host: str, port: int, scheme: str | None = None, mounted: bool = False
) -> None:
    """Warn if the agent's URL names this machine, and another port, scheme or path than it's served at.

    `host` and `port` are where the server listens. `scheme` is None, and `mounted` true, if something in front of the
    application may have its own.
    """
    path = None if mounted else ASAP_PATH
    parts = read_url(agent.url)
    named = "" if parts is None else parts.hostname or ""
    if leads_elsewhere(agent.url, port=port, scheme=scheme, path=path) and _is_here(named, host):
        log.warning(_ELSEWHERE, agent.url, f"[{host}]" if ":" in host else host, port)


def _is_here(named: str, host: str) -> bool:
    return named == host or is_loopback(named) or _is_own(named)


def _is_own(address: str) -> bool:
    """Whether an address is one of this machine's: only those can be bound. Names aren't asked of a resolver."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError, ValueError):
            socket.inet_pton(family, address)
            with socket.socket(family, socket.SOCK_DGRAM) as one:
                one.bind((address, 0))
                return True
    return False


# Seconds: callers that wait for the server to start are answered first.
_PAUSE: Final = 0.2


async def load_the_rest() -> None:
    """Import h11 and cattrs, which hold up the event loop for some 10 ms each.

    A request that needs one of them earlier imports it. They aren't left to the first such request, which may come when
    the process has no file descriptor left, and so can import nothing.
    """
    await anyio.sleep(_PAUSE)
    forget_generated_sources()
    import asap_adapters.server.h11_wire  # noqa: F401, PLC0415

    await anyio.lowlevel.checkpoint()
    warm_up()
    give_back_free_blocks()


# Seconds: by then the rest is loaded too.
_LOADED: Final = 1.0


async def freeze_what_is_loaded() -> None:
    """Have the garbage collector pass over all that is loaded by now: some 40,000 objects, which live to the end.

    For processes of `asap serve` only. In a user's process they may not live as long.
    """
    await anyio.sleep(_LOADED)
    gc.collect()  # what is garbage now would never be freed
    gc.freeze()
