"""The diagrams are those of the code, and show what its types say."""

from typing import Any
from xml.etree import ElementTree as ET

import pytest

from docs.diagrams import FOLDER, Move, drawn, machines, of_union

MACHINES = machines()


@pytest.mark.parametrize("name", MACHINES)
def test_each_diagram_is_up_to_date(name: str) -> None:
    written = (FOLDER / f"{name}.svg").read_text("utf-8")
    assert written == drawn(MACHINES[name]), "write them anew: python -m docs.diagrams"


def test_there_are_no_other_diagrams() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(MACHINES)


@pytest.mark.parametrize("name", MACHINES)
def test_every_state_and_move_is_drawn(name: str) -> None:
    texts = [element.text for element in ET.fromstring(drawn(MACHINES[name])).iter() if element.tag.endswith("text")]
    assert texts == [text for state, moves in MACHINES[name].items() for text in (state, *(one.name for one in moves))]


class _Shut:
    def open(self) -> "_Open":
        return _Open()

    def burn(self) -> "_Shut | _Ash":
        return _Ash()

    def abandon(self) -> "_Ash":
        return _Ash()

    def colour(self) -> str:
        return "red"


class _Open:
    def shut(self) -> _Shut:
        return _Shut()


class _Ash:
    pass


DOOR: Any = _Shut | _Open | _Ash


def test_moves_are_read_from_types() -> None:
    assert of_union(DOOR) == {
        "_Shut": (Move("open", ("_Open",)), Move("burn", ("_Shut", "_Ash"))),
        "_Open": (Move("shut", ("_Shut",)),),
        "_Ash": (),
    }


def test_states_without_moves_can_be_one_box() -> None:
    assert of_union(DOOR, end="over")["over"] == ()


def test_known_moves_are_in_the_machines() -> None:
    assert Move("sent", ("Done",)) in MACHINES["exchange"]["Respond"]
    assert Move("again", ("Admit", "Hold", "Dispatch", "Answered")) in MACHINES["call"]["Hold"]
    assert Move("time passes", ("half open",)) in MACHINES["breaker"]["open"]
    assert Move("request failed", ("closed", "open")) in MACHINES["breaker"]["closed"]
    assert MACHINES["token"]["a verdict"] == MACHINES["task"]["completed"] == ()
