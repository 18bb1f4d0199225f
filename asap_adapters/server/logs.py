"""A server's logs: a line for each decision of admission (`asap.admission`), and one for each response (`asap.access`).

The access log is written if its logger is enabled for INFO. A line has the peer's address, the method, the path, the
status, the size of the body and how long it took. It has no query, header or body, which may hold secrets.
"""

import logging
from functools import partial
from typing import Final

import anyio
from attrs import define

from asap_adapters.server.driver import Driver, PeerGone, Rest, Wire
from asap_adapters.server.handlers import Timer
from asap_core.http.messages import Request, Response
from asap_core.server.events import Decision, What
from asap_core.server.exchange import Respond

_decisions: Final = logging.getLogger("asap.admission")
# Logged at DEBUG; refusals at INFO.
_LET_IN: Final = (What.ACCEPTED, What.REPEATED)


def log_decision(decision: Decision) -> None:
    """Write one line: what was decided, about whom, and why. An observer for `Agent.bind`."""
    level = logging.DEBUG if decision.what in _LET_IN else logging.INFO
    if not _decisions.isEnabledFor(level):
        return
    facts = {
        "peer": decision.peer or "unknown",
        "principal": decision.principal,
        "type": decision.payload_type,
        "code": None if decision.kind is None else decision.kind.code,
        "age": None if decision.age is None else f"{decision.age:.3f}",
    }
    told = " ".join(f"{name}={value}" for name, value in facts.items() if value is not None)
    _decisions.log(level, "%s %s", decision.what.value, told)


_responses: Final = logging.getLogger("asap.access")
# Bytes of a path. The server's own paths are shorter; a longer one is a mistake or a scan.
_LONGEST_PATH: Final = 100
# What stands for a fact that isn't known, as in the logs of other servers.
_UNKNOWN: Final = "-"


def is_logged() -> bool:
    """Whether the access log is enabled."""
    return _responses.isEnabledFor(logging.INFO)


async def run_logged(driver: Driver, request: Request, wire: Wire, timer: Timer) -> Rest | None:
    """Drive an exchange as `driver.run` does, and log its response, or that the peer left before it had it."""
    noting = _NotingWire(wire, request, anyio.current_time())
    return await _logged(partial(driver.run, request, noting, timer), noting)


async def _logged(run: Rest, noting: "_NotingWire") -> Rest | None:
    try:
        rest = await run()
    except PeerGone:
        noting.status = _UNKNOWN
        raise
    finally:
        noting.write()
    return None if rest is None else partial(_logged, rest, noting)


def log_unreadable(peer: str, response: Response) -> None:
    """Log the response to what isn't a whole request."""
    if is_logged():
        _write(peer, f"{_UNKNOWN} {_UNKNOWN}", str(response.status), len(response.body), seconds=0.0)


def _write(peer: str, what: str, status: str, size: int, *, seconds: float) -> None:
    _responses.info("%s %s %s %d %.1fms", peer or _UNKNOWN, what, status, size, seconds * 1000)


def _path_of(target: str) -> str:
    # The target is visible ASCII (RFC 9112 §3.2). The absolute form may hold a user and a password before the path.
    if not target.startswith("/"):
        target = "/" + target.partition("://")[2].partition("/")[2]
    return target.partition("?")[0][:_LONGEST_PATH]


@define
class _NotingWire(Wire):
    """A wire that notes the status and the size of the response. It keeps no body, which may be large."""

    _wire: Wire
    _request: Request
    _begun: float
    status: str | None = None
    size: int = 0

    def write(self) -> None:
        """Log the response, if one was sent: otherwise it ends as `log_unreadable` says, or the rest is logged."""
        if self.status is not None:
            what = f"{self._request.method} {_path_of(self._request.target)}"
            seconds = anyio.current_time() - self._begun
            _write(self._request.peer, what, self.status, self.size, seconds=seconds)

    async def receive(self, *, expect_continue: bool) -> bytes | None:
        return await self._wire.receive(expect_continue=expect_continue)

    async def send(self, answer: Respond) -> None:
        self._note(answer.response)
        await self._wire.send(answer)

    async def send_last(self, response: Response) -> None:
        self._note(response)
        await self._wire.send_last(response)

    def _note(self, response: Response) -> None:
        self.status, self.size = str(response.status), len(response.body)
