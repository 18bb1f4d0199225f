"""Binds agents to the system, in the loop that serves them: to its clocks, its randomness, and a log of decisions."""

import logging
from collections.abc import Collection
from typing import Final

from asap_adapters.coding import CODINGS
from asap_adapters.system import LoopClock, new_id, new_secret
from asap_core.arguments import expect_kind
from asap_core.server.agent import Agent
from asap_core.server.events import Decision, Observer, What
from asap_core.server.metrics import Counters
from asap_core.server.serving import Scope

_log: Final = logging.getLogger("asap.admission")
# Logged at DEBUG; refusals at INFO.
_LET_IN: Final = (What.ACCEPTED, What.REPEATED)


def log_decision(decision: Decision) -> None:
    """Write one line: what was decided, about whom, and why. An observer for `Agent.bind`."""
    level = logging.DEBUG if decision.what in _LET_IN else logging.INFO
    if not _log.isEnabledFor(level):
        return
    facts = {
        "peer": decision.peer or "unknown",
        "principal": decision.principal,
        "type": decision.payload_type,
        "code": None if decision.kind is None else decision.kind.code,
        "age": None if decision.age is None else f"{decision.age:.3f}",
    }
    told = " ".join(f"{name}={value}" for name, value in facts.items() if value is not None)
    _log.log(level, "%s %s", decision.what.value, told)


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
