"""What the tests of all example drivers share: an agent to call."""

from collections.abc import Iterator

import pytest

from tests.drivers.demo_agent import Demo, serve_demo


@pytest.fixture
def demo() -> Iterator[Demo]:
    """The echo agent on a server in threads, which counts requests and can hold back its manifest."""
    with serve_demo() as served:
        yield served
