"""Memory that a server gives back: what can't be measured here is tested by its effect on Python's own tables."""

import linecache

from attrs import frozen

from asap_adapters.server.heap import forget_generated_sources, give_back_free_blocks


def test_only_the_sources_that_attrs_made_are_forgotten(monkeypatch) -> None:
    monkeypatch.setattr(linecache, "cache", {})

    @frozen
    class Point:
        x: int

    assert any(name.startswith("<attrs generated") for name in linecache.cache)
    linecache.cache["<ipython-input-1>"] = (1, None, ["x = 1\n"], "<ipython-input-1>")
    forget_generated_sources()
    give_back_free_blocks()
    assert list(linecache.cache) == ["<ipython-input-1>"]
    assert Point(1) == Point(1)
