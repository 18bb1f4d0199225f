"""Real sockets, real mDNS, real threads, on the real clock."""

import pytest


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request):
    return request.param
