"""More connections than places: all callers are served, and what isn't answered hasn't run."""

import asyncio

import pytest

from benchmarks import crowding

pytestmark = pytest.mark.live


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_two_thousand_connections_are_served_on_a_thousand_places(backend: str) -> None:
    with crowding.server(backend) as port:
        found = asyncio.run(crowding.crowd(port))
    assert len(found.seconds) == crowding.CONNECTIONS * crowding.CALLS
    assert found.unanswered == 0
    # A call that crosses with the end of its idle connection is sent again, and has never run.
    assert found.retried < len(found.seconds) / 50
