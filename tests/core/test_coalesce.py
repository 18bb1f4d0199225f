"""Coalescing: one flight for all who ask, handed over when its leader leaves, over when nobody waits."""

from typing import Any

import pytest

from asap_core.client.coalesce import Coalescer, Crowded, Flight, Joined, Leading


class TestCoalescing:
    def test_the_first_leads_and_the_others_join(self) -> None:
        flights: Any = Coalescer()
        leading = flights.join("k", 1)
        assert isinstance(leading, Leading)
        assert flights.join("k", 2) == Joined()
        assert flights.land(leading.flight) == (1, 2)
        assert (len(flights), flights.waiting) == (0, 0)

    def test_a_late_result_is_refused(self) -> None:
        flights: Any = Coalescer()
        flight = flights.join("k", 1).flight
        assert flights.land(flight) == (1,)
        assert flights.land(flight) == ()
        assert flights.land(Flight("k", 1)) == ()

    def test_a_leader_that_leaves_hands_over_and_its_result_is_late(self) -> None:
        flights: Any = Coalescer()
        first = flights.join("k", 1).flight
        flights.join("k", 2)
        flights.join("k", 3)
        second: Any = flights.leave(1)
        assert (second.waiter, flights.land(first)) == (2, ())
        assert flights.land(second.flight) == (2, 3)

    def test_a_flight_ends_with_its_last_waiter(self) -> None:
        flights: Any = Coalescer()
        flights.join("k", 1)
        flights.join("k", 2)
        assert flights.leave(2) is None
        assert flights.leave(1) is None
        assert flights.leave(1) is None
        assert (len(flights), flights.flight("k")) == (0, None)

    def test_one_waiter_waits_once(self) -> None:
        flights: Any = Coalescer()
        flights.join("k", 1)
        with pytest.raises(ValueError, match="waits already"):
            flights.join("other", 1)

    def test_it_is_bounded(self) -> None:
        flights: Any = Coalescer(max_flights=1, max_waiters=2)
        flights.join("k", 1)
        assert flights.join("other", 2) == Crowded()
        flights.join("k", 3)
        assert flights.join("k", 4) == Crowded()
