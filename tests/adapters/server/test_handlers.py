"""Handlers: their return values, exceptions and deadlines, and what the caller gets."""

import dataclasses
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import anyio
import attrs
import pytest

from asap_adapters import Handlers, TaskFailed
from asap_adapters.server.handlers import Context, completed
from asap_adapters.server.startup import bind_agent
from asap_adapters.testing import InProcessTransport, in_process
from asap_core import (
    Anonymous,
    Authenticated,
    MessageAck,
    RemoteError,
    Replied,
    TaskResponse,
    TaskStatus,
    TokenTable,
)
from asap_core.client.delivery import RetryPolicy
from asap_core.wire.handler_reply import reply_of
from asap_core.wire.payloads import AckStatus

pytestmark = pytest.mark.anyio

BASE = "http://localhost"


@pytest.fixture
def ask(agent):
    """Serve this function as the skill `echo`, and return what a call to it brings."""

    async def run(handler, *, key=None, times=1, **policy):
        reply: Any = None
        async with in_process(agent(**policy), {"echo": handler}) as client:
            for _ in range(times):
                reply = await client.send(
                    BASE, "task.request", {"skill_id": "echo", "input": {}, "conversation_id": "c"}, idempotency_key=key
                )
        return reply.payload

    return run


@pytest.mark.parametrize(
    ("value", "result"),
    [
        ({"a": 1}, {"a": 1}),
        (None, None),
        ("text", {"value": "text"}),
        ([1], {"value": [1]}),
        ((1, 2), {"value": [1, 2]}),
    ],
)
async def test_the_return_value_of_a_handler_completes_the_task(ask, value, result) -> None:
    async def handler(_request, _context):
        return value

    payload = await ask(handler)
    assert (payload["status"], payload["result"]) == ("completed", result)


async def test_a_task_response_passes_through(ask) -> None:
    async def handler(_request, context):
        return TaskResponse(task_id=context.task_id, status=TaskStatus.WORKING)

    assert (await ask(handler))["status"] == "working"


async def test_task_failed_fails_the_task_with_its_reason(ask) -> None:
    async def handler(_request, _context) -> None:
        raise TaskFailed("no such file", hint="look elsewhere")

    payload = await ask(handler)
    assert (payload["status"], payload["result"]) == ("failed", {"error": "no such file", "hint": "look elsewhere"})


@pytest.mark.parametrize("broken", [ValueError("secret"), KeyError("secret"), RuntimeError("secret")])
async def test_any_other_exception_is_an_internal_error_without_details(ask, broken, caplog) -> None:
    async def handler(_request, _context) -> None:
        raise broken

    with pytest.raises(RemoteError) as caught:
        await ask(handler)
    assert caught.value.code == -32603
    assert "secret" not in str(caught.value)
    assert "secret" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object(), {"a": float("inf")}, b"bytes"])
async def test_a_value_that_json_cannot_express_is_an_internal_error_and_logged(ask, value, caplog) -> None:
    async def handler(_request, _context):
        return {"value": value}

    with pytest.raises(RemoteError) as caught:
        await ask(handler)
    assert caught.value.code == -32603
    assert "can't be sent: " in caplog.text


@dataclasses.dataclass
class Point:
    x: Any
    tags: Any = ()


@attrs.frozen
class Box:
    corner: Point


