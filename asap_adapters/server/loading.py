"""Loads what few requests need once the server has started, so that the first answer doesn't wait for it."""

from typing import Final

import anyio
import anyio.lowlevel

from asap_adapters.server.heap import forget_generated_sources, give_back_free_blocks
from asap_core.wire.codec import warm_up

# Seconds: callers that wait for the server to start are answered first.
_PAUSE: Final = 0.2


async def load_the_rest() -> None:
    """Import h11 and cattrs, which hold up the event loop for some 10 ms each.

    A request that needs one of them earlier imports it. They aren't left to the first such request, which may come when
    the process has no file descriptor left, and so can import nothing.
    """
    await anyio.sleep(_PAUSE)
    forget_generated_sources()
    import asap_adapters.server.h11_wire  # noqa: F401, PLC0415

    await anyio.lowlevel.checkpoint()
    warm_up()
    give_back_free_blocks()
