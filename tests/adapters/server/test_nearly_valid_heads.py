"""Nearly valid heads over a connection in memory, cut anywhere: the server answers each with the status of its rule.

So does the ASGI application, if the server has read the head and still shows what is wrong.
"""

import anyio
import pytest
from hypothesis import given, settings, strategies as st

from asap_core.testing import cuts, nearly_valid_heads
from asap_core.testing.head_rules import HEAD_RULES
from tests.adapters.server.test_equal_decisions import Seen, over_a_connection, over_asgi


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


# h11 reads them away: it takes LF for CR LF, joins lines, and makes one of equal lengths.
READ_AWAY = {"a line ends in CR LF, not in LF", "a field stays on one line", "there is one Content-Length"}


@pytest.mark.parametrize("rule", sorted(HEAD_RULES.keys() - READ_AWAY))
@settings(max_examples=8, deadline=None)
@given(st.data())
def test_the_asgi_application_refuses_what_its_server_lets_through(rule, data) -> None:
    drawn = data.draw(nearly_valid_heads(rule))
    seen = Seen()

    async def main() -> None:
        await over_asgi([drawn.data], seen, auth=False)

    anyio.run(main, backend="asyncio")
    assert not seen.sent or seen.sent.startswith(b"HTTP/1.1 %d " % drawn.status), seen.sent