NOTHING: Any = None
POINT: Any = Point({1})


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (Point(1, ["a"]), {"x": 1, "tags": ["a"]}),
        (Box(Point(1)), {"corner": {"x": 1, "tags": []}}),
        ({"a": Box(Point(1)), "b": TaskStatus.WORKING}, {"a": {"corner": {"x": 1, "tags": []}}, "b": "working"}),
        ([Point(1), Point(2)], {"value": [{"x": 1, "tags": []}, {"x": 2, "tags": []}]}),
        (TaskStatus.WORKING, {"value": "working"}),
    ],
)  # fmt: skip
async def test_dataclasses_and_attrs_classes_are_sent_as_their_fields(ask, value, result) -> None:
    async def handler(_request, _context):
        return value

    for key in (None, "k"):
        assert (await ask(handler, key=key))["result"] == result


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({1, 2}, "echo: $.result.value: expected values that JSON has"),
        ({"a": [b"bytes"]}, "echo: $.result.a[0]: expected values that JSON has (objects, arrays, strings, numbers, "),
        ({"a": {"b": datetime(2025, 1, 1, tzinfo=UTC)}}, "not datetime"),
        ({"a": Decimal(1)}, "not Decimal"),
        ({"a": float("nan")}, "echo: $.result.a: expected finite numbers; NaN and Infinity aren't JSON"),
        ({1: "a", "1": "b"}, "echo: $.result['1']: expected keys that are unique within their object"),
        (Point(object()), "echo: $.result.x: expected values that JSON has"),
        ((one for one in [1]), "echo: $.result.value: expected values that JSON has"),
        (Replied("task.response", NOTHING), "echo: $: expected an object as the payload, not NoneType"),
        (Replied("task.response", POINT), "echo: $.x: expected values that JSON has"),
    ],
)  # fmt: skip
async def test_the_log_names_skill_type_and_path_of_an_unwritable_value(ask, value, place, caplog) -> None:
    runs = []

    async def handler(_request, _context):
        runs.append(1)
        return value

    with pytest.raises(RemoteError) as caught:
        await ask(handler, key="k")
    assert caught.value.code == -32603
    assert place in caplog.text
    assert "a handler's answer can't be sent: echo: $" in caplog.text
    assert "expected" not in str(caught.value)


async def test_a_returned_coroutine_is_logged_with_the_advice_to_await_it(ask, caplog) -> None:
    async def inner() -> None: ...

    async def handler(_request, _context):
        return inner()

    with pytest.raises(RemoteError) as caught:
        await ask(handler)
    assert caught.value.code == -32603
    assert "the handler for echo returned a coroutine: expected `async def`" in caplog.text


async def test_a_kept_answer_does_not_change_with_the_values_of_the_handler(agent) -> None:
    kept: Any = {"a": [1]}
    runs = []

    async def handler(request, _context):
        runs.append(1)
        request.input.clear()
        return kept

    payload = {"skill_id": "echo", "input": {"b": 1}, "conversation_id": "c"}
    async with in_process(agent(), {"echo": handler}) as client:
        results = []
        for _ in range(3):
            reply = await client.send(BASE, "task.request", payload, idempotency_key="k")
            results.append(reply.payload["result"])
            reply.payload["result"]["a"].append("of the client's")
            kept["a"].append({2})
    assert (results[0]["a"][:1], [len(each["a"]) for each in results], runs) == ([1], [2, 2, 2], [1])


async def test_a_manifest_changed_later_is_served_unchanged(agent, echo_handlers) -> None:
    made = agent()
    async with in_process(made, echo_handlers) as client:
        before = await client.discover(BASE)
        made.manifest.extra["x_more"] = {1}
        client.forget(BASE)
        assert await client.discover(BASE) == before


async def test_a_handler_is_stopped_at_its_deadline(ask) -> None:
    async def handler(_request, _context) -> None:
        await anyio.sleep(1000)

    before = anyio.current_time()
    with pytest.raises(RemoteError) as caught:
        await ask(handler, handler_deadline=7)
    assert anyio.current_time() - before == pytest.approx(7)
    assert caught.value.taxonomy == "asap:transport/timeout"


async def test_a_timeout_in_the_handler_is_an_internal_error(ask) -> None:
    async def handler(_request, _context) -> None:
        with anyio.fail_after(1):
            await anyio.sleep(2)

    with pytest.raises(RemoteError) as caught:
        await ask(handler)
    assert caught.value.code == -32603


