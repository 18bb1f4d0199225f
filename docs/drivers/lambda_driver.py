"""A function that is started by requests, as AWS Lambda does: an event in, a response out, frozen between calls.

    store = Store(sqlite3.connect("/mnt/shared/agent.db", isolation_level=None), agent.policy, SystemClock())
    agent.bind(clock=SystemClock(), ids=lambda: uuid.uuid4().hex, key=secrets.token_bytes(32), shared_admission=True)
    lambda_handler = Function(agent, handle, store)  # of events of an API Gateway or a function URL, payload 2.0

    invocation = Invocation(Client("urn:asap:agent:me"))  # kept from call to call, with its cache
    manifest = invocation.run(invocation.client.discover("https://agent.example"))

A process answers one event at a time, and others answer beside it, so what was admitted is remembered in a store that
all share. `Store` passes `asap_core.testing.check_store`. It needs no transaction, but rows that are written only if
there's none of their name (DynamoDB: `attribute_not_exists`), and counters. With `bind(shared_limits={"peer"})` it also
counts what callers take. docs/stores.md says what a store must do; it must also bound the number of its rows.

What it leaves out:

* Nothing runs between calls. Bodies arrive whole; a retry that comes while its request runs is told to come back; a
  handler isn't stopped at its deadline. If the function's time ends first, its idempotency key answers "outcome
  unknown".
* A limit is counted in fixed windows, so at the turn of one it may be taken twice.
* No token is verified.
* The client opens a connection for each request, and sends before it receives: an answer
  that comes early is read if the peer closes, not if it stays open and doesn't read on.
* The client reads no files and doesn't watch the local network, so registries must be URLs.
  The name server is waited for as long as the system does.
"""

import base64
import json
import logging
import random
import secrets
import socket
import sqlite3
import ssl
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar, assert_never

from asap_core import (
    AdmissionAnswer,
    AdmissionQuestion,
    Admit,
    Admitted,
    Agent,
    Answered,
    Authenticate,
    CallState,
    ClaimProof,
    Clock,
    Dispatch,
    Done,
    Exchange,
    Fork,
    Future,
    Hold,
    Instant,
    Mismatch,
    OutcomeUnknown,
    Payload,
    Policy,
    ReadBody,
    Record,
    Refusal,
    Replayed,
    Replied,
    Request,
    Reservation,
    Respond,
    Running,
    Stale,
    Stored,
    TakeLimit,
    WallTime,
    broken_call,
    outcome_to_json,
    read_outcome,
)
from asap_core.client import (
    Barred,
    Client,
    Completed,
    Dial,
    Effect,
    Expired,
    Fetch,
    HttpExchange,
    Next,
    Outcome,
    Program,
    ReadFile,
    Received,
    Returned,
    Route,
    Runtime,
    Sleep,
    Unanswered,
    Unavailable,
    Wait,
    WriteFile,
    step,
)

T = TypeVar("T")

# --- both ------------------------------------------------------------------------------------------------------------


class SystemClock:
    """The clocks of this machine."""

    def monotonic(self) -> Instant:
        """Return the time by which durations are measured, those included in which the function was frozen."""
        return Instant(time.clock_gettime(time.CLOCK_BOOTTIME))

    def wall(self) -> WallTime:
        """Return the time of day."""
        return WallTime(time.time())


# --- store -----------------------------------------------------------------------------------------------------------

ROWS = "CREATE TABLE IF NOT EXISTS rows (name TEXT PRIMARY KEY, digest BLOB, until REAL, outcome TEXT, expires REAL)"
COUNTS = "CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, amount REAL)"
LATEST = "INSERT INTO counts VALUES ('clock', ?) ON CONFLICT DO UPDATE SET amount = max(amount, ?1) RETURNING amount"
TAKE = "INSERT INTO counts VALUES (?, ?) ON CONFLICT DO UPDATE SET amount = amount + ?2 RETURNING amount"


