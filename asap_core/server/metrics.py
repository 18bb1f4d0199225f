"""Counters of what was decided, and their text in the exposition format that Prometheus reads (OpenMetrics 1.0)."""

from collections import Counter
from typing import Final

from asap_core.server.events import Decision, What

__all__ = ["CONTENT_TYPE", "Counters"]

CONTENT_TYPE: Final = b"application/openmetrics-text; version=1.0.0; charset=utf-8"


class Counters:
    """An observer that counts: decisions by what they were, and what was accepted by payload type."""

    def __init__(self) -> None:
        # A series that appears with its first event is one whose first event an alarm misses.
        self._decisions = Counter(dict.fromkeys(What, 0))
        # By the types that the agent itself takes, so they're as few as it has handlers.
        self._accepted: Counter[str] = Counter()

    def __call__(self, decision: Decision) -> None:
        """Count one."""
        self._decisions[decision.what] += 1
        if decision.what is What.ACCEPTED and decision.payload_type is not None:
            self._accepted[decision.payload_type] += 1

    def __getitem__(self, what: What) -> int:
        """How many there were of a sort."""
        return self._decisions[what]

    def text(self, *, active: int, uptime: float, observer_failures: int = 0) -> bytes:
        """Write them, with how many handlers are at work and for how many seconds the agent has been up.

        `observer_failures` is how often the agent's observer has raised.
        """
        lines = ["# TYPE asap_decisions counter", "# HELP asap_decisions What admission decided."]
        lines += [f'asap_decisions_total{{what="{what.value}"}} {count}' for what, count in self._decisions.items()]
        lines += ["# TYPE asap_accepted counter", "# HELP asap_accepted Envelopes let in, by payload type."]
        lines += [f'asap_accepted_total{{payload_type="{kind}"}} {count}' for kind, count in self._accepted.items()]
        lines += [
            "# TYPE asap_observer_failures counter",
            "# HELP asap_observer_failures Exceptions that the observer of decisions has raised.",
            f"asap_observer_failures_total {observer_failures}",
            "# TYPE asap_handlers_active gauge",
            "# HELP asap_handlers_active Handlers at work.",
            f"asap_handlers_active {active}",
            "# TYPE asap_uptime_seconds gauge",
            "# UNIT asap_uptime_seconds seconds",
            "# HELP asap_uptime_seconds Time since the agent began to serve.",
            f"asap_uptime_seconds {uptime:.3f}",
            "# EOF",
            "",
        ]
        return "\n".join(lines).encode("ascii")
