"""Code of users, for the type checker only; it isn't run. A state or an error that's forgotten fails the check."""

from typing import assert_never

from asap_adapters import AgentClient, Context, TaskFailed, run, serve
from asap_core import (
    Admit,
    Admitted,
    Agent,
    Anonymous,
    Answered,
    AsapError,
    Authenticate,
    Authenticated,
    CallState,
    Capabilities,
    ClaimProof,
    Dispatch,
    Done,
    Endpoints,
    Envelope,
    Exchange,
    Fork,
    Health,
    Hold,
    Manifest,
    ReadBody,
    Record,
    RemoteError,
    Replied,
    Request,
    Respond,
    Response,
    Skill,
    StoreUnavailable,
    TakeLimit,
    TaskRequest,
    TaskStatus,
)

manifest = Manifest(
    id="urn:asap:agent:me",
    name="Me",
    version="1.0.0",
    description="",
    capabilities=Capabilities(skills=[Skill(id="echo", description="")]),
    endpoints=Endpoints(asap="https://me.example/asap"),
)
agent = Agent(manifest)


async def echo(request: TaskRequest, context: Context) -> object:
    match context.principal:
        case Authenticated(urn):
            return {"echoed": request.input, "for": urn}
        case Anonymous(peer):
            raise TaskFailed("who are you?", peer=peer)
        case _:
            assert_never(context.principal)


def plain(request: TaskRequest, context: Context) -> dict[str, object]:
    return {"status": TaskStatus.COMPLETED.value, "left": context.deadline, "skill": request.skill_id}


async def ask() -> Envelope | RemoteError:
    async with AgentClient(sender="urn:asap:agent:me", auth={"https://you.example": "token"}) as client:
        found: Manifest = await client.discover("https://you.example", expect="urn:asap:agent:you")
        health: Health = await client.health_check("https://you.example")
        try:
            return await client.send(
                found, "task.request", {"skill_id": "echo", "input": {"up": health.uptime_seconds}}
            )
        except RemoteError as error:
            return error
        except AsapError:
            outcomes: list[Envelope | RemoteError] = await client.send_batch(found, [("task.cancel", {"task_id": "t"})])
            return outcomes[0]


def main() -> None:
    run(serve, agent, {"echo": echo, "plain": plain}, backend="asyncio")


def drive(request: Request, body: bytes) -> Response | None:
    state: Exchange = agent.open(request)
    while True:
        match state:
            case TakeLimit(scope, _, cost, partial):
                state = state.taken(cost) if partial or scope == "peer" else state.unavailable()
            case Authenticate(credential):
                state = state.verified(Authenticated("urn:asap:agent:you")) if credential.token else state.refused()
            case ClaimProof(question):
                state = state.answered(Admitted(None) if question.nonce else StoreUnavailable(1.0))
            case ReadBody():
                fed = state.feed(body)
                state = fed.end() if isinstance(fed, ReadBody) else fed
            case Fork(calls, _):
                state = state.answered([answer(call) for call in calls])
            case Respond(response):
                state.sent()
                return response
            case Done():
                return None
            case _:
                assert_never(state)


def answer(state: CallState) -> Answered:
    while True:
        match state:
            case Admit(question):
                state = state.answered(Admitted(None) if question.nonce else StoreUnavailable(1.0))
            case Hold(ticket):
                state = state.expired() if ticket is None else state.again()
            case Dispatch():
                state = state.replied(Replied("task.response", {"task_id": "t", "status": "completed"}))
            case Record():
                state = state.recorded()
            case Answered():
                return state
            case _:
                assert_never(state)
