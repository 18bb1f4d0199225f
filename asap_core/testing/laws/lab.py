"""The lab: what a run knows of the agent under test, and what laws build their requests with.

Time and unique ids are injected. Every id, nonce and key of a run contains a prefix of its own, so a run never repeats
what an earlier one sent: an agent with memory would be right to refuse it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Final

from attrs import evolve, field, frozen

from asap_core.testing.laws.effects import Pause, SendRequest, Steps
from asap_core.testing.laws.http_messages import Answer, HttpRequest
from asap_core.testing.laws.verdicts import LawNotTried, Need, RateLimited
from asap_core.wire.json_values import Json, JsonObject

MANIFEST_PATH: Final = "/.well-known/asap/manifest.json"
HEALTH_PATH: Final = "/.well-known/asap/health"
# The sender of calls to an agent that authenticates nobody.
ANONYMOUS: Final = "urn:asap:agent:conform"
TOO_MANY_REQUESTS: Final = 429
"""The status by which a rate limit refuses (RFC 6585 §4)."""
# A rate limit isn't what most laws are about: a refused request is repeated so often, each after the time that the
# agent asks for, at most this many seconds. The reference allows 100 a minute, so a place is free after 0.6 s.
PATIENCE: Final = 10
"""How often what a rate limit refuses is sent again."""
_LONGEST_WAIT: Final = 10.0
# Seconds until items that a rate limit has refused are sent again. The reference allows 10 requests a second.
_A_WHILE: Final = 1.1
# More calls than a table of a thousand holds.
_MANY: Final = 1_050
# So many are sent to an agent that limits the rate: more than a table of a hundred holds, in less than two minutes.
_FEWER: Final = 150
# The size of a batch, at most.
_BATCH: Final = 50


def asked_pause(answer: Answer) -> float:
    """Return how many seconds an answer that the rate limit gave asks to wait, at most 10."""
    asked = answer.header("retry-after") or ""
    return min(float(asked) if asked.isdecimal() else 1.0, _LONGEST_WAIT)


class _Absent(Enum):
    ABSENT = "absent"


ABSENT: Final = _Absent.ABSENT
"""The value of a field that is left out."""
Change = Json | _Absent


@frozen
class Caller:
    """Who sends: its URN, and the bearer token that proves it, if the agent authenticates callers."""

    urn: str
    token: str | None = field(default=None, repr=False)

    @property
    def credentials(self) -> tuple[tuple[str, str], ...]:
        """The headers that prove who it is."""
        return () if self.token is None else (("Authorization", f"Bearer {self.token}"),)


def changed(document: Mapping[str, Json], changes: Mapping[str, Change]) -> JsonObject:
    """Return a document with these values; those that are `ABSENT` are left out."""
    merged: dict[str, Change] = {**document, **changes}
    return {key: value for key, value in merged.items() if not isinstance(value, _Absent)}


def to_body(document: Json) -> bytes:
    """Return a document as a body."""
    return json.dumps(document).encode()


def _is_over_the_rate(response: JsonObject) -> bool:
    error = response.get("error")
    return isinstance(error, dict) and error.get("code") == TOO_MANY_REQUESTS


@frozen(kw_only=True)
class Lab:
    """One agent under test.

    host: what stands in `Host`.
    path: of the endpoint, such as `/asap`.
    root: what precedes the well-known paths; usually empty.
    recipient: the agent's URN, from its manifest.
    caller, other: who sends. `other` is None if there is no second caller.
    skill, input: the work that laws may have done. `skill` is None if no skill may be run.
    failing: a skill whose work fails, whatever its input.
    has: what this run can do, and the agent has.
    wall: returns seconds since the Unix epoch.
    ids: returns an id that no run has used.
    clock_hook, reset_hook: the commands that run the hooks, for reports. Empty if they are none.
    """

    host: str
    path: str
    root: str = ""
    manifest: JsonObject
    recipient: str
    caller: Caller
    other: Caller | None = None
    skill: str | None
    input: JsonObject = field(factory=dict)
    failing: str | None = None
    has: frozenset[Need]
    wall: Callable[[], float]
    ids: Callable[[], str]
    clock_hook: str = ""
    reset_hook: str = ""

    @property
    def secrets(self) -> dict[str, str]:
        """The callers' tokens, each with the name that reports show instead."""
        named = ((self.other, "$OTHER_TOKEN"), (self.caller, "$TOKEN"))
        return {who.token: name for who, name in named if who is not None and who.token}

    # --- values ------------------------------------------------------------------------------------------------------

    def fresh(self) -> str:
        """Return text that no run has used: for ids, nonces, keys and markers."""
        return self.ids()

    def second_caller(self) -> Caller:
        """Return the second caller. For laws that need `Need.OTHER`."""
        if self.other is None:
            raise LawNotTried(f"it needs {Need.OTHER.value}")
        return self.other

    def timestamp(self, offset: float = 0.0) -> str:
        """Return a timestamp, so many seconds from now."""
        at = datetime.fromtimestamp(self.wall(), UTC) + timedelta(seconds=offset)
        return at.isoformat().replace("+00:00", "Z")

    def task(self, **changes: Change) -> JsonObject:
        """Return the payload of a task request for the skill that may be run."""
        return changed({"conversation_id": self.fresh(), "skill_id": self.skill, "input": self.input}, changes)

    def envelope(self, *, caller: Caller | None = None, nonce: str | None = None, **changes: Change) -> JsonObject:
        """Return an envelope that an agent accepts, with these changes. Each has an id and a nonce of its own."""
        return changed(
            {
                "id": self.fresh(),
                "asap_version": "0.1",
                "timestamp": self.timestamp(),
                "sender": (caller or self.caller).urn,
                "recipient": self.recipient,
                "payload_type": "task.request",
                "payload": self.task(),
                "correlation_id": None,
                "trace_id": None,
                "requires_ack": False,
                "extensions": {"nonce": nonce or self.fresh()},
            },
            changes,
        )

    def rpc(self, envelope: Json, *, key: str | None = None, **changes: Change) -> JsonObject:
        """Return the JSON-RPC request that sends an envelope. `key`: the idempotency key."""
        params: JsonObject = {"envelope": envelope} if key is None else {"envelope": envelope, "idempotency_key": key}
        return changed({"jsonrpc": "2.0", "method": "asap.send", "id": self.fresh(), "params": params}, changes)

    def request(
        self,
        method: str,
        target: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        close: bool = True,
    ) -> HttpRequest:
        """Return a request to this agent; Host, Connection and the body's type and length are added if missing."""
        given = {name.lower() for name, _ in headers}
        added = [("Host", self.host)]
        if body is not None:
            added += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        if close:
            added.append(("Connection", "close"))
        fields = [one for one in added if one[0].lower() not in given]
        return HttpRequest(method, target, (*fields, *headers), body or b"")

    def post_request(
        self, body: bytes, *, headers: Sequence[tuple[str, str]] = (), caller: Caller | None = None, close: bool = True
    ) -> HttpRequest:
        """Return a POST of this body to the endpoint, with the caller's token."""
        credentials = (caller or self.caller).credentials
        return self.request("POST", self.path, headers=[*credentials, *headers], body=body, close=close)

    # --- steps -------------------------------------------------------------------------------------------------------

    def fetch(self, request: HttpRequest) -> Steps[Answer]:
        """Send a request. If the rate limit refuses it, wait as long as the agent asks for, and send it again."""
        answer = yield from SendRequest(request)
        for _ in range(PATIENCE):
            if answer.status != TOO_MANY_REQUESTS:
                break
            yield from Pause(asked_pause(answer))
            answer = yield from SendRequest(request)
        return answer

    def get(self, target: str, *, headers: Sequence[tuple[str, str]] = (), method: str = "GET") -> Steps[Answer]:
        """Fetch a document of the agent, such as `MANIFEST_PATH`."""
        return (yield from self.fetch(self.request(method, self.root + target, headers=headers)))

    def post(
        self, body: bytes, *, headers: Sequence[tuple[str, str]] = (), caller: Caller | None = None
    ) -> Steps[Answer]:
        """Send any body to the endpoint, with the caller's token."""
        return (yield from self.fetch(self.post_request(body, headers=headers, caller=caller)))

    def call(
        self,
        document: Json,
        *,
        headers: Sequence[tuple[str, str]] = (),
        caller: Caller | None = None,
    ) -> Steps[Answer]:
        """Send a JSON-RPC document, or any other.

        If the rate limit refuses items of a batch, they're sent again later.

        Raises: RateLimited if it does so again and again, or if the batch has `headers`: an idempotency key in the head
            is about the batch as it was.
        """
        answer = yield from self.post(to_body(document), headers=headers, caller=caller)
        if not isinstance(document, list):
            return answer
        if headers and any(map(_is_over_the_rate, answer.items)):
            raise RateLimited("the rate limit refuses a part of a batch")
        return (yield from self.completed(document, answer, caller=caller))

    def completed(self, batch: Sequence[Json], answer: Answer, *, caller: Caller | None = None) -> Steps[Answer]:
        """If the rate limit refused items of a batch, wait, and send those again, until none is refused so.

        Returns the answer to the batch with the later answers in the places of the refusals. Raises RateLimited if the
        rate limit refuses some again and again: they aren't what a law is about.
        """
        for _ in range(PATIENCE):
            items: list[Json] = [*answer.items]
            limited = [place for place, each in enumerate(answer.items) if _is_over_the_rate(each)]
            if not limited or len(items) != len(batch):
                return answer
            yield from Pause(_A_WHILE)
            again = yield from self.post(to_body([batch[place] for place in limited]), caller=caller)
            for place, each in zip(limited, again.items, strict=False):
                items[place] = each
            answer = evolve(answer, body=to_body(items))
        raise RateLimited(f"the rate limit refuses requests of a batch, also after {PATIENCE} attempts")

    def send(self, envelope: Json, *, key: str | None = None, caller: Caller | None = None) -> Steps[Answer]:
        """Send an envelope."""
        return (yield from self.call(self.rpc(envelope, key=key), caller=caller))

    def many_later(self, call: Callable[[], JsonObject], judge: Callable[[], Steps[None]]) -> Steps[None]:
        """Send 1,050 further calls, then judge what is left of what was before them.

        If the agent doesn't accept them all, it's judged after 150, and after more the law isn't tried.

        call: returns a call, each time another one.
        judge: raises `LawBroken` if what was before them is forgotten.
        """
        answer, done, several = Answer(), 0, _BATCH if Need.BATCH in self.has else 1
        while done < _MANY:
            calls: list[Json] = [call() for _ in range(several)]
            answer = yield from SendRequest(self.post_request(to_body(calls if several > 1 else calls[0])))
            taken = int(answer.is_success) if several == 1 else sum("result" in each for each in answer.items)
            done += taken
            if several > 1 and not answer.items and answer.status != TOO_MANY_REQUESTS:
                several = 1
            elif taken < several:
                break
        accepts_all = done >= _MANY
        while done < _FEWER:
            yield from self.call(call())
            done += 1
        yield from judge()
        if not accepts_all:
            refusals = [each for each in answer.items if "error" in each]
            got = Answer(answer.status, body=to_body(refusals[0])) if refusals else answer
            raise LawNotTried(
                f"kept after {done} further calls; not tried after {_MANY}, which weren't accepted: {got}"
            )

    def succeed(self, envelope: Json, *, key: str | None = None, caller: Caller | None = None) -> Steps[Answer]:
        """Send an envelope that must be accepted before the law can be judged."""
        answer = yield from self.send(envelope, key=key, caller=caller)
        if not answer.is_success:
            raise LawNotTried(f"a valid call before it wasn't accepted: {answer}")
        return answer