async def test_a_handler_runs_once_for_a_repeated_key(ask) -> None:
    runs = []

    async def handler(_request, _context):
        runs.append(1)
        return {"run": len(runs)}

    assert (await ask(handler, key="k", times=3))["result"] == {"run": 1}
    assert len(runs) == 1


async def test_a_failure_is_kept_under_its_key_too(agent) -> None:
    runs = []

    async def handler(_request, _context) -> None:
        runs.append(1)
        raise TaskFailed("no")

    async with in_process(agent(), {"echo": handler}) as client:
        for _ in range(2):
            payload = {"skill_id": "echo", "input": {}, "conversation_id": "c"}
            assert (await client.send(BASE, "task.request", payload, idempotency_key="k")).payload["status"] == "failed"
    assert len(runs) == 1


class TestRepeatedWhileRunning:
    PAYLOAD = {"skill_id": "echo", "input": {}, "conversation_id": "c"}

    async def twice(self, client, after):
        """Ask, and ask the same `after` seconds later; returns the second answer and how long it took."""
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: client.send(BASE, "task.request", self.PAYLOAD, idempotency_key="k"))
            await anyio.sleep(after)
            began = anyio.current_time()
            try:
                outcome = (await client.send(BASE, "task.request", self.PAYLOAD, idempotency_key="k")).payload
            except RemoteError as error:
                outcome = error
            return outcome, anyio.current_time() - began

    async def test_a_repeated_request_waits_for_the_answer(self, agent) -> None:
        runs = []

        async def handler(_request, _context):
            runs.append(1)
            await anyio.sleep(4)
            return {"runs": len(runs)}

        async with in_process(agent(), {"echo": handler}) as client:
            payload, waited = await self.twice(client, after=1)
        assert (payload["result"], waited) == ({"runs": 1}, pytest.approx(3))

    async def test_a_repeated_request_is_told_to_retry_if_the_work_takes_long(self, agent) -> None:
        async def handler(_request, _context) -> None:
            await anyio.sleep(10)

        async with in_process(agent(), {"echo": handler}, retry=RetryPolicy(retries=0)) as client:
            refused, waited = await self.twice(client, after=1)
        assert (refused.code, refused.recoverable) == (-32062, True)
        assert refused.retry_after is not None
        assert waited == pytest.approx(5)

    async def test_a_repeated_request_gets_a_failure_at_once(self, agent) -> None:
        async def handler(_request, _context) -> None:
            await anyio.sleep(2)
            raise RuntimeError

        async with in_process(agent(hold=100.0), {"echo": handler}) as client:
            first = client.send(BASE, "task.request", self.PAYLOAD, idempotency_key="other")
            with pytest.raises(RemoteError):
                await first
            async with anyio.create_task_group() as group:
                group.start_soon(self.refused, client)
                await anyio.sleep(1)
                began = anyio.current_time()
                await self.refused(client)
                assert anyio.current_time() - began == pytest.approx(1)

    async def refused(self, client) -> None:
        with pytest.raises(RemoteError) as caught:
            await client.send(BASE, "task.request", self.PAYLOAD, idempotency_key="k")
        assert caught.value.code == -32603

    async def test_many_concurrent_requests_run_once(self, agent) -> None:
        runs, results = [], []

        async def handler(_request, _context):
            runs.append(1)
            await anyio.sleep(1)
            return {"runs": len(runs)}

        async with in_process(agent(), {"echo": handler}) as client:
            await client.discover(BASE)

            async def one() -> None:
                reply = await client.send(BASE, "task.request", self.PAYLOAD, idempotency_key="k")
                results.append(reply.payload["result"])

            began = anyio.current_time()
            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(one)
            assert anyio.current_time() - began == pytest.approx(1)
        assert results == [{"runs": 1}] * 50

    @pytest.mark.parametrize("gone_after", [0.5, 1.5])
    async def test_a_repeated_request_whose_caller_leaves_leaves_nothing_behind(self, agent, gone_after) -> None:
        async def handler(_request, _context):
            await anyio.sleep(3)
            return {}

        served: Any = bind_agent(agent())
        async with in_process(served, {"echo": handler}) as client, anyio.create_task_group() as group:
            group.start_soon(lambda: client.send(BASE, "task.request", self.PAYLOAD, idempotency_key="k"))
            await anyio.sleep(1)
            with anyio.move_on_after(gone_after):
                await client.send(BASE, "task.request", self.PAYLOAD, idempotency_key="k")
            await anyio.sleep(0.01)  # the agent is told, as over a connection that ends
            assert served.admission._held == {}
        assert served.admission._wakes == {}
        assert served.active == 0


