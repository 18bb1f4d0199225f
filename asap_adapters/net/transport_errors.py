"""Converts the failures of requests to this library's exceptions, with its own messages.

The messages of h11 and httpx repeat what the peer sent, are empty, or lack the address.
"""

import ssl
from collections.abc import Iterator

import httpx

from asap_core.client.programs import Stage
from asap_core.errors import TimedOut, Unreachable

_CROWDED = (
    "no connection became free within {:g} s: too many requests to it are running, or too many names are being "
    "resolved; nothing was sent"
)

_PERHAPS_TLS = "; if it speaks TLS, use https://"


def failure_of(error: Exception, shown: str, stage: Stage, seconds: float) -> Unreachable:
    """Return the exception for a request to `shown` that failed with `error` at `stage`, within `seconds`."""
    if stage is Stage.QUEUED or isinstance(error, httpx.PoolTimeout):
        return Unreachable(shown, _CROWDED.format(seconds), sent=False, crowded=True)
    late = isinstance(error, TimeoutError | httpx.TimeoutException)
    if stage is Stage.CONNECTING or isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        reason = f"can't connect within {seconds:g} s" if late else _words(error)
        return Unreachable(shown, reason, sent=False)
    if late:
        return TimedOut(shown, f"nothing within {seconds:g} s")
    perhaps = stage is Stage.SENT and shown.startswith("http://") and _said_nothing(error)
    return Unreachable(shown, _words(error) + (_PERHAPS_TLS if perhaps else ""))


def _said_nothing(error: Exception) -> bool:
    """Whether the peer closed the connection without answering. httpcore has no exception of its own for that."""
    return isinstance(error, httpx.ReadError) or str(error).startswith("Server disconnected without")


def _words(error: Exception) -> str:
    untrusted = next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLCertVerificationError)), None)
    if untrusted is not None:
        # On trio it's two causes down, under errors without a message.
        return f"its certificate isn't trusted: {untrusted.verify_message}"
    if isinstance(error, httpx.ConnectError):
        words = " ".join(str(error).split())  # from `dialling`
        return f"can't connect: {words}" if words else "can't connect"
    kinds = {
        httpx.ConnectTimeout: "can't connect in time",
        httpx.ProxyError: "the proxy doesn't connect to it",
        httpx.RemoteProtocolError: "what came back isn't an HTTP answer, or ended early",
        httpx.ReadError: "the connection broke",
        httpx.WriteError: "the connection broke",
    }
    return next((text for known, text in kinds.items() if isinstance(error, known)), "the request failed")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