class Store:
    """What all processes remember together: a row for each nonce, and one for each idempotency key, with its answer."""

    def __init__(self, database: sqlite3.Connection, policy: Policy, clock: Clock) -> None:
        self.run, self.policy, self.clock = database.execute, policy, clock
        self.run(ROWS)
        self.run(COUNTS)

    def now(self) -> float:
        """Return the latest time that any process has seen: the store's clock never goes back."""
        return float(self.run(LATEST, (self.clock.wall(),)).fetchone()[0])

    def ask(self, question: AdmissionQuestion) -> AdmissionAnswer:
        """Say whether a request is new: by its key first, then by its nonce, which only a new key claims."""
        now, caller = self.now(), [question.authenticated, question.sender]
        self.run("DELETE FROM rows WHERE expires < ?", (now,))
        key = json.dumps(["key", *caller, "" if question.authenticated else question.peer, question.idempotency_key])
        known = None if question.idempotency_key is None else self.known(key, question, now)
        if known is not None:
            return known
        if question.issued < now - self.policy.max_age:
            return Stale(WallTime(now))
        if question.issued > now + self.policy.skew:
            return Future(WallTime(now))
        nonce, lives = json.dumps(["nonce", *caller, question.nonce]), self.policy.max_age + self.policy.skew
        if question.nonce is not None and not self.put(nonce, question, now, now + lives):
            return Replayed()
        if question.idempotency_key is None:
            return Admitted(None)
        first = self.put(key, question, now, now + question.deadline + self.policy.idempotency_ttl)
        return Admitted(Reservation(key.encode())) if first else self.known(key, question, now) or OutcomeUnknown()

    def put(self, name: str, question: AdmissionQuestion, now: float, expires: float) -> bool:
        """Write a row, unless there's one of this name."""
        row = (name, question.digest, now + question.deadline, None, expires)
        return self.run("INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?)", row).rowcount == 1

    def known(self, key: str, question: AdmissionQuestion, now: float) -> AdmissionAnswer | None:
        """Return what is known of an idempotency key."""
        row = self.run("SELECT digest, until, outcome FROM rows WHERE name = ?", (key,)).fetchone()
        match row:
            case None:
                return None
            case (digest, _, _) if digest != question.digest:
                return Mismatch()
            case (_, until, None):
                return Running(retry_after=min(until - now, 1.0)) if now < until else OutcomeUnknown()
            case _:
                return Stored(read_outcome(json.loads(row[2])))

    def record(self, reservation: Reservation, outcome: Replied | Refusal, _size: int) -> None:
        """Keep an answer for retries."""
        row = (json.dumps(outcome_to_json(outcome)), self.now() + self.policy.idempotency_ttl, reservation.key.decode())
        self.run("UPDATE rows SET outcome = ?, expires = ? WHERE name = ?", row)

    def lose(self, reservation: Reservation) -> None:
        """Note that the work was cut off."""
        row = (self.now() + self.policy.idempotency_ttl, reservation.key.decode())
        self.run("UPDATE rows SET until = 0, expires = ? WHERE name = ?", row)

    def give_back(self, reservation: Reservation) -> None:
        """Forget a key whose work never began."""
        self.run("DELETE FROM rows WHERE name = ?", (reservation.key.decode(),))

    def take(self, state: TakeLimit) -> Exchange:
        """Take from a caller's share."""
        limit = (self.policy.peer_limits if state.scope == "peer" else self.policy.principal_limits)[0]
        window, gone = divmod(self.now(), limit.per)
        name = json.dumps([state.scope, state.key, window])
        over = int(self.run(TAKE, (name, state.cost)).fetchone()[0]) - limit.amount
        if over > 0 and not state.partial:
            return state.limited(limit.per - gone, str(limit))
        return state.taken(granted=min(state.cost, max(state.cost - over, 0)))


# --- server ----------------------------------------------------------------------------------------------------------