async def test_another_payload_under_the_same_key_is_refused(agent, echo_handlers) -> None:
    async with in_process(agent(), echo_handlers) as client:
        await client.send(BASE, "task.request", {"skill_id": "echo", "input": {"a": 1}}, idempotency_key="k")
        with pytest.raises(RemoteError) as caught:
            await client.send(BASE, "task.request", {"skill_id": "echo", "input": {"a": 2}}, idempotency_key="k")
    assert caught.value.code == -32063


async def test_a_call_with_a_key_continues_when_its_caller_leaves(agent) -> None:
    done = []

    async def handler(_request, _context):
        await anyio.sleep(5)
        done.append(1)
        return {"done": True}

    payload = {"skill_id": "echo", "input": {}, "conversation_id": "c"}
    async with in_process(agent(), {"echo": handler}) as client:
        await client.discover(BASE)
        with anyio.move_on_after(1):
            await client.send(BASE, "task.request", payload, idempotency_key="k")
        assert (await client.send(BASE, "task.request", payload, idempotency_key="k")).payload["result"] == {
            "done": True
        }
    assert done == [1]


async def test_the_context_has_the_principal_and_the_deadline(agent) -> None:
    seen = []

    async def handler(_request, context: Context) -> None:
        seen.append((context.principal, context.envelope.sender, context.deadline))

    async with in_process(agent(), {"echo": handler}) as client:
        await client.send(BASE, "task.request", {"skill_id": "echo", "input": {}})
    tokens = TokenTable({"t": "urn:asap:agent:test-client"})
    async with in_process(agent(auth=True), {"echo": handler}, authenticate=tokens.verify, token="t") as client:
        await client.send(BASE, "task.request", {"skill_id": "echo", "input": {}})
    sender = "urn:asap:agent:test-client"
    assert seen == [(Anonymous("127.0.0.1"), sender, 30.0), (Authenticated(sender), sender, 30.0)]


class TestCredentials:
    @pytest.mark.parametrize("is_async", [True, False])
    async def test_a_token_authenticates_its_own_agent_only(self, agent, echo_handlers, is_async) -> None:
        tokens = TokenTable({"t": "urn:asap:agent:alice"})

        async def verify(credential):
            await anyio.sleep(0.1)
            return tokens.verify(credential)

        authenticate = verify if is_async else tokens.verify
        payload = {"skill_id": "echo", "input": {}}
        async with in_process(agent(auth=True), echo_handlers, authenticate=authenticate, token="t") as client:
            await client.send(BASE, "task.request", payload, sender="urn:asap:agent:alice")
            with pytest.raises(RemoteError) as caught:
                await client.send(BASE, "task.request", payload, sender="urn:asap:agent:mallory")
        assert (caught.value.status, caught.value.taxonomy) == (403, "asap:auth/sender_mismatch")

    @pytest.mark.parametrize("token", [None, "wrong"])
    async def test_a_request_without_a_valid_token_is_refused(self, agent, echo_handlers, token) -> None:
        tokens = TokenTable({"t": "urn:asap:agent:alice"})
        async with in_process(agent(auth=True), echo_handlers, authenticate=tokens.verify, token=token) as client:
            with pytest.raises(RemoteError) as caught:
                await client.send(BASE, "task.request", {"skill_id": "echo", "input": {}})
        assert caught.value.status == 401

    async def test_an_unavailable_authenticator_is_answered_with_retry_after(self, agent, echo_handlers) -> None:
        def verify(_credential) -> None:
            raise ConnectionError("the identity provider is away")

        async with in_process(agent(auth=True), echo_handlers, authenticate=verify, token="t") as client:
            with pytest.raises(RemoteError) as caught:
                await client.send(BASE, "task.request", {"skill_id": "echo", "input": {}})
        assert (caught.value.status, caught.value.recoverable) == (503, True)


