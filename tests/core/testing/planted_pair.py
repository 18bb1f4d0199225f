"""This library's agent and the planted one, side by side: each request goes to both."""

import itertools
import json
from enum import Enum
from typing import Any

from asap_core import (
    Agent,
    AuthScheme,
    Capabilities,
    Endpoints,
    Manifest,
    ManualClock,
    Policy,
    Refusal,
    Replied,
    Request,
    Skill,
    StartPolicy,
    TokenTable,
)
from asap_core.http.messages import Gzip
from asap_core.refusals import HANDLER_FAILED
from asap_core.server.call import Answered, CallState, Dispatch, Hold
from asap_core.server.exchange import Authenticate, Exchange, Fork, ReadBody, Respond
from asap_core.testing.planted.agent import PlantedAgent
from asap_core.testing.planted.messages import PlantedOptions, PlantedResponse

PARSE_ERROR = -32700
ALICE, BOB = "urn:asap:agent:alice", "urn:asap:agent:bob"
MAX_BODY = 20_000


class Pair:
    """Both agents under one clock. `options`, `policy`: what both are made with beside the usual."""

    def __init__(self, *, breaks=(), **policy: Any) -> None:
        self.clock = ManualClock()
        self.options = PlantedOptions(max_body=MAX_BODY, codings=("gzip",))
        self.planted = PlantedAgent(self.options, breaks=breaks, monotonic=self.clock.monotonic, wall=self.clock.wall)
        manifest = Manifest(
            id=self.options.urn,
            name="Ours",
            version="1.0.0",
            description="",
            capabilities=Capabilities(skills=tuple(Skill(id=each, description="") for each in self.options.skills)),
            endpoints=Endpoints(asap=f"{self.options.url}/asap"),
            auth=AuthScheme(schemes=("bearer",)),
        )
        rules = Policy(peer_limits=(), max_body=MAX_BODY, start=StartPolicy.OPEN, hold=0, **policy)
        numbers = itertools.count()
        self.ours = Agent(manifest, policy=rules)
        self.ours.bind(clock=self.clock, ids=lambda: f"reply-{next(numbers)}", key=b"k" * 32, codings={b"gzip": Gzip})
        self.tokens = TokenTable(dict(self.options.tokens))
        self.numbers = itertools.count()

    def both(
        self, method="POST", target="/asap", body=b"", token: str | None = "token-of-alice", **headers: str
    ) -> tuple[Any, Any]:
        """Send a request to both. Returns what a client would tell apart of each answer."""
        fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
        if token is not None:
            fields.append(("authorization", f"Bearer {token}"))
        planted = self.planted.call(method, target, tuple(fields), body)
        ours = self._ask_ours(method, target, fields, body)
        return seen(ours.status, ours.headers, ours.body), _seen_of(planted)

    def _ask_ours(self, method, target, fields, body):
        headers = tuple((name.encode(), value.encode("latin-1")) for name, value in fields)
        state: Exchange = self.ours.open(Request(method=method, target=target, headers=headers, peer="127.0.0.1"))
        while not isinstance(state, Respond):
            match state:
                case Authenticate(credential):
                    principal = self.tokens.verify(credential)
                    state = state.refused() if principal is None else state.verified(principal)
                case ReadBody():
                    fed = state.feed(body)
                    state = fed.end() if isinstance(fed, ReadBody) else fed
                case Fork(calls):
                    state = state.answered([_driven(call) for call in calls])
                case _:
                    raise AssertionError(state)
        response = state.response
        state.sent()
        return response

    def call(self, **changes: Any) -> dict[str, Any]:
        """A valid call. `changes`: of the envelope; `rpc`, `params`: of the request and its params."""
        number = next(self.numbers)
        rpc, params = changes.pop("rpc", {}), changes.pop("params", {})
        envelope = {
            "id": f"envelope-{number}",
            "asap_version": "0.1",
            "timestamp": self.clock.wall(),
            "sender": ALICE,
            "recipient": self.options.urn,
            "payload_type": "task.request",
            "payload": {"conversation_id": "c", "skill_id": "echo", "input": {"text": "hello"}},
            "extensions": {"nonce": f"nonce-{number}"},
            **changes,
        }
        envelope = {key: value for key, value in envelope.items() if value is not ABSENT}
        request = {
            "jsonrpc": "2.0",
            "id": number,
            "method": "asap.send",
            "params": {"envelope": envelope, **params},
            **rpc,
        }
        return {key: value for key, value in request.items() if value is not ABSENT}


class Absent(Enum):
    """A field that is left out. Not a bare object: names of tests may not contain an address."""

    ABSENT = "absent"


ABSENT: Any = Absent.ABSENT


def written(value: Any) -> bytes:
    """The text of a value."""
    return json.dumps(value).encode()


def _driven(call: CallState) -> Answered:
    if isinstance(call, Hold):
        call = call.expired()
    if isinstance(call, Dispatch):
        if call.skill == "fail":
            call = call.failed(Refusal(kind=HANDLER_FAILED))
        else:
            task = {"task_id": "t", "status": "completed", "result": call.envelope.payload["input"]}
            call = call.replied(Replied("task.response", task))
    assert isinstance(call, Answered), call
    return call


def _seen_of(response: PlantedResponse) -> Any:
    fields = [(name.encode(), value.encode("latin-1")) for name, value in response.fields]
    return seen(response.status, fields, response.body)


# What a client reads of the head; the values of these differ between two agents.
_HEAD = {"allow", "www-authenticate", "accept-encoding", "retry-after", "asap-version", "cache-control", "content-type"}
_OPAQUE = {b"etag"}


def seen(status: int, headers: Any, body: bytes) -> Any:
    """What of an answer a client may decide by: status, fields, and for each call its result or error."""
    fields = {name: value for name, value in headers if name.decode() in _HEAD}
    if b"accept-encoding" in fields:
        fields[b"accept-encoding"] = b"any"
    opaque = {name for name, _ in headers} & _OPAQUE
    document = json.loads(body) if body else None
    answers = [_decided(each) for each in document] if isinstance(document, list) else _decided(document)
    return status, dict(sorted(fields.items())), opaque, answers


def _decided(answer: Any) -> Any:
    if not isinstance(answer, dict) or "jsonrpc" not in answer:
        return None
    if "error" in answer:
        error = answer["error"]
        named = error["data"].get("validation_errors", []) if error["code"] != PARSE_ERROR else []
        problems = [(each["type"], each["loc"]) for each in named]
        data = {key: error["data"].get(key) for key in ("code", "recoverable", "retry_after_ms", "status_code")}
        return answer["id"], error["code"], error["message"], data, sorted(map(str, problems))
    envelope = answer["result"]["envelope"]
    told = {key: value for key, value in envelope.items() if key not in ("id", "timestamp", "payload")}
    return answer["id"], told, envelope["payload"]["result"], sorted(envelope)
