"""Requests for httpx and httpcore, and what their failures mean: what the clients for event loops and threads share."""

import ssl
from typing import Any, Final, Self

import httpcore
import httpx
from attrs import define

from asap_adapters.net.dialling import causes
from asap_core.client.connections import Progress
from asap_core.client.programs import Barred, Expired, Fetch, Stage, Unanswered
from asap_core.errors import Advice, NotAllowed

# --- requests ---------------------------------------------------------------------------------------------------------


def _url_of(asked: Fetch) -> httpx.URL:
    """Return the URL as httpx reads it. Raises `NotAllowed` if its host isn't the one that the policy judged."""
    try:
        url = httpx.URL(asked.url)
        if url.host and url.raw_host.decode("ascii").lower() == asked.route.host.lower():
            return url
    except (httpx.InvalidURL, UnicodeError):  # idna's errors are UnicodeErrors
        pass
    advice = Advice("expected a URL such as https://agent.example")
    raise NotAllowed(asked.route.host, "its host is not a valid host name", advice)


def httpx_request(asked: Fetch) -> httpx.Request:
    """Return the request for a transport of httpx. Raises `NotAllowed` if its host isn't one."""
    limits = dict.fromkeys(("connect", "read", "write", "pool"), asked.seconds)
    url, headers = _url_of(asked), list(asked.headers)
    return httpx.Request(asked.method, url, headers=headers, content=asked.body, extensions={"timeout": limits})


def httpcore_request(asked: Fetch, progress: Progress) -> httpcore.Request:
    """Return the request for httpcore, which notes in `progress` that it's sent. Raises as `httpx_request`."""
    url, route, headers = _url_of(asked), asked.route, [*asked.headers]
    if all(name.lower() != "host" for name, _ in headers):
        headers.insert(0, ("Host", url.netloc.decode("ascii")))
    if asked.body is not None:
        headers.append(("Content-Length", str(len(asked.body))))
    # Only if it's needed: httpcore would give the name to a proxy that speaks TLS too.
    named: dict[str, Any] = {} if route.server_name == route.host else {"sni_hostname": route.server_name}
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    return httpcore.Request(
        asked.method, target, headers=headers, content=_Content(asked.body or b"", progress), extensions=named
    )


@define(eq=False)
class _Content:
    """A request's body in one piece. Not a generator, which a cancellation would leave to the garbage collector.

    httpcore asks for it after writing the head: from then on the server may act on the request.
    """

    rest: bytes
    progress: Progress

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        self.progress.stage = Stage.SENT
        part, self.rest = self.rest, b""
        if not part:
            raise StopIteration
        return part

    async def __anext__(self) -> bytes:
        for part in self:
            return part
        raise StopAsyncIteration


# --- failures ---------------------------------------------------------------------------------------------------------
# The messages of h11 and httpx repeat what the peer sent, are empty, or lack the address.

FAILURES: Final = (
    NotAllowed,
    TimeoutError,
    httpx.HTTPError,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)
"""What a request may raise that an outcome says."""
# By the names of exceptions, which httpcore and httpx share.
_WORDS: Final = {
    "ProxyError": "the proxy doesn't connect to it",
    "RemoteProtocolError": "what came back isn't an HTTP answer, or ended early",
    "ReadError": "the connection broke",
    "WriteError": "the connection broke",
}


def failed(error: Exception, stage: Stage) -> Unanswered | Expired | Barred:
    """Return the outcome of a request that failed at this stage. `error`: one of `FAILURES`."""
    if isinstance(error, NotAllowed):
        return Barred(error.reason, error.remedy)
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if "PoolTimeout" in kinds:
        stage = Stage.QUEUED
    elif ("ConnectError" in kinds or "ConnectTimeout" in kinds) and stage is not Stage.QUEUED:
        stage = Stage.CONNECTING
    if "TimeoutError" in kinds or "TimeoutException" in kinds:
        return Expired(stage)
    # httpcore has no exception of its own for a peer that closes the connection without answering.
    nothing = "ReadError" in kinds or str(error).startswith("Server disconnected without")
    return Unanswered(stage, _words_of(error, kinds), silent=stage is Stage.SENT and nothing)


def _words_of(error: Exception, kinds: list[str]) -> str:
    untrusted = next((cause for cause in causes(error) if isinstance(cause, ssl.SSLCertVerificationError)), None)
    if untrusted is not None:
        # On trio it's two causes down, under errors without a message.
        return f"its certificate isn't trusted: {untrusted.verify_message}"
    if "ConnectError" in kinds:
        words = " ".join(str(error).split())  # from `dialling`
        return f"can't connect: {words}" if words else "can't connect"
    return next((_WORDS[kind] for kind in kinds if kind in _WORDS), "the request failed")
