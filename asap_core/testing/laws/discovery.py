"""Laws of discovery: the manifest and the health document, and how they're cached."""

from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final
from urllib.parse import urlsplit

from asap_core.errors import InvalidDocument
from asap_core.testing.laws.checks import check
from asap_core.testing.laws.effects import AdvanceClock, Pause, SendBytes, Steps
from asap_core.testing.laws.http_messages import Answer
from asap_core.testing.laws.lab import HEALTH_PATH, MANIFEST_PATH, Lab
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.verdicts import LawBroken, LawNotTried, Need
from asap_core.wire.codec import decode_manifest

DISCOVERY: Final = LawGroup("discovery", "the manifest and the health document")

_REQUIRED: Final = ("id", "name", "description", "version", "capabilities", "endpoints")


@DISCOVERY.law(clause="docs/wire.md §3, §6", expected="status 200, application/json, and every required field")
def manifest(lab: Lab) -> Steps[None]:
    """The manifest is JSON and has every required field."""
    answer = yield from lab.get(MANIFEST_PATH)
    check(answer.status == 200 and not answer.problem, answer)  # noqa: PLR2004 - HTTP's
    check(answer.document, "no JSON object")
    kind = answer.header("content-type") or ""
    check(kind.lower().startswith("application/json"), f"Content-Type: {kind!r}")
    missing = [name for name in _REQUIRED if name not in lab.manifest]
    check(not missing, f"without {', '.join(missing)}")


@DISCOVERY.law(clause="docs/wire.md §6; RFC 9110 §13.1.2", expected="status 304 without a body, and the same ETag")
def revalidation(lab: Lab) -> Steps[None]:
    """A manifest that hasn't changed is answered 304 to its ETag."""
    etag = yield from _etag(lab)
    for example, value in (("the ETag alone", etag), ("in a list", f'"other", {etag}')):
        answer = yield from lab.get(MANIFEST_PATH, headers=[("If-None-Match", value)])
        check(answer.status == 304 and not answer.body, answer, example)  # noqa: PLR2004 - HTTP's
        check(answer.header("etag") in (etag, None), f"ETag: {answer.header('etag')}", example)


@DISCOVERY.law(clause="RFC 9110 §13.1.2", expected="status 200 and the manifest", severity=Severity.SHOULD)
def other_etags_get_the_manifest(lab: Lab) -> Steps[None]:
    """The manifest is sent whole to a client that has another version of it."""
    yield from _etag(lab)
    answer = yield from lab.get(MANIFEST_PATH, headers=[("If-None-Match", '"another"')])
    check(answer.status == 200 and answer.document, answer)  # noqa: PLR2004 - HTTP's


