"""Code of users that write a driver, or test one with the kit, for the type checker only; it isn't run."""

from collections.abc import Iterator, Sequence

from hypothesis import strategies

from asap_adapters.testing import MemoryNetwork
from asap_core import (
    HANDLER_TIMEOUT,
    BadHead,
    CallState,
    Clock,
    Counters,
    Dispatch,
    FunctionClock,
    HeadReader,
    Instant,
    Manifest,
    ManualClock,
    Refusal,
    Request,
    RequestBody,
    Response,
    WallTime,
    broken_call,
    refuse_head,
)
from asap_core.auth import ProofKey
from asap_core.client import Client
from asap_core.testing import (
    CallerArrives,
    CallerLeaves,
    ConnectionFaults,
    Cut,
    Delayed,
    DirectionFaults,
    ExchangeMachine,
    NearlyValid,
    NearlyValidHead,
    NearlyValidToken,
    OutcomeScript,
    Reply,
    Schedule,
    ScriptedAnswer,
    ScriptedDriver,
    ScriptedRun,
    Target,
    TimePasses,
    TokenIssuer,
    WallClockSteps,
    broken_documents,
    cuts,
    envelope_documents,
    envelopes,
    heads,
    json_values,
    key_sets,
    local_target,
    manifests,
    nearly_valid_announcements,
    nearly_valid_envelopes,
    nearly_valid_heads,
    nearly_valid_key_sets,
    nearly_valid_manifests,
    nearly_valid_registry_entries,
    nearly_valid_tokens,
    network_scripts,
    outcome_scripts,
    request_bodies,
    requests,
    schedules,
    tokens,
    urns,
)


class SystemClock:
    """A clock of one's own."""

    def monotonic(self) -> Instant:
        return Instant(0.0)

    def wall(self) -> WallTime:
        return WallTime(0.0)


clocks: list[Clock] = [SystemClock(), ManualClock(wall=1.75e9), FunctionClock(lambda: 0.0, lambda: 1.75e9)]
counters = Counters()


def read(data: bytes, request: Request) -> Response | bytes | None:
    head = HeadReader(max_size=65_536, max_fields=100).feed(data)
    if isinstance(head, BadHead):
        return refuse_head(head.status, head.expected)
    content = RequestBody(request).read(data)
    return refuse_head(content.status, content.expected) if isinstance(content, BadHead) else content


def fail(state: CallState) -> CallState:
    return broken_call(state)


def request(data: bytes) -> Request | None:
    head = HeadReader(max_size=65_536, max_fields=100).feed(data)
    read = None if head is None or isinstance(head, BadHead) else head.request(peer="192.0.2.1", local="192.0.2.2")
    return None if isinstance(read, BadHead) else read


def refuse(state: Dispatch, refusal: Refusal | None = None) -> CallState:
    return state.failed(refusal or Refusal(kind=HANDLER_TIMEOUT))


class OwnMachine(ExchangeMachine):
    """The machine against one's own agent."""

    def make_target(self) -> Target:
        inside: Target = local_target(self.clock)

        def target(body: bytes, token: str | None) -> Reply:
            reply = inside(body, token)
            return Reply(reply.status, reply.body)

        return target


values: list[strategies.SearchStrategy[object]] = [json_values(max_leaves=3), envelopes(), urns(), request_bodies()]
documents: list[strategies.SearchStrategy[dict[str, object]]] = [broken_documents(), envelope_documents()]
nearly: list[strategies.SearchStrategy[NearlyValid]] = [
    nearly_valid_envelopes("id is a string"),
    nearly_valid_manifests(),
    nearly_valid_registry_entries(),
    nearly_valid_announcements(),
]


def drawn_for(key: ProofKey, forger: ProofKey) -> strategies.SearchStrategy[str | NearlyValidToken]:
    issuer = TokenIssuer(
        key=key, forger=forger, issuer="https://id.example", audience="a", agent="urn:asap:agent:a", wall=lambda: 1.75e9
    )
    nearly.append(nearly_valid_key_sets(issuer, "use is sig"))
    sets: strategies.SearchStrategy[dict[str, object]] = key_sets(issuer)
    return tokens(issuer) | nearly_valid_tokens(issuer, "typ is that of an access token") | sets.map(str)


scripts: strategies.SearchStrategy[OutcomeScript] = outcome_scripts(strategies.just(b"{}"), most=3)
driver = ScriptedDriver(OutcomeScript(fetches=(Delayed(1.0, ScriptedAnswer(404)),)).play())
client = Client("urn:asap:agent:a").bind(driver.runtime)
run: ScriptedRun[Manifest] = driver.start(client.discover("http://a/"))
plan: Schedule = (CallerArrives(0), TimePasses(1.0), WallClockSteps(-1.0), CallerLeaves(0))
runs: list[ScriptedRun[Manifest]] = driver.follow(plan, lambda caller: client.discover(f"http://localhost:{caller}"))
plans: strategies.SearchStrategy[Schedule] = schedules(callers=2, seconds=[0.5], wall=False)
broken: strategies.SearchStrategy[Sequence[ConnectionFaults]] = network_scripts(most=2)
network = MemoryNetwork([ConnectionFaults(to_server=DirectionFaults(cut_after=9, cut=Cut.LOST))])
bad_heads: strategies.SearchStrategy[NearlyValidHead] = nearly_valid_heads("there is one framing")
raw: strategies.SearchStrategy[bytes] = heads()
pieces: strategies.SearchStrategy[tuple[bytes, ...]] = cuts(b"data")


def shown(manifest: strategies.SearchStrategy[Manifest], request: strategies.SearchStrategy[Request]) -> Iterator[str]:
    yield repr(manifest)
    yield repr(request)


shown(manifests(), requests())
