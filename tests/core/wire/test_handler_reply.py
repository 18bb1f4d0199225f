"""Answers of handlers: sent, and kept as sent; or an internal error whose fault names the path."""

import dataclasses
import enum
import itertools
import json
from collections import OrderedDict, defaultdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar, NamedTuple

import attrs
import pytest
from hypothesis import given, strategies as st

from asap_core import (
    Agent,
    Answered,
    Dispatch,
    Envelope,
    Refusal,
    Replied,
    Request,
    Skill,
    TaskResponse,
    TaskStatus,
    WallTime,
    encode_envelope,
)
from asap_core.admission.idempotency import SavedKey
from asap_core.admission.state_file import StateOwner, identity_record, read_state, snapshot_record, write_state
from asap_core.refusals import HANDLER_FAILED, HANDLER_TIMEOUT
from asap_core.server.call import broken_call
from asap_core.wire.codec import to_json
from asap_core.wire.handler_reply import reply_text
from asap_core.wire.json import MAX_DEPTH, read_json, write_json
from asap_core.wire.json_values import NotWritable
from tests.builders import AGENT, agent, bound

NUMBERS = itertools.count()


def serve(**options) -> Agent:
    return bound(agent(), **options)


def ask(agent: Agent, key="k"):
    """One request under a key, up to where its handler would run, or its answer."""
    envelope = Envelope.new(
        sender="urn:asap:agent:alice", recipient=AGENT, payload_type="task.request", wall=agent.wall(),
        payload={"conversation_id": "c", "skill_id": "echo", "input": {}}, ids=lambda: f"e-{next(NUMBERS)}",
    )  # fmt: skip
    params = {"envelope": encode_envelope(envelope), "idempotency_key": key}
    state: Any = agent.open(Request(method="POST", target="/asap", peer="192.0.2.1"))
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "asap.send", "params": params}).encode()
    return state.feed(body).end()


def answer(value, *, agent=None, key="k") -> Answered:
    """The answer to a caller if the handler returned this as a payload of an own type."""
    (dispatch,) = ask(agent or serve(), key).calls
    assert isinstance(dispatch, Dispatch)
    answered = dispatch.replied(Replied("x.answer", value))
    assert isinstance(answered, Answered)
    return answered


def payload(answered: Answered):
    return json.loads(answered.body)["result"]["envelope"]["payload"]


class Liar(dict[str, Any]):
    """Says that it equals anything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None


class Raises:
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __eq__(self, other: object) -> bool:
        raise self._error

    __hash__ = None  # type: ignore[assignment]


def written(error: BaseException):
    """A value that msgspec writes, so that it's compared with what was written."""

    @dataclasses.dataclass(eq=False)
    class Written(Raises):
        number: int = 1

    made = Written()
    Written._error = error
    return made


def unreadable(error: BaseException):
    """A value that raises while it's written, with msgspec and without: when it's compared, and when it's read."""

    def read(self, name: str) -> object:
        if name == "number":
            raise error
        return object.__getattribute__(self, name)

    made = written(error)
    type(made).__getattribute__ = read  # type: ignore[assignment]
    return made


