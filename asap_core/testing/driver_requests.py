"""The rules for requests that a driver of `Client` makes, each with its check."""

from typing import Final

from asap_core.client.programs import (
    Barred,
    Expired,
    Received,
    Route,
    Stage,
    Unanswered,
)
from asap_core.net.addresses import Proximity
from asap_core.testing.driver_trial import (
    BODY,
    LIMIT,
    MAX_BODY,
    PLAIN,
    SECRET,
    SLACK,
    WHAT,
    NotingReader,
    Trial,
    rule,
)
from asap_core.testing.loopback import LoopbackServer
from asap_core.wire.manifest import MANIFEST_PATH, Manifest

_CALLERS: Final = 20
# In seconds. A reader that doesn't need a body waits for 0.2 s.
_PATIENT: Final = 4.0
# Of a body that goes on for ever, what the reader and the sockets' buffers may take before it's given up.
_LARGEST_PIECE: Final = 1_048_576


# --- the rules: requests ---------------------------------------------------------------------------------------------


@rule("requests", "concurrency")
def check_one_request(trial: Trial) -> None:
    """Twenty callers of one document make one request."""
    found = trial.run(*[trial.client.discover(trial.server.url) for _ in range(_CALLERS)])
    assert all(each is found[0] for each in found), f"{_CALLERS} callers got different results, such as {found[:2]!r}"
    assert isinstance(found[0], Manifest), f"expected the manifest, not {found[0]!r}"
    asked = trial.server.paths().count(MANIFEST_PATH)
    assert asked == 1, f"{_CALLERS} callers made {asked} requests; no two programs may step at once"
    trial.is_settled()


@rule("requests")
def check_requests(trial: Trial) -> None:
    """A request arrives as the effect says, and without anything of the driver's."""
    body = bytes(range(256)) * 1_000
    trial.received("/ok", body=body, headers=(("x-check", "yes"), ("content-type", "application/json")))
    trial.received("/ok")
    assert trial.server.paths() == ["/ok", "/ok"], f"two requests were to be made: {trial.server.paths()}"
    posted, got = trial.server.arrivals
    assert posted.head.startswith("POST /ok "), f"expected POST /ok, not {posted.head[:20]!r}"
    assert got.head.startswith("GET /ok "), f"expected GET /ok, not {got.head[:20]!r}"
    assert posted.body == body, f"a body of {len(body)} bytes was to be sent, and {len(posted.body)} arrived"
    assert posted.header("x-check") == "yes", "a header field of the effect is missing"
    assert posted.header("host") == f"127.0.0.1:{trial.server.port}", f"the host is {posted.header('host')!r}"
    for name in ("cookie", "authorization", "referer"):
        assert got.header(name) is None, f"it sends the field {name}, which isn't the effect's"


@rule("requests")
def check_responses(trial: Trial) -> None:
    """A response goes into the reader, whole."""
    for path in ("/ok", "/pieces", "/until-closed", "/interim"):
        reader = trial.received(path).reader
        assert (reader.status, reader.body) == (200, BODY), f"{WHAT[path]}: the reader has {reader.status}"
        assert reader.complete, f"{WHAT[path]}: the reader isn't complete: call end()"
    assert trial.received("/gzip").reader.body == PLAIN, "a compressed body is read wrongly: decoded twice, or never?"


@rule("requests")
def check_redirects(trial: Trial) -> None:
    """Redirects aren't followed."""
    status = trial.received("/moved").reader.status
    paths = trial.server.paths()
    assert (status, paths) == (302, ["/moved"]), f"after a 302 the reader has status {status}; requested were {paths}"


@rule("requests")
def check_early_answers(trial: Trial) -> None:
    """An answer that comes early is read."""
    status = trial.received("/early", body=bytes(8_000_000)).reader.status
    assert status == 413, f"a server refused a large request with 413, and the status is {status}"  # noqa: PLR2004


@rule("requests")
def check_large_bodies(trial: Trial) -> None:
    """A body is read piece by piece, and no further than its reader wants."""
    fetch = trial.fetch("/endless", seconds=2.5)
    outcome = trial.outcome(fetch)
    assert isinstance(outcome, Received), f"{WHAT['/endless']}: expected Received, not {outcome!r}; look at `wants`"
    assert fetch.reader.largest <= _LARGEST_PIECE, f"it gives the reader {fetch.reader.largest} bytes at once"  # type: ignore[attr-defined]
    assert trial.server.arrivals[0].left.wait(SLACK), "the connection is open, though the reader wants no more"


