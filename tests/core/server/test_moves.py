"""Moves: each state allows its own, once."""

import itertools
import json
from typing import Any

import pytest

from asap_core import (
    Answered,
    Authenticated,
    Dispatch,
    Done,
    Refusal,
    Replied,
    parse_limits,
)
from asap_core.admission import admission
from asap_core.auth.principal import InsufficientScope
from asap_core.refusals import BUSY
from asap_core.server.call import abandon_call
from asap_core.server.call_context import IllegalMove
from tests.builders import ALICE, call
from tests.core.server.exchanges import body, head, reply, serve


class TestMoves:
    def test_a_state_has_no_moves_after_its_move(self) -> None:
        agent = serve(auth=True)
        state = agent.open(head(authorization="Bearer x"))
        body = state.verified(Authenticated(ALICE))
        with pytest.raises(IllegalMove, match="Authenticate was left already"):
            state.refused()
        fork = body.end()
        with pytest.raises(IllegalMove):
            body.feed(b"x")
        response = fork
        assert response.sent() == Done()
        with pytest.raises(IllegalMove):
            response.sent()

    def test_a_call_has_no_moves_after_its_move(self) -> None:
        (dispatch,) = serve().open(head()).feed(json.dumps(call()).encode()).end().calls
        reply(dispatch)
        with pytest.raises(IllegalMove, match="Dispatch was left already"):
            reply(dispatch)

    STATES: Any = {
        "TakeLimit": lambda agent: agent.open(head()),
        "Authenticate": lambda agent: agent.open(head(authorization="Bearer x")).taken(),
        "ReadBody": lambda agent: TestMoves.STATES["Authenticate"](agent).verified(Authenticated(ALICE)),
        "Fork": lambda agent: TestMoves.STATES["ReadBody"](agent).feed(json.dumps(call(key="k")).encode()).end(),
        "Respond": lambda agent: agent.open(head("GET", "/health")),
        "Admit": lambda agent: TestMoves.STATES["Fork"](agent).calls[0],
        "Hold": lambda agent: TestMoves.STATES["Admit"](agent).answered(admission.Running(0.5)),
        "Dispatch": lambda agent: TestMoves.STATES["Admit"](agent).answered(
            admission.Admitted(admission.Reservation(b"r"))
        ),
        "Record": lambda agent: reply(TestMoves.STATES["Dispatch"](agent)),
    }
    MOVES: Any = {
        "TakeLimit": [("taken",), ("limited", 1.0, "1 per 1 second"), ("unavailable",), ("abandon",)],
        "Authenticate": [
            ("verified", Authenticated(ALICE)), ("refused",), ("insufficient", InsufficientScope(frozenset({"a"}))),
            ("unavailable",), ("abandon",),
        ],
        "ReadBody": [("end",), ("abandon",)],
        "Fork": [("answered", [Answered(b"", Refusal(kind=BUSY))]), ("abandon",)],
        "Respond": [("sent",), ("abandon",)],
        "Admit": [("answered", admission.Admitted(None)), ("abandon",)],
        "Hold": [("again",), ("expired",), ("abandon",)],
        "Dispatch": [
            ("replied", Replied("x", {})), ("failed", Refusal(kind=BUSY)), ("turned_away", Refusal(kind=BUSY)),
            ("lost",), ("abandon",),
        ],
        "Record": [("recorded",), ("abandon",)],
    }  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "first", "then"),
        [(name, *pair) for name, moves in MOVES.items() for pair in itertools.product(moves, moves)],
        ids=lambda value: value if isinstance(value, str) else value[0],
    )
    def test_no_move_is_legal_after_any_move(self, name, first, then) -> None:
        agent = serve(auth=True, shared=True, shared_limits=["peer", "principal"], peer_limits=parse_limits("9/minute"))
        state = self.STATES[name](agent)
        getattr(state, first[0])(*first[1:])
        with pytest.raises(IllegalMove, match=f"{name} was left already"):
            getattr(state, then[0])(*then[1:])
        if name == "ReadBody":
            with pytest.raises(IllegalMove, match="ReadBody was left already"):
                state.feed(b"")

    def test_a_call_abandoned_from_outside_has_no_more_moves(self) -> None:
        (dispatch,) = serve().open(head()).feed(body()).end().calls
        abandon_call(dispatch)
        with pytest.raises(IllegalMove):
            reply(dispatch)

    def test_every_state_can_be_abandoned(self) -> None:
        agent = serve(auth=True, shared=True, shared_limits=["peer", "principal"], peer_limits=parse_limits("9/minute"))
        take = agent.open(head(authorization="Bearer x"))
        authenticate = agent.open(head(authorization="Bearer x")).taken()
        body = agent.open(head(authorization="Bearer x")).taken().verified(Authenticated(ALICE))
        fork = agent.open(head(authorization="Bearer x")).taken().verified(Authenticated(ALICE))
        fork = fork.feed(json.dumps([call(1, key="k"), 5, call(2)]).encode()).end().taken()
        running = fork.calls[0].answered(admission.Admitted(admission.Reservation(b"r")))
        respond = agent.open(head("GET", "/health"))
        assert isinstance(running, Dispatch)
        for state in (take, authenticate, body, fork, respond):
            assert state.abandon() == Done()
        assert agent.active == 0

    def test_a_question_can_be_abandoned_once(self) -> None:
        agent = serve(shared=True)
        (admit,) = agent.open(head()).feed(json.dumps(call()).encode()).end().calls
        admit.abandon()
        assert agent._callers == {}
        with pytest.raises(IllegalMove, match="Admit was left already"):
            admit.abandon()

    def test_a_record_can_be_abandoned(self) -> None:
        (admit,) = serve(shared=True).open(head()).feed(json.dumps(call(key="k")).encode()).end().calls
        record = reply(admit.answered(admission.Admitted(admission.Reservation(b"r"))))
        record.abandon()
        abandon_call(admit)

    def test_an_answered_call_is_over(self) -> None:
        (dispatch,) = serve().open(head()).feed(json.dumps(call()).encode()).end().calls
        answered = reply(dispatch)
        assert isinstance(answered, Answered)
        abandon_call(dispatch)
        abandon_call(answered)
        assert answered.refusal is None
