"""Drives this library's agent through one request, without I/O. Its skill `echo` returns its input, `fail` fails."""

from asap_core.auth.principal import TokenTable
from asap_core.http.messages import Request, Response
from asap_core.refusals import HANDLER_FAILED, Refusal
from asap_core.server.agent import Agent
from asap_core.server.call import Answered, CallState, Dispatch, Hold
from asap_core.server.exchange import Authenticate, Fork, ReadBody, Respond
from asap_core.wire.handler_reply import Replied


def answer(agent: Agent, tokens: TokenTable, request: Request, body: bytes) -> Response:
    """Return the agent's response to a request.

    agent: bound; it remembers by itself.
    tokens: who its callers are.
    """
    state = agent.open(request)
    while not isinstance(state, Respond):
        match state:
            case Authenticate(credential):
                principal = tokens.verify(credential)
                state = state.refused() if principal is None else state.verified(principal)
            case ReadBody():
                fed = state.feed(body)
                state = fed.end() if isinstance(fed, ReadBody) else fed
            case Fork(calls):
                state = state.answered([_answered(call) for call in calls])
            case _:
                raise AssertionError(f"not expected here: {type(state).__name__}")
    response = state.response
    state.sent()
    return response


def _answered(call: CallState) -> Answered:
    if isinstance(call, Hold):
        call = call.expired()
    if isinstance(call, Dispatch) and call.skill == "fail":
        call = call.failed(Refusal(kind=HANDLER_FAILED))
    elif isinstance(call, Dispatch):
        result = {"echoed": call.envelope.payload.get("input")}
        call = call.replied(
            Replied("task.response", {"task_id": f"task-{call.envelope.id}", "status": "completed", "result": result})
        )
    if not isinstance(call, Answered):
        raise TypeError(f"not expected here: {type(call).__name__}")
    return call
