"""Decisions of admission as log lines, on the logger `asap.admission`: refusals at INFO, what was let in at DEBUG."""

import logging
from typing import Final

from asap_core.server.events import Decision, What

log: Final = logging.getLogger("asap.admission")

_LET_IN: Final = frozenset({What.ACCEPTED, What.REPEATED})


def log_decision(decision: Decision) -> None:
    """Write one line: what was decided, about whom, and why. An observer for `Agent.bind`."""
    level = logging.DEBUG if decision.what in _LET_IN else logging.INFO
    if not log.isEnabledFor(level):
        return
    facts = {
        "peer": decision.peer or "unknown",
        "principal": decision.principal,
        "type": decision.payload_type,
        "code": None if decision.kind is None else decision.kind.code,
        "age": None if decision.age is None else f"{decision.age:.3f}",
    }
    told = " ".join(f"{name}={value}" for name, value in facts.items() if value is not None)
    log.log(level, "%s %s", decision.what.value, told)
