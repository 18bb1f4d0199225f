"""Code of users that call agents and read documents, for the type checker only; it isn't run."""

from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

from asap_adapters import (
    AgentChanged,
    AgentClient,
    AsapError,
    BadReply,
    BreakerPolicy,
    DiscoveredAgent,
    DiscoveryOptions,
    DocumentCachePolicy,
    HttpOptions,
    InvalidDocument,
    NotAllowed,
    NoToken,
    NotResolved,
    RemoteError,
    RetryPolicy,
    TimedOut,
    TrustPolicy,
    Unreachable,
    Unsuitable,
    Unverified,
    WrongAgent,
)
from asap_adapters.auth import ClientCredentials, ClientKey, ClientSecret, DpopKey, PrivateKey, read_client_key
from asap_core import (
    Advice,
    Allow,
    Endpoints,
    Envelope,
    Health,
    InvalidTransition,
    Load,
    Manifest,
    McpToolCall,
    McpToolResult,
    MessageAck,
    MessageSend,
    OutboundPolicy,
    Payload,
    Problem,
    PublicKey,
    Registry,
    RegistryEntry,
    Task,
    TaskCancel,
    TaskRequest,
    TaskResponse,
    TaskStatus,
    TaskUpdate,
    WallTime,
    decode_envelope,
    encode_envelope,
    read_health,
    read_manifest,
    read_registry,
    to_json,
)

secret = ClientCredentials(
    client=ClientSecret("me", "secret"), issuer="https://id.example", scopes={"asap.call"}, dpop=DpopKey.generate()
)
key: ClientKey = read_client_key("key.pem", "me", kid="1")
credentials = ClientCredentials(client=key, token_endpoint="https://id.example/token", dpop=DpopKey.load("dpop.jwk"))
network = OutboundPolicy(allow_http=["agent.lan"], allow_networks=["10.0.0.0/8"], allow_ports={88}, redirects=1)


async def look() -> DiscoveredAgent | str | None:
    client = AgentClient(
        "urn:asap:agent:me",
        outbound=OutboundPolicy(allow_http=["agent.lan"]),
        http=HttpOptions(timeout=10.0, verify=False),
        retry=RetryPolicy(retries=1),
        breaker=BreakerPolicy(),
        auth={"https://you.example": secret, "https://them.example": "token"},
        trust=TrustPolicy(trusted_keys={"urn:asap:agent:you": str(PublicKey(bytes(32)))}),
        discovery=DiscoveryOptions(
            registries=[Path("registry.json"), "https://registry.example/registry.json"],
            cache=DocumentCachePolicy(max_entries=10),
        ),
    )
    try:
        return await client.look_up("https://you.example")
    except AsapError as error:
        return explain(error)
    finally:
        await client.aclose()


def age(found: DiscoveredAgent) -> float:
    return found.age if found.manifest.skill_ids else float("inf")


def explain(error: AsapError) -> str | None:
    match error:
        case NotAllowed() | BadReply():
            shown = None if error.remedy is None else advise(error.remedy)
        case TimedOut() | Unreachable():
            shown = f"{error.url}: {error.reason}, retry in {error.next_try} s, sent: {error.sent}"
        case NoToken():
            shown = f"{error.url}: {error.reason}" if error.refused else None
        case AgentChanged():
            shown = f"{error.url} was {error.expected}"
        case WrongAgent():
            shown = f"{error.url} is {error.found}"
        case Unsuitable() | Unverified():
            shown = error.agent_id
        case InvalidDocument():
            shown = ", ".join(describe(problem) for problem in error.problems)
        case RemoteError():
            shown = str(error.code)
        case _:
            shown = str(error)
    return shown


def advise(remedy: Allow | Advice) -> str:
    match remedy:
        case Allow(option, value):
            return f"{option}={value!r}"
        case Advice(text):
            return text


def describe(problem: Problem) -> str:
    return f"{problem.path}: expected {problem.expected}"


async def resolve(client: AgentClient) -> Manifest | None:
    try:
        return await client.resolve("urn:asap:agent:you", wait=1.0)
    except NotResolved as error:
        return None if error.asked else read_manifest(b"{}")


def report(data: bytes) -> float:
    health: Health = read_health(data)
    load: Load | None = health.load
    return 0.0 if load is None else load.active_tasks / (load.queue_depth or 1)


def entries(data: bytes) -> Iterator[RegistryEntry]:
    registry: Registry = read_registry(data)
    yield from registry.agents


def again(document: object) -> dict[str, object]:
    envelope: Envelope = decode_envelope(document)
    return encode_envelope(envelope)


def city(envelope: Envelope) -> str:
    name: str = envelope.payload["city"]["name"]
    return name


def ask_about(place: dict[str, object], sizes: dict[str, int]) -> list[Payload]:
    asked = TaskRequest(conversation_id="c", skill_id="weather", input=place, config={"retries": [1, 2]})
    return [asked, TaskResponse(task_id="t", status=TaskStatus.COMPLETED, result={"place": place}, metrics=sizes)]


def about(payload: Payload) -> str | None:
    match payload:
        case TaskRequest() | TaskResponse() | TaskUpdate() | TaskCancel():
            return payload.task_id if not isinstance(payload, TaskRequest) else payload.skill_id
        case MessageSend():
            return payload.message_id
        case MessageAck():
            return payload.original_envelope_id
        case McpToolCall():
            return payload.tool_name
        case McpToolResult():
            return payload.error
        case _:
            return str(to_json(payload))


def finish(task: Task, wall: WallTime) -> Task | tuple[str, ...]:
    try:
        return task.move(TaskStatus.COMPLETED, wall=wall)
    except InvalidTransition as error:
        return error.allowed


def sign(message: bytes) -> bytes:
    private = PrivateKey.new()
    assert_type(private.public_key, PublicKey)
    return private.sign(message)


endpoints = Endpoints(asap="https://me.example/asap")
