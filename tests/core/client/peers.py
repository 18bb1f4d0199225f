"""A provider of tokens and an agent, as a script for `Driver`: they note what they were asked, and do what a test says.

peers = Peers(auth={AGENT: credentials()})
assert peers.send().payload["result"] == {"runs": 1}
"""

import gzip
import json
from base64 import urlsafe_b64decode
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from attrs import evolve, frozen

from asap_core.auth.authorization import ClientCredentials
from asap_core.auth.client_credentials import ClientSecret
from asap_core.client.breaker import BreakerPolicy
from asap_core.client.delivery import RetryPolicy
from asap_core.client.programs import Fetch, Program, Stage, Unanswered
from asap_core.client.requests import Requests
from asap_core.client.sending import Sender
from asap_core.client.tokens import Authorizer, Destination, TokenSource
from asap_core.errors import RemoteError
from asap_core.net.outbound import OutboundPolicy, known_origin
from asap_core.wire.envelope import Envelope, utc
from asap_core.wire.manifest import AuthScheme
from tests.core.client.scripted import After, Answer, Driver, Reply

ISSUER, AGENT = "https://id.example", "https://agent.example"
ME, THEM = "urn:asap:agent:me", "urn:asap:agent:them"
METADATA = {"issuer": ISSUER, "token_endpoint": f"{ISSUER}/token"}
# Neither connected nor sent; sent, and lost.
NOT_CONNECTED, LOST = Unanswered(Stage.CONNECTING, "can't connect: refused"), Unanswered(Stage.SENT, "closed")

Does = Reply | After | Callable[[Fetch], Reply | After]
"""What a peer does with the next request: answer like this; None in a list: as always."""


def answer(value: object = b"", status: int = 200, **headers: str) -> Answer:
    """A response with a JSON value, or with these bytes; `retry_after="7"` is the field `retry-after`."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Answer(status, tuple((name.replace("_", "-"), text) for name, text in headers.items()), body)


def error(status: int, code: str = "", **headers: str) -> Answer:
    """The refusal of a token endpoint."""
    return answer({"error": code, "error_description": "s3cret"}, status, **headers)


def refused(**data: object) -> Answer:
    """An agent's refusal, which may be recoverable."""
    said = {"code": -32062, "message": "still running", "data": {"recoverable": True, **data}}
    return answer({"jsonrpc": "2.0", "id": None, "error": said})


def credentials(**changes: Any) -> ClientCredentials:
    return ClientCredentials(**{"client": ClientSecret("me", "s3cret"), "issuer": ISSUER, **changes})


def claims_of(token: str) -> dict[str, Any]:
    """The claims of a JWS, unverified."""
    claims: dict[str, Any] = json.loads(urlsafe_b64decode(token.split(".")[1] + "==="))
    return claims