@DISCOVERY.law(
    clause="RFC 9110 §8.8.3.2, §13.1.2", expected="status 200 and the manifest", severity=Severity.SHOULD, strict=True
)
def etags_are_compared_whole(lab: Lab) -> Steps[None]:
    """An ETag that contains the manifest's, or is a part of it, is another ETag."""
    tag = (yield from _etag(lab)).removeprefix("W/").strip('"')
    for example, other in (
        ("text before it", f"x{tag}"), ("text after it", f"{tag}-x"),
        ("its first half", tag[: len(tag) // 2]), ("its second half", tag[len(tag) // 2 :]),
    ):  # fmt: skip
        if other != tag:
            answer = yield from lab.get(MANIFEST_PATH, headers=[("If-None-Match", f'"{other}"')])
            check(answer.status == 200 and answer.document, answer, example)  # noqa: PLR2004 - HTTP's


@DISCOVERY.law(clause="RFC 9110 §5.3, §13.1.2", expected="status 304", severity=Severity.SHOULD, strict=True)
def etags_in_several_lines(lab: Lab) -> Steps[None]:
    """Several lines `If-None-Match` are one list, of which any member may match."""
    etag = yield from _etag(lab)
    for example, values in (("first", (etag, '"other"')), ("second", ('"other"', etag))):
        answer = yield from lab.get(MANIFEST_PATH, headers=[("If-None-Match", value) for value in values])
        check(answer.status == 304, answer, f"in the {example} line")  # noqa: PLR2004 - HTTP's


@DISCOVERY.law(
    clause="docs/wire.md §6",
    expected="200 if `status` is healthy, 503 if it's unhealthy; `agent_id` is the manifest's id",
)
def health(lab: Lab) -> Steps[None]:
    """The health document fits its status and names this agent."""
    answer = yield from lab.get(HEALTH_PATH)
    status = {"healthy": 200, "unhealthy": 503}.get(str(answer.document.get("status")))
    check(status is not None and answer.status == status, f"{answer}, status: {answer.document.get('status')!r}")
    check(
        answer.document.get("agent_id") == (lab.recipient or answer.document.get("agent_id")),
        f"agent_id: {answer.document.get('agent_id')!r}",
    )


def _etag(lab: Lab) -> Steps[str]:
    answer: Answer = yield from lab.get(MANIFEST_PATH)
    etag = answer.header("etag")
    if etag is None:
        raise LawNotTried("the manifest has no ETag")
    return etag


_A_DAY: Final = 86_400
_METHODS: Final = ("POST", "PUT", "DELETE")


@DISCOVERY.law(clause="RFC 9110 §15.5.6", expected="status 405, and `Allow` lists GET", severity=Severity.SHOULD)
def documents_are_read_only(lab: Lab) -> Steps[None]:
    """The documents are answered to GET and HEAD only."""
    for path in (MANIFEST_PATH, HEALTH_PATH):
        for method in _METHODS:
            answer = yield from lab.get(path, method=method)
            check(answer.status == 405, answer, f"{method} {path}")  # noqa: PLR2004 - HTTP's
            check("GET" in (answer.header("allow") or ""), f"Allow: {answer.header('allow')}", f"{method} {path}")


@DISCOVERY.law(clause="docs/wire.md §6; RFC 9110 §8.8.3", expected="a strong ETag in quotes")
def a_strong_etag(lab: Lab) -> Steps[None]:
    """The manifest has a strong ETag."""
    etag = (yield from lab.get(MANIFEST_PATH)).header("etag") or ""
    check(len(etag) > 2 and etag[0] == etag[-1] == '"', f"ETag: {etag!r}")  # noqa: PLR2004 - its quotes


@DISCOVERY.law(clause="docs/wire.md §6", expected="Cache-Control with max-age", severity=Severity.SHOULD)
def the_manifest_is_cached(lab: Lab) -> Steps[None]:
    """The manifest says how long it may be cached."""
    got = (yield from lab.get(MANIFEST_PATH)).header("cache-control") or ""
    check("max-age=" in got.lower(), f"Cache-Control: {got!r}")


@DISCOVERY.law(clause="RFC 9111 §4.2.2", expected="Cache-Control: no-store", severity=Severity.HARDENING, strict=True)
def health_is_not_cached(lab: Lab) -> Steps[None]:
    """The health document isn't cached: a cache would report an agent healthy that isn't."""
    got = (yield from lab.get(HEALTH_PATH)).header("cache-control") or ""
    check("no-store" in got.lower() or "no-cache" in got.lower(), f"Cache-Control: {got!r}")


@DISCOVERY.law(clause="docs/wire.md §6", expected="every field of §6; `uptime_seconds` isn't negative")
def fields_of_health(lab: Lab) -> Steps[None]:
    """The health document has every field, and a possible uptime."""
    document = (yield from lab.get(HEALTH_PATH)).document
    missing = [name for name in ("status", "agent_id", "version", "uptime_seconds") if name not in document]
    check(not missing, f"without {', '.join(missing)}")
    uptime = document["uptime_seconds"]
    check(isinstance(uptime, int | float) and uptime >= 0, f"uptime_seconds: {uptime!r}")


# Seconds between two reports of one uptime, and how far they may be apart: a report may wait for its turn.
_LATER: Final = 1.1
_MUCH_LATER: Final = 60.0
# So far apart workers of one agent may have started.
_WORKERS_APART: Final = 30.0
# An agent may have workers, each with an uptime of its own: so often two reports are compared.
_PAIRS: Final = 3


@DISCOVERY.law(clause="docs/wire.md §6", expected="`uptime_seconds` rises by about a second in a second")
def uptime_is_in_seconds(lab: Lab) -> Steps[None]:
    """The uptime counts seconds, from the start on."""
    rises = []
    for _ in range(_PAIRS):
        first = yield from _uptime(lab)
        yield from Pause(_LATER)
        rises.append((yield from _uptime(lab)) - first)
        if 0 < rises[-1] < _MUCH_LATER:
            return
    raise LawBroken(f"uptime_seconds: {', '.join(f'{each:.3f}' for each in rises)} more after {_LATER} s")


@DISCOVERY.law(
    clause="docs/wire.md §6", expected="about 70 s more after 70 s, and no change if the wall clock steps",
    needs={Need.CLOCK}, strict=True,
)  # fmt: skip
def uptime_follows_no_wall_clock(lab: Lab) -> Steps[None]:
    """The uptime is measured, so that a wall clock which is set changes nothing."""
    for example, seconds, step in (("70 s later", 70, 0), ("set ahead", 0, 1_000), ("set back", 0, -1_000)):
        before = yield from _uptime(lab)
        yield from AdvanceClock(seconds, step)
        rise = (yield from _uptime(lab)) - before
        is_right = -_WORKERS_APART < rise - seconds < _MUCH_LATER
        check(is_right, f"uptime_seconds: {rise:.0f} more", example)


def _uptime(lab: Lab) -> Steps[float]:
    got = (yield from lab.get(HEALTH_PATH)).document.get("uptime_seconds")
    if not isinstance(got, int | float):
        raise LawNotTried("there's no uptime")
    return got


@DISCOVERY.law(
    clause="RFC 9110 §8.8.3, §12.5.5",
    expected="another strong ETag for other bytes, or a weak one, and Vary with Accept-Encoding",
    severity=Severity.SHOULD,
    strict=True,
)
def etags_of_codings(lab: Lab) -> Steps[None]:
    """A manifest that is compressed for who accepts that has an ETag of its own, and caches are told."""
    plain = yield from lab.get(MANIFEST_PATH, headers=[("Accept-Encoding", "identity")])
    coded = yield from lab.get(MANIFEST_PATH, headers=[("Accept-Encoding", "gzip")])
    if coded.body == plain.body:
        return
    etag = coded.header("etag") or ""
    check(etag != plain.header("etag") or etag.startswith("W/"), f"ETag: {etag}, for other bytes too")
    for answer in (plain, coded):
        vary = (answer.header("vary") or "").lower()
        check("accept-encoding" in vary or "*" in vary, f"Vary: {vary!r}, though there are two forms")


@DISCOVERY.law(clause="RFC 9110 §13.1.2", expected="status 304", severity=Severity.SHOULD, strict=True)
def any_version_is_known(lab: Lab) -> Steps[None]:
    """`If-None-Match: *` is answered 304."""
    answer = yield from lab.get(MANIFEST_PATH, headers=[("If-None-Match", "*")])
    check(answer.status == 304, answer)  # noqa: PLR2004 - HTTP's


@DISCOVERY.law(clause="RFC 9110 §13.1.3", expected="status 200 and the manifest", severity=Severity.SHOULD, strict=True)
def conditions_about_dates(lab: Lab) -> Steps[None]:
    """`If-Modified-Since` counts only without `If-None-Match`, and if its date is one of HTTP's and late enough."""
    later = _http_date(lab.wall() + _A_DAY)
    for example, headers in (
        ("beside another ETag", [("If-None-Match", '"another"'), ("If-Modified-Since", later)]),
        ("no date", [("If-Modified-Since", "yesterday")]),
        ("1970", [("If-Modified-Since", "Thu, 01 Jan 1970 00:00:00 GMT")]),
    ):
        answer = yield from lab.get(MANIFEST_PATH, headers=headers)
        check(answer.status == 200 and answer.document, answer, example)  # noqa: PLR2004 - HTTP's


def _http_date(wall: float) -> str:
    return format_datetime(datetime.fromtimestamp(wall, UTC), usegmt=True)


@DISCOVERY.law(
    clause="docs/wire.md §3",
    expected="each field has its type, and `endpoints.asap` is an absolute http or https URL",
    strict=True,
)
def fields_of_the_manifest(lab: Lab) -> Steps[None]:
    """A client can read the manifest: each field has its type, and the endpoint is a URL."""
    answer = yield from lab.get(MANIFEST_PATH)
    try:
        url = urlsplit(decode_manifest(answer.document).endpoints.asap)
    except (InvalidDocument, ValueError) as error:
        raise LawBroken(str(error), answer) from None
    check(url.scheme in ("http", "https") and url.hostname, f"endpoints.asap: {url.geturl()!r}")


@DISCOVERY.law(clause="RFC 9110 §13.1.2", expected="status 304", severity=Severity.SHOULD, strict=True)
def weak_comparison(lab: Lab) -> Steps[None]:
    """An ETag that a proxy has made weak is still known."""
    etag = yield from _etag(lab)
    answer = yield from lab.get(MANIFEST_PATH, headers=[("If-None-Match", f"W/{etag.removeprefix('W/')}")])
    check(answer.status == 304, answer)  # noqa: PLR2004 - HTTP's


@DISCOVERY.law(
    clause="RFC 9110 §15.4.5", expected="ETag and Cache-Control, as with 200", severity=Severity.SHOULD, strict=True
)
def fields_of_304(lab: Lab) -> Steps[None]:
    """An answer 304 has the fields that a cache updates."""
    etag = yield from _etag(lab)
    answer = yield from lab.get(MANIFEST_PATH, headers=[("If-None-Match", etag)])
    check(answer.header("etag") == etag, f"ETag: {answer.header('etag')}")
    check(answer.header("cache-control"), "no Cache-Control")


@DISCOVERY.law(clause="RFC 9110 §15.4.5", expected="no bytes after the head of 304", needs={Need.BYTES})
def no_body_of_304(lab: Lab) -> Steps[None]:
    """An answer 304 has no body: the next answer would begin in it."""
    etag = yield from _etag(lab)
    request = lab.request("GET", lab.root + MANIFEST_PATH, headers=[("If-None-Match", etag)])
    got = yield from SendBytes((request.to_bytes(),))
    check(got.first.status == 304 and not got.rest, f"{got.first}, {len(got.rest)} bytes after it")  # noqa: PLR2004
    check(len(got.answers) == 1, f"{len(got.answers)} answers")


@DISCOVERY.law(
    clause="RFC 9110 §9.1, §9.3.2, §13.1.2",
    expected="status 200, and the Content-Length that GET has; 304 to the manifest's ETag",
    severity=Severity.SHOULD,
    strict=True,
)
def head_of_documents(lab: Lab) -> Steps[None]:
    """HEAD is answered for both documents, with the headers of GET."""
    for path in (MANIFEST_PATH, HEALTH_PATH):
        answer = yield from lab.get(path, method="HEAD")
        check(answer.status == 200, answer, path)  # noqa: PLR2004 - HTTP's
        length = answer.header("content-length")
        check(length not in (None, "0"), f"Content-Length: {length}", path)
        if etag := answer.header("etag"):
            answer = yield from lab.get(path, method="HEAD", headers=[("If-None-Match", etag)])
            check(answer.status == 304, answer, f"{path}, with its ETag")  # noqa: PLR2004 - HTTP's


@DISCOVERY.law(clause="RFC 9110 §15.5.5", expected="status 404", severity=Severity.SHOULD)
def unknown_paths(lab: Lab) -> Steps[None]:
    """A path that the agent doesn't have is answered 404."""
    for path in ("/.well-known/asap", "/.well-known/asap/conform", f"{MANIFEST_PATH}/x", "/conform-unknown"):
        answer = yield from lab.get(path)
        check(answer.status == 404, answer, path)  # noqa: PLR2004 - HTTP's