class Nameless(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


class Pretends:
    @property
    def __class__(self):
        return dict

    @__class__.setter
    def __class__(self, value) -> None: ...


class Colour(enum.Enum):
    RED = "red"


class Endless(enum.Enum):
    ONE = 1
    TWO = 2

    @property
    def value(self):
        return Endless.TWO if self is Endless.ONE else Endless.ONE


@dataclasses.dataclass
class Point:
    x: int
    tags: Any = None
    KIND: ClassVar[str] = "point"


@attrs.define
class Box:
    corner: Point
    colour: Colour = Colour.RED


class Broken:
    __attrs_attrs__ = Box.__attrs_attrs__


def deep(levels: int, inner=0):
    value = inner
    for _ in range(levels):
        value = {"a": value}
    return value


def cycle():
    value: Any = {}
    value["a"] = [value, value]
    return value


class Whole(int):
    def __repr__(self) -> str:
        return "nonsense"

    __str__ = __repr__


class Half(float):
    def __repr__(self) -> str:
        return "nonsense"


class Pair(NamedTuple):
    a: int
    b: int


class TestSent:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ({"a": (1, (2.5, None, True))}, {"a": [1, [2.5, None, True]]}),
            ({1: "a", None: "b", False: "c", 1.5: "d"}, {"1": "a", "null": "b", "false": "c", "1.5": "d"}),
            ({"a": OrderedDict(b=1), "c": defaultdict(list, d=[2])}, {"a": {"b": 1}, "c": {"d": [2]}}),
            ({"a": Pair(1, 2)}, {"a": [1, 2]}),
            ({"a": Nameless("text"), "b": Whole(7), "c": Half(0.5)}, {"a": "text", "b": 7, "c": 0.5}),
            ({"a": Liar(b=1)}, {"a": {"b": 1}}),
            (Liar(b=1), {"b": 1}),
            ({"a": Point(1, [Point(2)])}, {"a": {"x": 1, "tags": [{"x": 2, "tags": None}]}}),
            (Point(1), {"x": 1, "tags": None}),
            ({"a": Box(Point(1))}, {"a": {"corner": {"x": 1, "tags": None}, "colour": "red"}}),
            ({"a": Colour.RED, "b": TaskStatus.WORKING}, {"a": "red", "b": "working"}),
            ({"a": Skill(id="s", description="d")}, {"a": to_json(Skill(id="s", description="d"))}),
            ({"a": 10**4_299}, {"a": 10**4_299}),
            (deep(MAX_DEPTH - 4), deep(MAX_DEPTH - 4)),
        ],
        ids=lambda value: type(value).__name__,
    )  # fmt: skip
    def test_values_that_json_can_express_are_sent(self, value, expected) -> None:
        answered = answer(value)
        assert (answered.fault, payload(answered)) == (None, expected)

    def test_a_batch_of_the_deepest_answers_can_be_read(self) -> None:
        assert read_json(b"[" + answer(deep(MAX_DEPTH - 4)).body + b"]")


JSON_HAS = "values that JSON has (objects, arrays, strings, numbers, true, false, null)"


