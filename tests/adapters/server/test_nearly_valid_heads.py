"""Nearly valid heads over a connection in memory, cut anywhere: the server answers each with the status of its rule."""

import anyio
import pytest
from hypothesis import given, settings, strategies as st

from asap_core.testing import cuts, nearly_valid_heads
from asap_core.testing.head_rules import HEAD_RULES
from tests.adapters.server.test_equal_decisions import Seen, over_a_connection


@pytest.mark.parametrize("rule", HEAD_RULES)
@settings(max_examples=8, deadline=None)
@given(st.data())
def test_a_server_refuses_a_head_that_breaks_a_rule(rule, data) -> None:
    drawn = data.draw(nearly_valid_heads(rule))
    pieces, seen = data.draw(cuts(drawn.data)), Seen()

    async def main() -> None:
        await over_a_connection(pieces, seen, auth=False)

    anyio.run(main, backend="asyncio")
    status_line, _, fields = seen.sent.partition(b"\r\n")
    assert status_line.startswith(b"HTTP/1.1 %d " % drawn.status), seen.sent
    assert b"connection: close" in fields.lower()
