"""The clock for tests: it stands still until it's moved."""

import pytest

from asap_core.clock import FunctionClock, ManualClock, Moment


class TestClock:
    def test_a_manual_clock_stands_still_until_it_is_moved(self) -> None:
        clock = ManualClock(monotonic=5, wall=10)
        clock.advance(1)
        clock.step_wall(-100)
        assert (clock.monotonic(), clock.wall()) == (6.0, -89.0)
        with pytest.raises(ValueError, match="forwards only"):
            clock.advance(-1)

    def test_two_functions_make_a_clock(self) -> None:
        clock = FunctionClock(iter([5.0, 6.0]).__next__, iter([10.0, 9.0]).__next__)
        assert [clock.monotonic(), clock.wall(), clock.monotonic(), clock.wall()] == [5.0, 10.0, 6.0, 9.0]

    def test_a_moment_has_the_readings_of_both_clocks(self) -> None:
        assert Moment.read(ManualClock(monotonic=5, wall=10)) == Moment(5.0, 10.0)  # type: ignore[arg-type]