class TestOtherPayloads:
    async def test_handlers_run_for_their_payload_type_in_any_spelling(self, manifest, echo_handlers) -> None:
        from asap_core import Agent, Policy, StartPolicy

        async def cancel(request, _context):
            return MessageAck(original_envelope_id=request.task_id, status=AckStatus.PROCESSED)

        async def own(payload, _context):
            return Replied("x.answer", {"got": payload})

        agent = Agent(
            manifest(),
            payload_types=["task.request", "TaskCancel", "x.own"],
            policy=Policy(peer_limits=(), start=StartPolicy.OPEN),
        )
        async with in_process(agent, Handlers(echo_handlers, on={"task_cancel": cancel, "x.own": own})) as client:
            reply = await client.send(BASE, "task.cancel", {"task_id": "t"})
            assert (reply.payload_type, reply.payload["status"]) == ("MessageAck", "processed")
            reply = await client.send(BASE, "x.own", {"any": "thing"})
            assert (reply.payload_type, reply.payload) == ("x.answer", {"got": {"any": "thing"}})

    async def test_a_result_that_is_no_payload_is_an_internal_error(self, manifest, echo_handlers) -> None:
        from asap_core import Agent, Policy, StartPolicy

        async def cancel(_request, _context):
            return {"not": "a payload"}

        policy = Policy(peer_limits=(), start=StartPolicy.OPEN)
        agent = Agent(manifest(), payload_types=["task.request", "task.cancel"], policy=policy)
        async with in_process(agent, Handlers(echo_handlers, on={"task.cancel": cancel})) as client:
            with pytest.raises(RemoteError) as caught:
                await client.send(BASE, "task.cancel", {"task_id": "t"})
        assert caught.value.code == -32603


class TestAgreement:
    def make(self, agent, handlers, **kwargs):
        from asap_adapters.testing import InProcessTransport

        return InProcessTransport(agent, handlers, **kwargs)

    async def test_every_skill_has_a_handler(self, agent, echo_handlers) -> None:
        with pytest.raises(ValueError, match="none for other"):
            self.make(agent("echo", "other"), echo_handlers)

    async def test_every_handler_has_a_skill(self, agent, echo_handlers) -> None:
        with pytest.raises(ValueError, match="lacks more"):
            self.make(agent(), {**echo_handlers, "more": echo_handlers["echo"]})

    async def test_a_manifest_with_auth_needs_an_authenticator(self, agent, echo_handlers) -> None:
        with pytest.raises(ValueError, match="authenticate="):
            self.make(agent(auth=True), echo_handlers)


async def test_an_authenticator_needs_a_manifest_with_auth(agent, echo_handlers) -> None:
    # Taken as it is, it would let everybody in, past whoever was given to keep them out.
    with pytest.raises(ValueError, match="the manifest asks nobody for it"):
        InProcessTransport(agent(), echo_handlers, authenticate=lambda _credential: None)


@pytest.mark.parametrize("result", [None, {}, {"n": 1}])
def test_a_result_is_written_as_the_task_response_that_it_means(result) -> None:
    meant = reply_of(TaskResponse(task_id="task_1", status=TaskStatus.COMPLETED, result=result))
    written = completed("task_1", result)
    assert (written, list(written.payload)) == (meant, list(meant.payload))
