"""What a server does when it starts."""

import gc

import anyio
import pytest

from asap_adapters.server.startup import freeze_what_is_loaded, load_the_rest

pytestmark = pytest.mark.anyio


async def test_what_is_loaded_is_frozen_after_the_rest_and_without_garbage(monkeypatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(gc, "collect", lambda: done.append("collected"))
    monkeypatch.setattr(gc, "freeze", lambda: done.append("frozen"))

    async def rest() -> None:
        await load_the_rest()
        done.append("loaded")

    async with anyio.create_task_group() as group:
        group.start_soon(freeze_what_is_loaded)
        group.start_soon(rest)
    assert done == ["loaded", "collected", "frozen"]