class Function:
    """Answers events for `agent`, with what `store` remembers."""

    def __init__(self, agent: Agent, handle: Callable[[Dispatch], Payload], store: Store) -> None:
        self.agent, self.handle, self.store = agent, handle, store

    def __call__(self, event: Mapping[str, Any], _context: object) -> dict[str, object]:
        """Answer one event."""
        http, body = event["requestContext"]["http"], event.get("body") or ""
        data = base64.b64decode(body) if event.get("isBase64Encoded") else body.encode()
        headers = [(name.lower().encode(), value.strip().encode("latin-1")) for name, value in event["headers"].items()]
        request = Request(method=http["method"], target=event["rawPath"], headers=headers, peer=http["sourceIp"])
        state = self.agent.open(request)
        while not isinstance(state, Respond):
            match state:
                case TakeLimit():
                    state = self.store.take(state)
                case Authenticate():
                    state = state.unavailable()
                case ClaimProof(question):
                    state = state.answered(self.store.ask(question))
                case ReadBody():
                    state = state.feed(data)
                    state = state.end() if isinstance(state, ReadBody) else state
                case Fork(calls):
                    state = state.answered([self.answer(call) for call in calls])
                case Done():
                    raise RuntimeError("an exchange ends with a response")
                case _:
                    assert_never(state)
        response = state.response
        state.sent()
        fields = {name.decode(): value.decode("latin-1") for name, value in response.headers}
        text = base64.b64encode(response.body).decode()
        return {"statusCode": response.status, "headers": fields, "body": text, "isBase64Encoded": True}

    def answer(self, call: CallState) -> Answered:
        """Drive one call to its answer."""
        try:
            while not isinstance(call, Answered):
                match call:
                    case Admit(question):
                        call = call.answered(self.store.ask(question))
                    case Dispatch():
                        call = call.replied(self.handle(call))
                    case Record(reservation, outcome, size):
                        self.store.record(reservation, outcome, size)
                        call = call.recorded()
                    case Hold():
                        call = call.expired()
                    case _:
                        assert_never(call)
        except Exception:
            logging.getLogger(__name__).exception("a call failed")
            if isinstance(call, Dispatch) and call.reservation is not None:
                self.store.lose(call.reservation)
            return broken_call(call)
        return call


# --- client ----------------------------------------------------------------------------------------------------------

TLS = ssl.create_default_context()


class Invocation:
    """Runs a client's programs one after the other. Keep it from call to call: its cache is what they share."""

    def __init__(self, client: Client) -> None:
        self.client = client.bind(Runtime(SystemClock(), lambda: uuid.uuid4().hex, secrets.token_hex, random.random))

    def run(self, program: Program[T]) -> T:
        """Run a program to its end, and return its result."""
        try:
            moved = step(program)
            while not isinstance(moved, Returned):
                moved = step(program, perform(moved))
            return moved.value
        finally:
            program.close()
            self.client.take_wakes()  # nobody waits; it ends what an interrupted program has begun
            for remark in self.client.take_remarks():
                getattr(logging.getLogger(remark.logger), remark.level)("%s", remark.text)


def perform(effect: Effect) -> Outcome:
    """Carry out one effect."""
    match effect:
        case Fetch():
            return fetch(effect)
        case Sleep(seconds):
            time.sleep(seconds)
            return Completed()
        case Wait():
            raise RuntimeError("no other program runs")
        case Next() | ReadFile() | WriteFile():
            return Unavailable("this driver makes requests only")
        case _:
            assert_never(effect)


def fetch(asked: Fetch) -> Received | Unanswered | Expired | Barred:
    """Make one request on a connection of its own."""
    http, route = HttpExchange(asked), asked.route
    try:
        http.seconds_left(time.monotonic())  # the time starts
        found = socket.getaddrinfo(route.name, route.port, type=socket.SOCK_STREAM) if route.name else []
        chosen = route.choose([str(address[0]) for *_, address in found])
        if not isinstance(chosen, Dial):
            return chosen
        with connect(http, route, *chosen.addresses) as connection:
            connection.settimeout(http.seconds_left(time.monotonic()))
            with suppress(ConnectionError):  # the peer has closed, perhaps after an answer that came early
                connection.sendall(http.begin(connection.getpeername()[0]))
            while http.outcome is None:
                connection.settimeout(http.seconds_left(time.monotonic()))
                http.receive(connection.recv(65_536))
            return http.outcome
    except OSError as error:
        return http.failed(error)


def connect(http: HttpExchange, route: Route, address: str, *others: str) -> socket.socket:
    """Connect to the first of these addresses that answers. Each has an equal share of the time that is left."""
    with suppress(*[OSError] if others else []):
        seconds = http.seconds_left(time.monotonic()) / (1 + len(others))
        plain = socket.create_connection((address, route.port), seconds)
        return plain if route.scheme == "http" else TLS.wrap_socket(plain, server_hostname=route.server_name)
    return connect(http, route, *others)