class TestNotSent:
    UNWRITABLE: ClassVar[Any] = {
        "a key twice": ({1: "a", "1": "b"}, "$['1']: expected keys that are unique"),
        "true and its text": ({"a": {True: 1, "true": 2}}, "$.a.true: expected keys that are unique"),
        "null and its text": ({"a": [{None: 1, "null": 2}]}, "$.a[0].null: expected keys that are unique"),
        "a number and its text": ({"a": {1.5: 1, "1.5": 2}}, "$.a['1.5']: expected keys that are unique"),
        "texts that differ to Python": ({Nameless("a"): 1, Nameless("a"): 2}, "$.a: expected keys that are unique"),
        "a key that isn't text": ({"a": {(1, 2): 1}}, "$.a: expected keys that are strings, not tuple"),
        "a key that isn't a number": ({"a": {float("nan"): 1}}, "$.a: expected finite numbers"),
        "a key with a lone surrogate": ({"a": {"\ud800": 1}}, "$.a: expected strings without lone surrogates"),
        "NaN": ({"a": {"b": [1, float("nan")]}}, "$.a.b[1]: expected finite numbers"),
        "infinity": ({"a": float("-inf")}, "$.a: expected finite numbers"),
        "a lone surrogate": ({"a": "\ud800"}, "$.a: expected strings without lone surrogates"),
        "a long integer": ({"a": -(10**4_300)}, "$.a: expected numbers of at most 4,300 digits"),
        "a set": ({"a": {1}}, f"$.a: expected {JSON_HAS}, not set"),
        "bytes": ({"a": b"b"}, "not bytes"),
        "a date": ({"a": datetime(2025, 1, 1, tzinfo=UTC)}, "not datetime"),
        "a decimal": ({"a": Decimal(1)}, "not Decimal"),
        "a decimal in a dataclass": ({"a": Point(1, [Decimal(1)])}, f"$.a.tags[0]: expected {JSON_HAS}, not Decimal"),
        "a generator": ({"a": (one for one in [1])}, "not generator"),
        "a class": ({"a": Point}, "not type"),
        "an object": ({"a": object()}, "not object"),
        "an object that raises": ({"a": Raises(ZeroDivisionError())}, "$.a: expected values that JSON has"),
        "an object that lies": ({"a": Pretends()}, "not Pretends"),
        "fields that can't be read": ({"a": Broken()}, "a Broken whose fields can be read; AttributeError"),
        "a cycle": (cycle(), "expected fewer arrays and objects"),
        "an endless enum": ({"a": Endless.ONE}, "$.a: expected fewer arrays and objects"),
        "too deep": (deep(MAX_DEPTH - 3), "$.a.a.a.a.a.a.a.a.a.a.a.a…: expected fewer arrays and objects"),
        "much too deep": (deep(100_000), "expected fewer arrays and objects"),
        "too deep and long": (deep(MAX_DEPTH - 3, inner="x" * 10_000), "expected fewer arrays and objects"),
        "too deep and mixed": (deep(MAX_DEPTH - 5, inner=[({},)]), "expected fewer arrays and objects"),
        "no object": ([1], "$: expected an object as the payload, not list"),
        "nothing": (None, "$: expected an object as the payload, not NoneType"),
    }  # fmt: skip

    @pytest.mark.parametrize("name", UNWRITABLE)
    def test_a_value_that_json_cannot_express_is_an_internal_error_with_its_path(self, name) -> None:
        value, fault = self.UNWRITABLE[name]
        answered = answer(value)
        assert answered.refusal is not None
        assert answered.refusal.kind is HANDLER_FAILED
        assert answered.fault is not None
        assert answered.fault.startswith("echo: $")
        assert fault in answered.fault

    @pytest.mark.parametrize("error", [SystemExit(1), GeneratorExit()], ids=repr)
    def test_values_that_raise_exceptions_that_end_programs_are_internal_errors(self, error) -> None:
        answered = answer({"a": unreadable(error)})
        assert answered.fault == f"echo: {type(error).__name__} was raised while its answer was written"

    def test_a_dataclass_whose_comparison_raises_is_written_by_its_fields(self) -> None:
        assert payload(answer({"a": written(ZeroDivisionError())})) == {"a": {"number": 1}}

    def test_keys_in_a_fault_are_escaped_and_cut(self) -> None:
        fault = answer({"a\nb" + "x" * 1_000: {1}}).fault
        assert fault is not None
        assert fault.startswith("echo: $['a\\nbxxx")
        assert len(fault) < 200

    @pytest.mark.parametrize("error", [SystemExit(1), GeneratorExit(), ZeroDivisionError(), MemoryError()], ids=repr)
    def test_values_that_raise_in_comparisons_are_internal_errors(self, error) -> None:
        answered = answer({"a": Raises(error)})
        assert answered.refusal is not None
        assert answered.fault is not None

    @pytest.mark.parametrize("kind", ["", 5, None, "x" * 1_000], ids=repr)
    def test_an_invalid_payload_type_is_an_internal_error(self, kind) -> None:
        (dispatch,) = ask(serve()).calls
        answered: Any = dispatch.replied(Replied(kind, {}))
        assert "expected a payload type such as task.request" in answered.fault

    @pytest.mark.parametrize("value", [None, {"a": 1}, 5, Replied, Refusal], ids=repr)
    def test_a_value_that_is_no_answer_is_an_internal_error(self, value) -> None:
        (dispatch,) = ask(serve()).calls
        answered: Any = dispatch.replied(value)
        assert (answered.refusal.kind, "TypeError" in answered.fault) == (HANDLER_FAILED, True)

    def test_details_that_cannot_be_written_are_an_internal_error(self) -> None:
        (dispatch,) = ask(serve()).calls
        answered: Any = dispatch.failed(Refusal(kind=HANDLER_TIMEOUT, details={"a": {1}}))
        assert (answered.refusal.kind, "NotWritable" in answered.fault) == (HANDLER_FAILED, True)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary()
            | st.decimals() | st.datetimes() | st.builds(Point, st.integers() | st.floats()) | st.just(Colour.RED)
            | st.builds(object) | st.builds(Liar) | st.builds(Nameless, st.text()),
            lambda inner: st.lists(inner) | st.tuples(inner) | st.sets(st.integers())
            | st.dictionaries(st.text() | st.integers() | st.booleans() | st.none() | st.floats() | st.binary(), inner)
            | st.builds(Point, st.just(1), inner) | inner.map(lambda item: deep(50, item)),
        )
    )  # fmt: skip
    def test_any_returned_value_is_readable_or_its_path_is_named(self, value) -> None:
        answered = answer({"value": value})
        if answered.fault is None:
            assert set(payload(answered)) == {"value"}
            assert read_json(b"[" + answered.body + b"]")
        else:
            assert answered.fault.startswith("echo: $.value")
            assert json.loads(answered.body)["error"]["code"] == -32603


