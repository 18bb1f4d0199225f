"""Real sockets, real mDNS, real threads, on the real clock."""

from typing import Any

import pytest


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: Any) -> Any:
    return request.param