@rule("requests")
def check_broken_responses(trial: Trial) -> None:
    """A response that isn't whole is Unanswered, and nothing of it is in `problem`."""
    for path, stages in {
        "/cut": {Stage.ANSWERED, Stage.SENT}, "/closed": {Stage.SENT}, "/garbage": {Stage.SENT},
    }.items():  # fmt: skip
        fetch = trial.fetch(path)
        outcome = trial.outcome(fetch)
        what = {"/cut": "a body was cut off", "/closed": "there was no answer", "/garbage": "it wasn't HTTP"}[path]
        assert isinstance(outcome, Unanswered), f"{what}: expected Unanswered, not {outcome!r}"
        assert outcome.stage in stages, f"{what}: the stage is {outcome.stage}; the server may have acted on it"
        assert not fetch.reader.complete, (
            f"{what}, and the reader is complete: half a document is taken for a whole one"
        )
        assert SECRET not in outcome.problem, f"the problem has what the peer sent: {outcome.problem!r}"


@rule("requests")
def check_refused_connections(trial: Trial) -> None:
    """If nothing can be connected to, it's Unanswered before anything was sent."""
    with LoopbackServer({}) as other:
        port = other.port
    outcome = trial.outcome(trial.fetch("/ok", url=f"http://127.0.0.1:{port}", route=Route("127.0.0.1", port, "http")))
    assert isinstance(outcome, Unanswered), f"expected Unanswered, not {outcome!r}"
    allowed = {Stage.CONNECTING} if "addresses" not in trial.lacks else {Stage.CONNECTING, Stage.SENT}
    assert outcome.stage in allowed, f"nothing was sent, and the stage is {outcome.stage}: it isn't sent again then"


@rule("requests")
def check_time_limits(trial: Trial) -> None:
    """`seconds` limits a request as a whole."""
    bodies = {"/deaf": bytes(8_000_000)}
    what = {"/deaf": "the request wasn't read", "/silent": "no answer came"}
    for path in ("/deaf", "/silent", "/trickling", "/trickling-head"):
        outcome, seconds = trial.timed(trial.fetch(path, body=bodies.get(path), seconds=LIMIT))
        why = what.get(path, "one byte came each 0.1 s")
        assert isinstance(outcome, Expired), f"{why}: after {seconds:.1f} s expected Expired, not {outcome!r}"
        assert outcome.stage is not Stage.CONNECTING, f"{why}: the stage is {outcome.stage}, and the request was sent"
        assert seconds <= LIMIT + SLACK, f"{why}: a limit of {LIMIT} s ended it after {seconds:.1f} s"
    for arrival in trial.server.arrivals:
        assert arrival.path == "/deaf" or arrival.left.wait(SLACK), f"its connection is still open: {arrival.path}"


@rule("requests", "patience")
def check_patience(trial: Trial) -> None:
    """Once the reader has a patience, the rest of a body is waited for no longer."""
    fetch = trial.fetch("/refused", seconds=6.0, reader=NotingReader(MAX_BODY, drain=True))
    outcome, seconds = trial.timed(fetch)
    assert seconds <= _PATIENT, f"the body of an error stalled, and it was waited for {seconds:.1f} s"
    assert outcome == Expired(Stage.ANSWERED), f"the body of an error stalled: the outcome is {outcome!r}"
    assert fetch.reader.status == 503, "the status of an error isn't in the reader"  # noqa: PLR2004


@rule("requests", "addresses")
def check_addresses(trial: Trial) -> None:
    """Only the addresses of `route.choose` are connected to, in their order."""
    port, url = trial.server.port, f"http://driver-check.invalid:{trial.server.port}"
    route = Route("driver-check.invalid", port, "http", announced=("127.0.0.2", "127.0.0.1"))
    fetch = trial.fetch("/ok", url=url, route=route)
    outcome = trial.outcome(fetch)
    assert isinstance(outcome, Received), f"two addresses were chosen, of which the second answers: {outcome!r}"
    assert outcome.address in {None, "127.0.0.1"}, f"the address is 127.0.0.1, not {outcome.address!r}"
    assert trial.server.arrivals[0].header("host") == f"driver-check.invalid:{port}", "the host isn't the URL's"
    outcome = trial.outcome(
        trial.fetch("/ok", url=f"http://localhost:{port}", route=Route("localhost", port, "http", ("127.0.0.3",)))
    )
    assert len(trial.server.arrivals) == 1, "it resolved a name, and connected to an address that wasn't chosen"
    assert isinstance(outcome, Unanswered), f"the address that was chosen doesn't answer: {outcome!r}"


@rule("requests", "addresses")
def check_refused_addresses(trial: Trial) -> None:
    """What `route.choose` refuses isn't requested."""
    route = Route("127.0.0.1", trial.server.port, "http", reach=Proximity.INTERNET)
    outcome = trial.outcome(trial.fetch("/ok", route=route))
    assert trial.server.paths() == [], "it requested what the policy refuses"
    assert isinstance(outcome, Barred), f"expected what route.choose returned, {route.choose()!r}, not {outcome!r}"