class TestKept:
    @pytest.mark.parametrize("change", [{"a": 2}, {"a": {1}}, {"a": object()}])
    def test_a_kept_answer_does_not_change_with_the_value(self, change) -> None:
        agent, value = serve(), {"a": 1}
        first = payload(answer(value, agent=agent))
        value.update(change)
        (again,) = ask(agent).calls
        assert isinstance(again, Answered)
        assert payload(again) == first == {"a": 1}

    def test_a_kept_refusal_keeps_its_details(self) -> None:
        agent, details = serve(), {"a": [1]}
        (dispatch,) = ask(agent).calls
        dispatch.failed(Refusal(kind=HANDLER_TIMEOUT, details=details))
        details["a"].append(2)
        (again,) = ask(agent).calls
        assert isinstance(again, Answered)
        assert json.loads(again.body)["error"]["data"]["details"] == {"a": [1]}

    def test_a_store_is_given_a_copy(self) -> None:
        from asap_core.admission.admission import Admitted, Reservation

        agent, value = serve(shared_admission=True), Point(1, [2])
        (admit,) = ask(agent).calls
        record = admit.answered(Admitted(Reservation(b"r"))).replied(Replied("x", {"a": value}))
        value.tags.append(3)
        assert record.outcome == Replied("x", {"a": {"x": 1, "tags": [2]}})

    def test_a_kept_typed_answer_stays_unchanged(self) -> None:
        agent, result = serve(), {"a": 1}
        (dispatch,) = ask(agent).calls
        dispatch.replied(TaskResponse(task_id="t", status=TaskStatus.COMPLETED, result=result))
        result["a"] = 2
        (again,) = ask(agent).calls
        assert payload(again)["result"] == {"a": 1}

    @pytest.mark.parametrize("value", [{"a": {1}}, {"a": Raises(ZeroDivisionError())}, None])
    def test_an_internal_error_is_kept_like_any_answer(self, value) -> None:
        agent = serve()
        answer(value, agent=agent)
        (again,) = ask(agent).calls
        assert isinstance(again, Answered)
        assert again.refusal is not None
        assert again.refusal.kind is HANDLER_FAILED
        assert agent.active == 0

    def test_an_unwritable_answer_costs_no_other_answer_in_a_snapshot(self) -> None:
        keys = [bytes([number]) * 16 for number in range(3)]
        answers = (Replied("x", {"a": 1}), Replied("x", {"a": {1}}), object())
        kept = [SavedKey(key, key, answer, 5, 9.0, answered=True) for key, answer in zip(keys, answers, strict=True)]
        who = identity_record(StateOwner(AGENT, b"k" * 32, 300.0, 30.0))
        found = read_state(write_state([who, snapshot_record(b"guard", kept)])).kept
        assert [one.key for one in found] == keys
        assert [one.answer for one in found] == [answers[0], None, None]
        assert [one.answered for one in found] == [True, False, False]


