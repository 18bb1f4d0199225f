"""Why a request failed, in words of ours: those of h11 and httpx repeat what the peer sent, or name no address."""

import ssl
from collections.abc import Iterator

import httpx

__all__ = ["reason_of"]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def reason_of(error: httpx.HTTPError) -> str:
    """What happened."""
    untrusted = next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLCertVerificationError)), None)
    if untrusted is not None:
        # On trio it's two causes down, under errors without words.
        return f"its certificate isn't trusted: {untrusted.verify_message}"
    if isinstance(error, httpx.ConnectError):
        words = " ".join(str(error).split())  # our own, or the TLS library's
        return f"can't connect: {words}" if words else "can't connect"
    kinds = {
        httpx.ConnectTimeout: "can't connect in time",
        httpx.PoolTimeout: "too many requests are under way",
        httpx.RemoteProtocolError: "what came back isn't an HTTP answer, or ended early",
        httpx.ReadError: "the connection broke",
        httpx.WriteError: "the connection broke",
    }
    return next((text for known, text in kinds.items() if isinstance(error, known)), "the request failed")
