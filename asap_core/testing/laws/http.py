"""Laws of HTTP: methods, and requests that two readers could divide differently."""

from email.utils import format_datetime, parsedate_to_datetime
from typing import Final

from asap_core.testing.laws.checks import check
from asap_core.testing.laws.effects import SendBytes, Steps
from asap_core.testing.laws.lab import MANIFEST_PATH, Lab, to_body
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.verdicts import Need

HTTP: Final = LawGroup("http", "methods, and one Host and one length for each request")

_MOMENT: Final = 0.3
_FRAMING: Final = ("content-length", "transfer-encoding")


@HTTP.law(clause="RFC 9110 §15.5.6", expected="status 405, and `Allow` lists POST", severity=Severity.SHOULD)
def other_methods(lab: Lab) -> Steps[None]:
    """The endpoint refuses methods other than POST by 405."""
    for method in ("GET", "PUT", "DELETE"):
        answer = yield from lab.fetch(lab.request(method, lab.path, headers=lab.caller.credentials))
        check(answer.status == 405, answer, method)  # noqa: PLR2004 - HTTP's
        check("POST" in (answer.header("allow") or ""), f"Allow: {answer.header('allow')}", method)
    # RFC 9110 §9.1: methods have cases.
    request = lab.request("post", lab.path, headers=lab.caller.credentials)
    answer = yield from lab.fetch(request)
    check(answer.status in (400, 405, 501), answer, "post in lower case")


@HTTP.law(clause="RFC 9112 §6.1, §6.2", expected="one Content-Length, or chunks, or neither", strict=True)
def answers_have_one_length(lab: Lab) -> Steps[None]:
    """An answer says in one way where it ends."""
    requests = {
        "the manifest": lab.request("GET", lab.root + MANIFEST_PATH),
        "an unknown path": lab.request("GET", "/conform-unknown"),
        "another method": lab.request("GET", lab.path, headers=lab.caller.credentials),
    }
    for example, request in requests.items():
        answer = yield from lab.fetch(request)
        framing = [f"{name}: {value}" for name, value in answer.headers if name in _FRAMING]
        check(len(framing) <= 1, f"{answer}, {' and '.join(framing)}", example)


@HTTP.law(
    clause="RFC 9110 §6.6.1, §5.6.7",
    expected="one Date, such as Sun, 06 Nov 1994 08:49:37 GMT",
    severity=Severity.SHOULD,
    needs={Need.BYTES},
    strict=True,
)
def dates_of_answers(lab: Lab) -> Steps[None]:
    """An answer says when it was made, in the one form that HTTP has."""
    for path in (MANIFEST_PATH, "/conform-unknown"):
        answer = yield from lab.get(path)
        date = answer.header("date") or ""
        try:
            written = format_datetime(parsedate_to_datetime(date), usegmt=True)
        except ValueError:
            written = ""
        check(date and date == written, f"{answer}, Date: {date!r}", path)


@HTTP.law(
    clause="RFC 9110 §9.3.2",
    expected="the status and the headers of GET, without a body; or 405",
    severity=Severity.SHOULD,
    needs={Need.BYTES},
)
def head(lab: Lab) -> Steps[None]:
    """HEAD is answered like GET, without a body, also if it's refused."""
    sent = lab.request("HEAD", lab.root + MANIFEST_PATH).to_bytes()
    got = yield from SendBytes((sent,), methods=("HEAD",))
    check(got.first.status in (200, 405), got.first)
    check(not got.rest, f"{len(got.rest)} bytes after the head")
    follows = lab.request("GET", lab.root + MANIFEST_PATH).to_bytes()
    for example, path in (("an unknown path", "/conform-unknown"), ("the endpoint", lab.path)):
        sent = lab.request("HEAD", path, headers=lab.caller.credentials, close=False).to_bytes()
        got = yield from SendBytes((sent, _MOMENT, follows), answers=2, methods=("HEAD",))
        after = got.raw[len(got.first.raw) :]
        check(not after or after.startswith(b"HTTP/1."), f"{got.first}, after its head {after[:30]!r}", example)


@HTTP.law(
    clause="RFC 9112 §3.2",
    expected="status 400",
    severity=Severity.HARDENING,
    needs={Need.BYTES, Need.DIRECT},
)
def one_host(lab: Lab) -> Steps[None]:
    """A request without Host, or with two, is refused by 400."""
    for example, fields in (("no Host", ""), ("two", f"Host: {lab.host}\r\nHost: other.example\r\n")):
        sent = f"GET {lab.root}{MANIFEST_PATH} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n".encode()
        got = yield from SendBytes((sent,), answers=1)
        check(got.first.status == 400, got.first, example)  # noqa: PLR2004 - HTTP's


@HTTP.law(
    clause="RFC 9112 §6.3; docs/security.md 20",
    expected="status 400, and the connection is closed",
    needs={Need.ADMITTED, Need.BYTES, Need.DIRECT},
)
def one_length(lab: Lab) -> Steps[None]:
    """A request with two lengths, or with a length and a transfer coding, is refused, and what follows isn't read."""
    body = to_body(lab.rpc(lab.envelope()))
    follows = lab.request("GET", lab.root + MANIFEST_PATH).to_bytes()
    for example, fields, framed in (
        ("two lengths", f"Content-Length: {len(body)}\r\nContent-Length: 0\r\n", body),
        ("a length and chunks", f"Content-Length: {len(body)}\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    ):
        head = lab.post_request(b"", headers=[("Content-Length", "0")], close=False).to_bytes()
        sent = head.replace(b"Content-Length: 0\r\n", fields.encode())
        got = yield from SendBytes((sent + framed + follows,))
        check(got.first.status == 400, got.first, example)  # noqa: PLR2004 - HTTP's
        check(len(got.answers) == 1, f"{len(got.answers)} answers", example)