class TestBegun:
    """After `Dispatch` nothing settles as "never ran" unless the driver says so."""

    def test_ctrl_c_while_an_answer_is_written_propagates_and_the_outcome_is_unknown(self) -> None:
        agent = serve()
        fork = ask(agent)
        with pytest.raises(KeyboardInterrupt):
            fork.calls[0].replied(Replied("x", {"a": unreadable(KeyboardInterrupt())}))
        fork.abandon()
        assert self.again(agent) == "asap:admission/outcome_unknown"

    def test_a_call_that_breaks_is_answered_and_its_outcome_is_unknown(self) -> None:
        agent = serve()
        (dispatch,) = ask(agent).calls
        answered = broken_call(dispatch)
        assert answered.refusal is not None
        assert (answered.refusal.kind, answered.fault, agent.active) == (HANDLER_FAILED, None, 0)
        assert self.again(agent) == "asap:admission/outcome_unknown"
        assert broken_call(answered) is answered

    def test_ids_that_fail_are_an_internal_error(self) -> None:
        def ids() -> str:
            raise SystemExit

        answered = answer({}, agent=serve(ids=ids))
        assert (answered.refusal is not None, answered.fault) == (
            True,
            "echo: SystemExit was raised while its answer was written",
        )

    @pytest.mark.parametrize("made", ["", "x" * 257, "a\nb", 5], ids=repr)
    def test_an_id_that_breaks_the_rule_is_an_internal_error(self, made) -> None:
        answered = answer({}, agent=serve(ids=lambda: made))
        assert answered.refusal is not None
        assert "id: expected a non-empty string of at most 256 characters" in str(answered.fault)

    def again(self, agent):
        (state,) = ask(agent).calls
        return None if state.refusal is None else state.refusal.kind.taxonomy


class TestObservers:
    @pytest.mark.parametrize(
        "error",
        [ValueError("x"), SystemExit(), GeneratorExit(), BaseExceptionGroup("", [SystemExit(), ValueError()])],
        ids=repr,
    )
    def test_an_exception_of_an_observer_changes_nothing(self, error) -> None:
        def observe(_decision) -> None:
            raise error

        agent = serve(observe=observe)
        assert payload(answer({"a": 1}, agent=agent)) == {"a": 1}
        assert isinstance(ask(agent).calls[0], Answered)
        assert agent.observer_failures == 2
        assert (agent.take_observer_error(), agent.take_observer_error()) == (error, None)

    def test_an_exception_of_an_observer_is_counted(self) -> None:
        from asap_core.server.metrics import Counters

        def observe(_decision) -> None:
            raise ValueError

        agent = serve(observe=observe, counters=Counters())
        ask(agent)
        assert b"asap_observer_failures_total 1\n" in agent.metrics().body

    @pytest.mark.parametrize(
        "error",
        [
            KeyboardInterrupt(),
            BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [KeyboardInterrupt()])]),
        ],
        ids=["alone", "in a group"],
    )
    def test_ctrl_c_propagates(self, error) -> None:
        def observe(_decision) -> None:
            raise error

        with pytest.raises(BaseException) as caught:  # noqa: PT011 - this very one
            ask(serve(observe=observe))
        assert caught.value is error


def test_an_error_of_write_json_names_the_path() -> None:
    with pytest.raises(NotWritable) as caught:
        write_json({"a": [1, {"b": {1}}]})
    assert caught.value.path == ("a", 1, "b")
    assert "not set" in str(caught.value)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(
    sender=st.sampled_from(["urn:asap:agent:bob", "urn:asap:agent:bob:v2"]),
    request_id=st.sampled_from(["e", "\u00e9\u4e16", 'quoted"\\']),
    trace_id=TEXTS | st.none(),
    call_id=st.integers(-(2**63), 2**63 - 1) | TEXTS,
    payload_type=TEXTS.filter(bool),
    payload=st.dictionaries(TEXTS, st.integers() | TEXTS | st.none(), max_size=3),
    wall=st.floats(0, 4e9),
)
def test_a_reply_is_written_as_its_envelope_would_be(
    *, sender, request_id, trace_id, call_id, payload_type, payload, wall
) -> None:
    made: Any = Envelope.new(
        sender="urn:asap:agent:alice",
        recipient="urn:asap:agent:bob",
        payload_type="task.request",
        payload={},
        ids=lambda: request_id,
        wall=WallTime(0.0),
        trace_id=trace_id,
    )
    given_at: Any = {"ids": lambda: "01HX5K4N", "wall": WallTime(wall), "sender": sender}
    envelope = encode_envelope(made.reply(payload_type, payload, **given_at))
    text = reply_text(made, Replied(payload_type, payload), call_id=call_id, **given_at)
    assert text == write_json({"jsonrpc": "2.0", "result": {"envelope": envelope}, "id": call_id})
