"""The planted agent: HTTP requests to responses. Correct by the wire's documents, but for the switches that are set.

It's a second implementation, independent of `asap_core`: small enough to read, and an oracle for the first.
"""

from collections.abc import Callable, Iterable
from math import ceil
from posixpath import normpath
from time import monotonic as system_monotonic, time as system_time
from typing import Any, Final
from uuid import uuid4

from asap_core.testing.planted.calls import Calls, PlantedCaller
from asap_core.testing.planted.coding import Coding
from asap_core.testing.planted.credentials import Credentials
from asap_core.testing.planted.documents import HEALTH, MANIFEST, PlantedDocuments
from asap_core.testing.planted.messages import JSON, Fields, PlantedOptions, PlantedRequest, PlantedResponse
from asap_core.testing.planted.refusals import CallFault, error_object
from asap_core.testing.planted.switches import Breaks
from asap_core.testing.planted.texts import UnreadableText, read_text, write_text

_A_MEBIBYTE: Final = 1024 * 1024
_STREAM: Final = "/asap/stream"
_VERSIONS: Final = ("2.1", "2.2")
_DEFAULT_VERSION: Final = "2.2"


class PlantedAgent:
    """An agent that answers requests, in process. `PlantedConnection` reads bytes for it.

    options: what it is and accepts.
    breaks: the switches to set; empty for the correct agent.
    monotonic, wall: its clocks, in seconds.
    """

    def __init__(
        self,
        options: PlantedOptions | None = None,
        *,
        breaks: Iterable[str] = (),
        monotonic: Callable[[], float] = system_monotonic,
        wall: Callable[[], float] = system_time,
    ) -> None:
        self.options = options or PlantedOptions()
        self.broken = Breaks(breaks)
        self.monotonic = monotonic
        self.wall = wall
        self.credentials = Credentials(self.options, self.broken)
        self.coding = Coding(self.options, self.broken)
        self._start()

    def reset(self) -> None:
        """Forget everything, as if it was started now. What's dated before now may have been accepted: it's refused."""
        self._start()
        self.calls.nonces.started = self.wall()

    def _start(self) -> None:
        self.documents = PlantedDocuments(self.options, self.broken, self._uptime_clock(), self._uptime_clock()())
        self.calls = Calls(self.options, self.broken, self.monotonic, self.wall, lambda: uuid4().hex)

    def _uptime_clock(self) -> Callable[[], float]:
        return self.wall if self.broken("discovery.health_uptime_wall") else self.monotonic

    def call(
        self,
        method: str,
        path: str,
        fields: Fields = (),
        body: bytes = b"",
        *,
        peer: str = "127.0.0.1",
    ) -> PlantedResponse:
        """Answer a request that was read already. `fields`: names in lower case."""
        request = PlantedRequest(
            method=method, path=path, fields=fields, body=body, length=len(body), peer=peer, query=""
        )
        return self.before_body(request) or self.answer(request)

    # --- before the body is read -------------------------------------------------------------------------------------

    def before_body(self, request: PlantedRequest) -> PlantedResponse | None:
        """Answer what needs no body, or refuse it before it's read. Returns None if the body is to be read."""
        path = self._path(request.path)
        if path in ("/asap", _STREAM):
            return self._before_call(request)
        documents = self.documents
        if path == MANIFEST and self.broken("discovery.needs_token") and not request.values("authorization"):
            return self._refused(CallFault("unauthenticated"), request, unread=True)
        document = {
            MANIFEST: documents.manifest,
            HEALTH: documents.health,
            "/health": documents.ready,
            "/ready": documents.ready,
        }
        if path not in document:
            detail = f"Not Found: {request.path}" if self.broken("errors.echo_path") else "Not Found"
            return self._plain(request, 400 if self.broken("http.unknown_path") else 404, detail, unread=True)
        if request.method == "HEAD" and self.broken("discovery.head"):
            return self._plain(request, 405, "Method Not Allowed", ("allow", "GET"), unread=True)
        if request.method not in ("GET", "HEAD") and not self.broken("discovery.any_method"):
            return self._not_allowed("GET, HEAD", request)
        return self._sent(document[path](request), request)

    def _path(self, path: str) -> str:
        if self.broken("http.path_case"):
            path = path.lower()
        if self.broken("http.path_slash"):
            path = path.rstrip("/") or "/"
        if self.broken("http.path_dots"):
            path = normpath(path)
        if self.broken("http.path_parameters"):
            path = path.partition(";")[0]
        if self.broken("http.path_slashes"):
            path = path.replace("//", "/")
        if self.broken("http.path_encoded"):
            path = path.replace("%61", "a")
        if self.broken("http.path_prefix") and path.startswith("/asap"):
            path = "/asap"
        return path

    def _before_call(self, request: PlantedRequest) -> PlantedResponse | None:
        if request.method == "OPTIONS" and self.broken("identity.any_preflight"):
            allowed = (("access-control-allow-origin", "*"), ("access-control-allow-headers", "*"))
            return self._sent(PlantedResponse(status=204, fields=allowed), request)
        if request.method != "POST" and not self.broken("http.any_method"):
            return self._not_allowed("POST", request)
        if not self.credentials.is_page_allowed(request):
            return self._refused(CallFault("page"), request, unread=True)
        caller = self.credentials.caller(request)
        if isinstance(caller, CallFault) and not self.broken("identity.after_the_body"):
            return self._refused(caller, request, unread=True)
        version = self._version(request)
        if version is None:
            offered = request.value("asap-version") or ""
            details: dict[str, object] = {"requested": None, "supported": list(_VERSIONS)}
            if self.broken("errors.echo_version"):
                details["requested"] = offered
            return self._refused(CallFault("version", details=details), request, unread=True)
        kind = request.value("content-type") or "application/json"
        if kind != "application/json" and self.broken("jsonrpc.media_type_exact"):
            return self._plain(request, 415, "Unsupported Media Type", unread=True)
        return self._too_large(request) or self._uncodable(request)

    def _not_allowed(self, allow: str, request: PlantedRequest) -> PlantedResponse:
        silent = self.broken("http.allow_missing") or (allow != "POST" and self.broken("discovery.allow_of_documents"))
        fields = () if silent else (("allow", allow),)
        status = 404 if self.broken("http.method_not_allowed") else 405
        return self._plain(request, status, "Method Not Allowed", *fields, unread=True)

    def _version(self, request: PlantedRequest) -> str | None:
        """Choose the version of the HTTP binding, by the caller's preference. None if it offers no known one."""
        offered = request.value("asap-version") or ""
        if not offered.strip():
            return None if self.broken("versions.blank") and "asap-version" in dict(request.fields) else "2.2"
        if self.broken("versions.first_line"):
            offered = request.values("asap-version")[0]
        versions = [version.strip() for version in offered.split(",")]
        if self.broken("versions.numbers"):
            versions = [_as_a_number(version) for version in versions]
        if self.broken("versions.list_refused") and len(versions) > 1:
            return None
        if self.broken("versions.first_only"):
            del versions[1:]
        known = [version for version in versions if version in _VERSIONS]
        if not known and self.broken("versions.unknown"):
            return _DEFAULT_VERSION
        if self.broken("versions.echoed"):
            return versions[0]
        if self.broken("versions.preference") and known:
            return max(known)
        return known[0] if known else None

    def _too_large(self, request: PlantedRequest) -> PlantedResponse | None:
        if request.length is not None and request.length > _A_MEBIBYTE and self.broken("limits.body_of_a_mebibyte"):
            return self.body_too_large(request, unread=True)
        if request.length is None or request.length <= self.options.max_body:
            return None
        if self.broken("limits.body") or self.broken("limits.declared_length"):
            return None
        return self.body_too_large(request, unread=True)

    def body_too_large(self, request: PlantedRequest, *, unread: bool) -> PlantedResponse:
        """Refuse a body that is larger than it may be. `unread`: the peer is still sending it."""
        detail = f"Request body exceeds the maximum of {self.options.max_body} bytes"
        return self._plain(request, 400 if self.broken("limits.body_status") else 413, detail, unread=unread)

    def _uncodable(self, request: PlantedRequest) -> PlantedResponse | None:
        coding = self.coding.name(request)
        known = ", ".join(self.options.codings)
        if coding in ("", "identity", *self.options.codings) or self.broken("compression.unknown"):
            return None
        fields = () if self.broken("compression.accept_encoding") else (("accept-encoding", known),)
        status = 400 if self.broken("compression.unknown_status") else 415
        return self._plain(request, status, f"Unsupported Content-Encoding. Supported: {known}", *fields, unread=True)

    # --- with the body -----------------------------------------------------------------------------------------------

    def answer(self, request: PlantedRequest) -> PlantedResponse:
        """Answer a call, whose body has been read."""
        if len(request.body) > self.options.max_body and not self.broken("limits.body"):
            return self.body_too_large(request, unread=False)
        try:
            body = self.coding.decoded(request)
        except ValueError:
            status = 500 if self.broken("compression.corrupt_status") else 400
            coding = "brotli" if self.coding.name(request) == "br" else "gzip"
            return self._plain(request, status, f"Invalid compressed data: expected a {coding} stream")
        except OverflowError:
            return self.body_too_large(request, unread=False)
        self.calls.line_feeds = body.count(b"\n")
        try:
            value = read_text(body, max_depth=self.options.max_depth, broken=self.broken)
        except UnreadableText as error:
            return self._refused(CallFault("parse", note=f"Invalid JSON: expected {error}"), request)
        except (RecursionError, ValueError):  # with a switch only
            return self._plain(request, 500, "Internal Server Error")
        caller = self.credentials.caller(request)
        if isinstance(caller, CallFault):
            return self._refused(caller, request)
        if (
            isinstance(value, list)
            and self.broken("batch.not_an_object")
            and not all(isinstance(v, dict) for v in value)
        ):
            return self._plain(request, 500, "Internal Server Error")
        if isinstance(value, list) and not self.broken("batch.unknown"):
            return self._batch(value, request, caller)
        if not isinstance(value, dict) and self.broken("jsonrpc.not_an_object"):
            return self._plain(request, 500, "Internal Server Error")
        if isinstance(value, dict) and "id" not in value and self.broken("jsonrpc.notification"):
            self.calls.answer(value, caller)
            return self._sent(PlantedResponse(status=204), request)
        answered, fault = self.calls.answer(
            value, caller, self._header_key(request), streamed=self._path(request.path) == _STREAM
        )
        return self._answered(answered, fault, request)

    def _header_key(self, request: PlantedRequest) -> str | None:
        """Return the idempotency key in the head: None if there is none, empty if it's invalid."""
        keys = request.values("x-idempotency-key")
        if not keys:
            return None
        one = len(keys) == 1 or self.broken("idempotency.two_headers")
        # ASCII only: other characters have no single encoding in a head.
        fits = len(keys[0]) <= 256 and keys[0].isascii() and keys[0].isprintable()
        return keys[0] if one and fits else ""

    def _batch(self, items: list[Any], request: PlantedRequest, caller: PlantedCaller) -> PlantedResponse:
        if self.broken("batch.compressed") and self.coding.name(request) == "gzip":
            return self._refused(CallFault("request", note="JSON-RPC request must be an object"), request)
        if not items and not self.broken("batch.empty"):
            return self._refused(CallFault("request", note="empty batch"), request)
        if len(items) == self.options.max_batch and self.broken("batch.size_below"):
            return self._refused(CallFault("batch_size", note="batch size exceeds the maximum"), request)
        if len(items) > self.options.max_batch and not self.broken("batch.size"):
            return self._refused(CallFault("batch_size", note="batch size exceeds the maximum"), request)
        answers = []
        keys = dict(self.calls.keys.kept)
        for place, item in enumerate(items):
            if self.broken("idempotency.batch_snapshot"):
                self.calls.keys.kept = dict(keys)
            answered, fault = self._item(item, place, self._header_key(request), caller)
            if isinstance(item, dict) and "id" not in item and self.broken("batch.notifications_dropped"):
                continue
            if fault is not None and self.broken("batch.first_failure_ends"):
                return self._answered(answered, fault, request)
            if fault is not None and fault.kind == "internal" and self.broken("failures.end_the_batch"):
                return self._refused(fault, request)
            if fault is not None and self.broken("batch.failures_dropped"):
                continue
            answers.append(answered)
        answers = self._by_id(answers)
        if self.broken("batch.ids_swapped") and len(answers) > 1:
            answers[0]["id"], answers[1]["id"] = answers[1]["id"], answers[0]["id"]
        if self.broken("batch.order"):
            answers.reverse()
        if self.broken("batch.single_unwrapped") and len(answers) == 1:
            return self._sent(PlantedResponse(status=200, fields=(JSON,), body=write_text(answers[0])), request)
        status = 207 if self.broken("batch.status") else 200
        return self._sent(PlantedResponse(status=status, fields=(JSON,), body=write_text(answers)), request)

    def _by_id(self, answers: list[dict[str, object]]) -> list[dict[str, object]]:
        """Collect the answers to a batch by their ids. Only a broken agent does."""
        if self.broken("batch.equal_ids"):
            return [*{str(answer["id"]): answer for answer in answers}.values()]
        if self.broken("batch.last_of_equal_ids"):
            last = {(type(answer["id"]), answer["id"]): answer for answer in answers}
            return [last[type(answer["id"]), answer["id"]] for answer in answers]
        return answers

    def _item(
        self, item: Any, place: int, key: str | None, caller: PlantedCaller
    ) -> tuple[dict[str, object], CallFault | None]:
        """Answer an item of a batch. Its key is the batch's with its index, so that no two are equal."""
        if self.broken("batch.identity") and place:
            caller = PlantedCaller(None, caller.peer)
        if self.broken("batch.nested") and isinstance(item, list):
            return self._item(item[0] if item else None, place, key, caller)
        if self.broken("batch.replays") and place:
            self.calls.nonces.seen.clear()
        return self.calls.answer(item, caller, key and f"{key}#{place}")

    # --- responses ---------------------------------------------------------------------------------------------------

    def _answered(
        self, answered: dict[str, object], fault: CallFault | None, request: PlantedRequest
    ) -> PlantedResponse:
        status = 200 if fault is None else fault.status
        if fault is not None and fault.status == 200 and self.broken("errors.status_of_refusals"):
            status = 400
        if fault is not None and fault.kind == "internal" and self.broken("failures.status"):
            status = 500
        if fault is not None and self.broken("identity.refused_with_200"):
            status = 200
        fields: Fields = (JSON,)
        if self.broken("jsonrpc.content_type"):
            fields = (("content-type", "text/plain"),)
        if status == 401 and not self.broken("identity.challenge_missing"):
            # RFC 6750 §3.1: without a credential no error code.
            codes = {"token": "invalid_token", "credential": "invalid_request"}
            code = codes.get(fault.kind) if fault is not None else None
            error = f', error="{code}"' if code and not self.broken("identity.challenge_error") else ""
            fields = (*fields, ("www-authenticate", f'Bearer realm="asap"{error}'))
        if status == 503 and not self.broken("errors.retry_after_missing"):
            seconds = ceil(fault.retry_after or 1.0) if fault is not None else 1
            shown = seconds * 1000 if self.broken("errors.retry_after_in_milliseconds") else seconds
            fields = (*fields, ("retry-after", str(shown)))
        return self._sent(PlantedResponse(status=status, fields=fields, body=write_text(answered)), request)

    def _refused(self, fault: CallFault, request: PlantedRequest, *, unread: bool = False) -> PlantedResponse:
        response = self._answered(error_object(None, fault, self.broken), fault, request)
        return _closing(response) if unread and request.length != 0 else response

    def _plain(
        self, request: PlantedRequest, status: int, detail: str, *fields: tuple[str, str], unread: bool = False
    ) -> PlantedResponse:
        """Refuse below JSON-RPC. `unread`: the body wasn't read; if there's one, the connection ends."""
        html = self.broken("errors.html")
        body = f"<h1>{detail}</h1>".encode() if html else write_text({"detail": detail})
        kind = ("content-type", "text/html") if html else JSON
        response = self._sent(PlantedResponse(status=status, fields=(kind, *fields), body=body), request)
        return _closing(response) if unread and request.length != 0 else response

    def _sent(self, response: PlantedResponse, request: PlantedRequest) -> PlantedResponse:
        """Add what every response has; to HEAD there's no body, but its length (RFC 9110 §9.3.2)."""
        fields = response.fields
        if response.status not in (204, 304):
            fields = (*fields, ("content-length", str(len(response.body))))
        version = self._version(request) or _DEFAULT_VERSION
        if self.broken("versions.default_on_errors") and b'"error"' in response.body:
            version = _DEFAULT_VERSION
        if not self.broken("versions.header_missing"):
            fields = (*fields, ("asap-version", version))
        fields = (*fields, *self._for_pages(request))
        without_body = request.method == "HEAD" and not self.broken("discovery.body_of_head")
        if response.status in (404, 405) and self.broken("http.body_of_refused_head"):
            without_body = False
        if request.method == "HEAD" and self.broken("discovery.length_of_head"):
            fields = tuple(field for field in fields if field[0] != "content-length")
        return PlantedResponse(
            status=response.status, fields=fields, body=b"" if without_body else response.body, close=response.close
        )

    def _for_pages(self, request: PlantedRequest) -> Fields:
        """The fields by which pages may read an answer: none. Only a broken agent has some."""
        if self.broken("identity.any_page_reads"):
            return (("access-control-allow-origin", "*"),)
        origin = request.value("origin")
        if origin is not None and self.broken("identity.each_page_reads"):
            return (("access-control-allow-origin", origin), ("vary", "origin"))
        return ()


def _as_a_number(version: str) -> str:
    try:
        return str(float(version))
    except ValueError:
        return version


def _closing(response: PlantedResponse) -> PlantedResponse:
    return PlantedResponse(status=response.status, fields=response.fields, body=response.body, close=True)
