"""The web as the client may use it: where it may go, with which credential, within which limits, over httpx.

Where is decided by `asap_core.client.outbound`; bodies are inflated within a limit by `asap_core.http`.
"""

import gzip
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, assert_never

import anyio
import httpx

from asap_adapters.coding import CODINGS
from asap_core.client.outbound import Allowed, Refused, is_loopback, judge_url, origin_of, without_credentials
from asap_core.errors import BadReply, NotAllowed, TimedOut, Unreachable
from asap_core.http import BadCoding, Body, BodyTooLarge, Gzip
from asap_core.jsontext import write_json
from asap_core.server.identity import is_token

__all__ = ["Answer", "Web", "known_origin", "remember"]

# The reference's limit on a message.
MAX_REPLY: Final = 10_485_760
# The reference's: a manifest or health report that takes longer is as good as none.
_GET_SECONDS: Final = 10.0
# Below it gzip saves less than its header and a packet cost: the reference's threshold.
_COMPRESS_FROM: Final = 1_024
_VERSIONS: Final = "2.2, 2.1"
_ACCEPT_ENCODING: Final = ("accept-encoding", "gzip, br")
_CODINGS: Final[dict[str, Callable[[], Any]]] = {"gzip": Gzip, "br": CODINGS[b"br"]}
# Origins and hosts remembered, some 100 bytes each; past it the oldest are forgotten, which only ever allows less.
_MAX_REMEMBERED: Final = 1_000

Answer = tuple[int, Sequence[tuple[str, str]], bytes]
"""Status, headers, body."""