class Key:
    """A key of DPoP whose signatures are the text `signed`."""

    algorithm, thumbprint = "ES256", "thumb"
    public_jwk = {"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43}

    def sign(self, _message: bytes) -> bytes:
        return b"signed"


@frozen
class Post:
    """A message, or a batch, that an agent was sent."""

    at: float
    url: str
    headers: Mapping[str, str]
    document: Any

    @property
    def calls(self) -> list[dict[str, Any]]:
        return [each["params"] for each in (self.document if isinstance(self.document, list) else [self.document])]

    @property
    def envelope(self) -> dict[str, Any]:
        (call,) = self.calls
        envelope: dict[str, Any] = call["envelope"]
        return envelope


class Peers(Driver):
    """A provider at id.example, and at all other hosts an agent.

    auth: the client's credentials, by the agents' origins. Where there are some, agents want the tokens.
    """

    def __init__(
        self,
        *,
        auth: Mapping[str, ClientCredentials] | None = None,
        retry: RetryPolicy | None = None,
        breaker: BreakerPolicy | None = None,
        token: str | None = None,
        static: Mapping[str, str] | None = None,
        **policy: Any,
    ) -> None:
        super().__init__(self._script)
        self.requests = Requests(self.runtime, policy=OutboundPolicy(**policy), token=token, auth=static)
        self.source = TokenSource(self.runtime, self.requests)
        by_origin = {known_origin(origin): each for origin, each in (auth or {}).items()}
        self.authorizer = Authorizer(self.runtime, self.source, by_origin)
        self.sender = Sender(self.runtime, self.requests, retry or RetryPolicy(retries=0), breaker, self.authorizer)
        self.guarded = bool(auth)
        self.to = self.destination(AGENT)
        # What each was asked.
        self.asked: list[str] = []
        self.forms: list[dict[str, str]] = []
        self.posts: list[Post] = []
        # What each does with its next requests.
        self.provider_does: list[Does | None] = []
        self.agent_does: list[Does | None] = []
        # How long the provider takes, what it tells, and how long its tokens are good.
        self.seconds = 0.0
        self.metadata: object = METADATA
        self.life: object = 3600
        self.token_type = "Bearer"
        self.good: set[str] = set()
        # How many pieces of work are done, by idempotency key.
        self.work: dict[str, int] = {}

    # --- what the client does ----------------------------------------------------------------------------------------

    def destination(self, base: str, auth: AuthScheme | None = None) -> Destination:
        return Destination(self.requests.judge(f"{base}/asap"), THEM, auth)

    def envelope(self, number: int = 1) -> Envelope:
        return Envelope(
            id=f"message-{number}", asap_version="0.1", timestamp=utc(self.runtime.wall()), sender=ME, recipient=THEM,
            payload_type="task.request", payload={"skill_id": "echo", "input": {}, "conversation_id": "c"},
            extensions={"nonce": f"nonce-{number}"},
        )  # fmt: skip

    def deliver(
        self, key: str | None = None, *, to: Destination | None = None, nonce: str | None = None
    ) -> Program[Envelope]:
        """A program that sends a message, under this key of the caller's."""
        made = key or self.runtime.new_id()
        return self.sender.deliver(to or self.to, self.envelope(), made, keyed=key is not None, nonce=nonce)

    def send(self, key: str | None = None, **options: Any) -> Envelope:
        return self.run(self.deliver(key, **options))

    def send_batch(self, size: int = 2) -> list[Envelope | RemoteError]:
        return self.run(self.sender.batch(self.to, [self.envelope(number) for number in range(size)]))

    def token(self, scopes: Sequence[str] = (), **changes: Any) -> str:
        """Get a token."""
        return self.run(self.source.get(self.prepared(**changes), tuple(scopes))).token.value

    def prepared(self, **changes: Any) -> ClientCredentials:
        made = credentials(**changes)
        self.source.add(made)
        return made

    @property
    def fetches(self) -> int:
        """How often a token was asked for."""
        return self.asked.count("/token")

    @property
    def shown(self) -> list[str | None]:
        """The credential of each message."""
        return [post.headers.get("authorization") for post in self.posts]

    # --- what they do ------------------------------------------------------------------------------------------------

    def _script(self, fetch: Fetch) -> Reply | After:
        if urlsplit(fetch.url).hostname != "id.example":
            return self._agent(fetch)
        does = self._provider(fetch)
        return does if isinstance(does, After) or not self.seconds else After(self.seconds, does)

    def _provider(self, fetch: Fetch) -> Reply | After:
        self.asked.append(urlsplit(fetch.url).path)
        if fetch.method == "GET":
            known = self.metadata if "openid" in fetch.url or isinstance(self.metadata, Answer) else None
            return known if isinstance(known, Answer) else answer(known, 404 if known is None else 200)
        self.forms.append({**dict(parse_qsl((fetch.body or b"").decode())), **dict(fetch.headers)})
        does = self.provider_does.pop(0) if self.provider_does else None
        if does is not None:
            return does(fetch) if callable(does) else does
        token = f"t{len(self.forms)}"
        self.good.add(token)
        return answer({"access_token": token, "token_type": self.token_type, "expires_in": self.life})

    def _agent(self, fetch: Fetch) -> Reply | After:
        headers = dict(fetch.headers)
        body = fetch.body or b""
        body = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
        self.posts.append(Post(self.clock.monotonic(), fetch.url, headers, json.loads(body)))
        does = self.agent_does.pop(0) if self.agent_does else None
        if does is not None:
            return does(fetch) if callable(does) else does
        if self.guarded and headers.get("authorization", "").rpartition(" ")[2] not in self.good:
            return answer({"detail": "Invalid authentication token"}, 401)
        return self.carried_out(fetch)

    def carried_out(self, _fetch: Fetch) -> Answer:
        """Do what is asked, once for each key, and reply."""
        document = self.posts[-1].document
        replies = [self._reply(each) for each in (document if isinstance(document, list) else [document])]
        return answer(replies if isinstance(document, list) else replies[0])

    def _reply(self, call: dict[str, Any]) -> dict[str, Any]:
        runs = self.work.setdefault(call["params"]["idempotency_key"], len(self.work) + 1)
        asked = call["params"]["envelope"]
        payload = {"task_id": "t", "status": "completed", "result": {"runs": runs}}
        reply = {
            **asked, "id": f"reply-{runs}", "sender": asked["recipient"], "recipient": asked["sender"],
            "correlation_id": asked["id"], "payload_type": "task.response", "payload": payload,
        }  # fmt: skip
        return {"jsonrpc": "2.0", "id": call["id"], "result": {"envelope": reply}}


def lost_after(peers: Peers) -> Callable[[Fetch], Reply]:
    """The work is done, and the reply is lost."""

    def does(fetch: Fetch) -> Reply:
        return evolve(peers.carried_out(fetch), failure=LOST)

    return does
