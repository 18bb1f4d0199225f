"""What users write who run a client's programs on a runtime of their own, for the type checker alone: it isn't run."""

from collections.abc import Callable
from typing import TypeVar, assert_never, assert_type

from asap_core import Clock, Envelope, Manifest, ManualClock
from asap_core.client import (
    Barred,
    BodyReader,
    BreakerPolicy,
    Client,
    Completed,
    Dial,
    DiscoveredAgent,
    DiscoveryOptions,
    DocumentCachePolicy,
    Effect,
    Expired,
    Fetch,
    FileIdentity,
    FileRead,
    FileToWrite,
    Heard,
    HttpExchange,
    JwtAuthentication,
    LocalNetwork,
    Next,
    OutboundPolicy,
    Outcome,
    Program,
    ReadFile,
    Received,
    Remark,
    RequestOptions,
    Requests,
    RetryPolicy,
    Returned,
    Route,
    Runtime,
    Sleep,
    Stage,
    Ticket,
    TokenIntrospection,
    TrustPolicy,
    Unanswered,
    Unavailable,
    Wait,
    WriteFile,
    step,
)

T = TypeVar("T")


def client(clock: Clock, ids: Callable[[], str], fraction: Callable[[], float]) -> Client:
    made = Client(
        "urn:asap:agent:me",
        outbound=OutboundPolicy(allow_http=["agent.lan"]),
        trust=TrustPolicy(require_signed=True),
        discovery=DiscoveryOptions(registries=["registry.json"], cache=DocumentCachePolicy(max_entries=10)),
        http=RequestOptions(timeout=10.0),
        retry=RetryPolicy(retries=1),
        breaker=BreakerPolicy(),
    )
    return made.bind(Runtime(clock, ids, ids, fraction))


def run(client: Client, program: Program[T]) -> T:
    outcome: Outcome | None = None
    try:
        while not isinstance(moved := step(program, outcome), Returned):
            settle(client)
            outcome = perform(moved)
        return moved.value
    finally:
        program.close()
        settle(client)


def settle(client: Client) -> None:
    tickets: tuple[Ticket, ...] = client.take_wakes()
    remarks: tuple[Remark, ...] = client.take_remarks()
    for path in client.take_removals():
        assert_type(path, str)
    assert all(ticket.ready for ticket in tickets)
    assert [f"{remark.logger} {remark.level}: {remark.text}" for remark in remarks]


def perform(effect: Effect) -> Outcome:
    match effect:
        case Fetch():
            return fetch(effect)
        case Wait(ticket, seconds):
            return Completed() if ticket.ready else Expired(Stage.QUEUED if seconds else Stage.SENT)
        case Sleep(seconds):
            return Completed() if seconds else Expired()
        case Next(source):
            return listen(source)
        case ReadFile(path, reader):
            return read(path, reader)
        case WriteFile(_, file):
            return write(file)
        case _:
            assert_never(effect)


def write(file: FileToWrite) -> Completed | Unavailable:
    obsolete: list[str] = list(file.surplus([("name", 0.0)]))
    if obsolete or file.is_written(b"head", 4):
        return Completed()
    return Completed() if list(file.pieces()) and file.wanted() else Unavailable("not here")


def fetch(effect: Fetch) -> Received | Unanswered | Barred:
    route: Route = effect.route
    chosen = route.choose([] if route.name is None else ["192.0.2.1"])
    match chosen:
        case Barred() | Unanswered():
            return chosen
        case Dial(addresses):
            if not route.server_name:
                return Unanswered(Stage.CONNECTING, "no name")
            effect.reader.read(200, [("content-type", "application/json")], b"{}")
            return Received(addresses[0])
        case _:
            assert_never(chosen)


def exchange(effect: Fetch, sent: Callable[[bytes], None], received: Callable[[], bytes]) -> Received | Unanswered:
    http = HttpExchange(effect)
    sent(http.begin("192.0.2.1"))
    while (outcome := http.receive(received())) is None:
        assert_type(http.stage, Stage)
    return outcome


def exchange_on_a_loop(http: HttpExchange, data: bytes, turn: Callable[[], None]) -> Received | Unanswered | Expired:
    http.feed(data)
    while http.work():
        turn()
    return http.outcome or assert_type(http.failed(TimeoutError()), Unanswered | Expired)


def listen(source: LocalNetwork) -> Heard | Unavailable:
    return Unavailable(f"{source} isn't watched here", number=None)


def read(path: str, reader: BodyReader) -> FileRead:
    reader.feed(path.encode())
    while reader.wants and reader.work():
        pass
    reader.end()
    return FileRead(FileIdentity(1, 2, 3, 4))


def use(client: Client) -> None:
    assert_type(run(client, client.discover("https://agent.example")), Manifest)
    assert_type(run(client, client.look_up("https://agent.example")), DiscoveredAgent)
    assert_type(run(client, client.send("https://agent.example", "task.request", {"skill_id": "echo"})), Envelope)
    assert_type(client.cached("https://agent.example"), Manifest | None)


def servers(runtime: Runtime, requests: Requests) -> tuple[type[JwtAuthentication], type[TokenIntrospection]]:
    assert Requests(runtime, policy=OutboundPolicy()) is not requests
    assert ManualClock().monotonic() == 0.0
    return JwtAuthentication, TokenIntrospection