class Web:
    """Requests to origins that may be asked. Opened and closed by the client that owns it.

    The parameters are `AgentClient`'s.
    """

    def __init__(
        self,
        *,
        token: str | None,
        auth: Mapping[str, str],
        allow_http: Collection[str],
        timeout: float,
        trust_env: bool,
        compress: bool,
        verify: ssl.SSLContext | bool,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        if not all(map(is_token, [*([] if token is None else [token]), *auth.values()])):
            # httpx would repeat it in its error.
            raise ValueError("expected tokens of visible ASCII characters")
        self._token = token
        self._auth = {known_origin(origin): value for origin, value in auth.items()}
        self._allow_http = frozenset(allow_http)
        self._timeout = timeout
        self._compress = compress
        self._make: Callable[[], httpx.AsyncClient] = lambda: httpx.AsyncClient(
            trust_env=trust_env, verify=verify, transport=transport, follow_redirects=False, timeout=timeout
        )
        self._http: httpx.AsyncClient | None = None
        # Origins that the caller named, and hosts announced on this link.
        self._named: dict[str, None] = {}
        self._on_link: dict[str, None] = {}

    @property
    def is_open(self) -> bool:
        """Whether requests can be made."""
        return self._http is not None

    def open(self) -> None:
        """Get ready. Raises RuntimeError where it's open already."""
        if self._http is not None:
            raise RuntimeError("this client is open already")
        self._http = self._make()

    async def aclose(self) -> None:
        """Close all connections. From any task; a second time does nothing."""
        http, self._http = self._http, None
        if http is not None:
            with anyio.CancelScope(shield=True):
                await http.aclose()

    def _opened(self) -> httpx.AsyncClient:
        if self._http is None:
            raise RuntimeError("this client isn't open; write: async with AgentClient(sender=…) as client: …")
        return self._http

    # --- where, and with what ----------------------------------------------------------------------------------------

    def judge(self, url: str) -> Allowed:
        """Return the URL if it may be asked. Raises `NotAllowed`, and RuntimeError where the client isn't open."""
        self._opened()
        judged = judge_url(url, allow_http=self._allow_http | self._on_link.keys())
        match judged:
            case Allowed():
                return judged
            case Refused(shown, reason, remedy):
                raise NotAllowed(shown, reason, remedy)
            case _:
                assert_never(judged)

    def name_origin(self, url: str) -> None:
        """The caller named this URL: the token may go to its origin."""
        origin = origin_of(url)
        if origin is not None:
            remember(self._named, origin, None)

    def trust_on_link(self, host: str) -> None:
        """This host was announced on the link it's on: plain http to it is allowed."""
        remember(self._on_link, host, None)

    def _credential(self, allowed: Allowed) -> dict[str, str]:
        token = self._auth.get(allowed.origin)
        if token is None and allowed.origin in self._named:
            token = self._token
        if token is None or not (allowed.encrypted or is_loopback(allowed.host)):
            return {}
        return {"authorization": f"Bearer {token}"}

    # --- requests ----------------------------------------------------------------------------------------------------

    async def get(self, allowed: Allowed, headers: Sequence[tuple[str, str]], limit: int) -> Answer:
        """GET a document of at most `limit` bytes. Raises `TimedOut`, `Unreachable`, `BadReply`."""
        request = self._request(
            "GET", allowed.url, headers=[("accept", "application/json"), _ACCEPT_ENCODING, *headers]
        )
        return await self._exchange(request, limit, min(self._timeout, _GET_SECONDS))

    async def post(
        self, allowed: Allowed, document: object, headers: Mapping[str, str], *, compress: bool = True
    ) -> tuple[int, bytes]:
        """POST a JSON document with the credential of that origin; status and body of the answer. Raises as `get`."""
        content = write_json(document)
        extra = dict([_ACCEPT_ENCODING])
        if compress and self._compress and len(content) >= _COMPRESS_FROM:
            # gzip, which peers of both generations read; brotli isn't everywhere.
            content, extra["content-encoding"] = gzip.compress(content, 6, mtime=0), "gzip"
        request = self._request(
            "POST",
            allowed.url,
            content=content,
            headers={
                "accept": "application/json",
                "content-type": "application/json",
                "asap-version": _VERSIONS,
                **extra,
                **headers,
                **self._credential(allowed),
            },
        )
        status, _, body = await self._exchange(request, MAX_REPLY, self._timeout)
        return status, body

    def _request(self, method: str, url: str, **options: Any) -> httpx.Request:
        try:
            return self._opened().build_request(method, url, **options)
        except (httpx.InvalidURL, UnicodeError):  # idna's errors are UnicodeErrors
            raise _not_a_url(url) from None

    async def _exchange(self, request: httpx.Request, limit: int, seconds: float) -> Answer:
        http, shown = self._opened(), without_credentials(str(request.url))
        try:
            with anyio.fail_after(seconds):
                response = await http.send(request, stream=True)
                try:
                    return response.status_code, tuple(response.headers.multi_items()), await _body(response, limit)
                finally:
                    with anyio.CancelScope(shield=True):
                        await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Unreachable(shown, _reason(error), sent=False) from error
        except (TimeoutError, httpx.TimeoutException):
            raise TimedOut(shown, f"nothing within {seconds:g} s") from None
        except httpx.HTTPError as error:
            raise Unreachable(shown, _reason(error)) from error
        except (httpx.InvalidURL, UnicodeError):  # a resolver's, of names that can't be encoded
            raise _not_a_url(str(request.url)) from None
        except BodyTooLarge as error:
            raise BadReply(shown, f"expected at most {error.limit} bytes") from None
        except BadCoding as error:
            raise BadReply(shown, str(error)) from None


async def _body(response: httpx.Response, limit: int) -> bytes:
    """Read a response's body, inflated within the limit: httpx would inflate first and count never (fault 43)."""
    coding = response.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity", *_CODINGS):
        raise BadCoding("expected a body in gzip, br, or plain")
    make = _CODINGS.get(coding)
    if response.is_stream_consumed:
        # A transport that makes whole responses, as mocks do: httpx has read and inflated it already.
        make = None
        chunks: AsyncIterable[bytes] = _in_one_piece(response.content)
    else:
        chunks = response.aiter_raw()
    body = Body(limit=limit, inflater=None if make is None else make())
    async for chunk in chunks:
        body.feed(chunk)
    return body.end()


async def _in_one_piece(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _not_a_url(url: str) -> NotAllowed:
    shown = without_credentials(url)
    return NotAllowed(shown, "its host can't be a host's name", "expected a URL such as https://agent.example")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: httpx.HTTPError) -> str:
    """What happened, in words: httpx's own are often empty, and never name the host."""
    words = " ".join(str(error).split())
    untrusted = next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLCertVerificationError)), None)
    if untrusted is not None:
        # On trio it's two causes down, under errors without words.
        return f"its certificate isn't trusted: {untrusted.verify_message}"
    kinds = {
        httpx.ConnectError: "can't connect",
        httpx.ConnectTimeout: "can't connect in time",
        httpx.PoolTimeout: "too many requests are under way",
        httpx.RemoteProtocolError: "the connection ended without an answer",
        httpx.ReadError: "the connection broke",
        httpx.WriteError: "the connection broke",
    }
    kind = next((text for known, text in kinds.items() if isinstance(error, known)), "the request failed")
    return f"{kind}: {words}" if words else kind


def known_origin(url: str) -> str:
    """The origin of a URL that a user configured. Raises ValueError where it has none."""
    origin = origin_of(url)
    if origin is None:
        raise ValueError("expected an origin such as https://agent.example")
    return origin


def remember(table: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep the latest thousand."""
    table.pop(key, None)
    table[key] = value
    if len(table) > _MAX_REMEMBERED:
        del table[next(iter(table))]
