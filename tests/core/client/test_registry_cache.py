"""A registry's copy counts only if it's exactly what was written, of this registry, and not too old."""

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from asap_core import BadReply, InvalidDocument, NotAllowed, TimedOut, Unreachable
from asap_core.client.registry_cache import (
    LONGEST,
    MAX_HEAD,
    Copy,
    CopyAction,
    _seal,
    copy_action,
    file_name,
    measure,
    read_copy,
    serves_for,
    write_head,
)
from asap_core.errors import Advice
from asap_core.http.caching import FreshnessPolicy, freshness_of
from asap_core.net.addresses import Proximity
from asap_core.net.provenance import Provenance
from asap_core.wire.registry_reader import RegistryReader

URL, WALL = "https://r.example/registry.json?key=s3cret", 1_800_000_000.0
BODY = b'{"version":"1"}'
REGISTRY = {
    "version": "1", "updated_at": "2026-01-01T00:00:00Z", "x": [1, "\u00e9"],
    "agents": [
        {"id": "urn:asap:agent:a", "name": "A\u00e9", "description": "", "asap_version": "1", "skills": ["s"],
         "endpoints": {"manifest": "https://a.example/m"}, "y": {"z": 1.50}},
        {"id": 1},
        {"id": "urn:asap:agent:b", "name": "B", "description": "", "asap_version": "1", "skills": [],
         "endpoints": {"manifest": "https://b.example/m"}},
    ],
}  # fmt: skip


def head(**changes) -> bytes:
    written = write_head(
        URL,
        vouched=WALL,  # type: ignore[arg-type]
        serves=changes.pop("serves", LONGEST),
        zone=Proximity.NETWORK,
        length=len(BODY),
        digest=measure([BODY])[1],
    )
    return sealed({**json.loads(written.rpartition(b" ")[0]), **changes}) if changes else written


def sealed(value) -> bytes:
    text = json.dumps(value).encode()
    return text + b" " + _seal(text) + b"\n"


def read(data: bytes, url: str = URL, wall=WALL):
    return read_copy(data, url, wall=wall)


def test_what_was_written_is_read() -> None:
    copy = read(head() + BODY, wall=WALL + 5.0)
    assert copy == Copy(5.0, LONGEST, Proximity.NETWORK, len(BODY), measure([BODY])[1])
    assert copy.holds(BODY)
    assert copy.holds(memoryview(BODY))
    assert not copy.holds(BODY[:-1])
    assert not copy.holds(BODY[:-1] + b" ")


def test_it_tells_nothing_of_its_url_and_is_no_other_ones() -> None:
    assert b"example" not in head()
    assert "example" not in file_name(URL)
    assert file_name("https://R.example:443/x") == file_name("https://r.example/x") != file_name(URL)
    assert read(head(), "https://r.example/registry.json") == "it's a copy of another registry"


@pytest.mark.parametrize(
    ("wall", "wrong"),
    [
        (WALL + LONGEST, None), (WALL + LONGEST + 0.01, "it's too old"), (WALL - 60.0, None),
        (WALL - 60.01, "it's from the future"),
    ],
)  # fmt: skip
def test_its_age_is_known_and_bounded(wall, wrong) -> None:
    found = read(head(), wall=wall)
    assert found == wrong if wrong else found.age >= 0.0


def test_it_is_as_documented() -> None:
    assert (LONGEST, MAX_HEAD) == (7 * 86_400.0, 1_024)
    text, _, seal = head().rpartition(b" ")
    assert (len(json.loads(text)["digest"]), len(seal), seal[-1:]) == (64, 33, b"\n")
    assert [len(part) for part in file_name(URL).split(".")] == [32, 8]
    assert (read(head()).age, read(head(), wall=WALL - 1.0).age, read(head(), wall=WALL + 0.5).age) == (0.0, 0.0, 0.5)


def test_it_serves_no_longer_than_its_server_says() -> None:
    assert read(head(serves=10.0), wall=WALL + 10.0).serves == 10.0
    assert read(head(serves=10.0), wall=WALL + 10.1) == "it's too old"
    assert read(head(serves=0.5), wall=WALL + 0.7) == "it's too old"
    assert read(head(serves=2 * LONGEST), wall=WALL + LONGEST + 1) == "it's too old"


@pytest.mark.parametrize(
    ("control", "serves"),
    [
        ("", LONGEST), ("max-age=60", LONGEST), ("no-store", 0.0), ("no-cache", 0.0),
        ("max-age=0, must-revalidate", 0.0),
        ("max-age=60, must-revalidate", 60.0), ("max-age=60, stale-if-error=0", 60.0),
        ("max-age=60, stale-if-error=3600", 3_660.0), ("max-age=60, stale-if-error=nonsense", 60.0),
    ],
)  # fmt: skip
def test_what_a_server_says_of_its_outages_counts(control, serves) -> None:
    wide = FreshnessPolicy(most=10 * LONGEST, stale_if_error=10 * LONGEST)
    assert serves_for(freshness_of([("cache-control", control)], policy=FreshnessPolicy(), wall=WALL)) == serves  # type: ignore[arg-type]
    long = freshness_of([("cache-control", "max-age=1, stale-if-error=99999999")], policy=wide, wall=WALL)  # type: ignore[arg-type]
    assert serves_for(long) == LONGEST


@given(st.integers(0, 500), st.integers(1, 255))
def test_a_copy_with_one_changed_byte_is_not_read(place: int, change: int) -> None:
    good = head()
    at = place % len(good)
    assert isinstance(read(good[:at] + bytes([good[at] ^ change]) + good[at + 1 :] + BODY), str)


def test_the_longest_head_is_short_enough() -> None:
    longest = write_head(
        URL, vouched=1e15 + 0.123, serves=LONGEST / 3, zone=Proximity.INTERNET, length=10**12, digest="f" * 64  # type: ignore[arg-type]
    )  # fmt: skip
    assert len(longest) < MAX_HEAD / 2


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "asap registry copy 1"}, {"kind": None}, {"of": 5}, {"vouched": "1"}, {"vouched": True},
        {"vouched": 10**400}, {"serves": 5}, {"serves": None}, {"length": 1.0},
        {"zone": "HERE"}, {"zone": ["NETWORK"]}, {"digest": None},
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_not_read(changes) -> None:
    assert read(head(**changes)) == "it isn't a copy of a registry"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]\n",
        sealed(None),
        sealed([]),
        sealed("\ud800"),
        b"x " + _seal(b"x") + b"\n",
        head()[:-1],
        b" " * 2_000 + head(),
        b"\xff\n",
    ],
)
def test_a_truncated_copy_is_not_read(data) -> None:
    assert read(data) == "it isn't a copy of a registry"


@given(st.binary(), st.integers(0, 400))
def test_any_bytes_are_read_or_refused(data: bytes, at: int) -> None:
    good = head()
    for torn in (data, good[:at], good[:at] + data):
        found = read(torn + BODY)
        assert isinstance(found, str) or torn.startswith(good)


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (Unreachable("u", "r"), CopyAction.SERVES), (TimedOut("u", "r"), CopyAction.SERVES),
        *((BadReply("u", "r", status), CopyAction.SERVES) for status in (500, 502, 503, 504)),
        *((BadReply("u", "r", status), CopyAction.GOES) for status in (401, 403, 404, 410)),
        *((BadReply("u", "r", status), CopyAction.STAYS) for status in (200, 302, 400, 429, 501, None)),
        (InvalidDocument("registry", ()), CopyAction.STAYS), (NotAllowed("u", "r", Advice("m")), CopyAction.STAYS),
    ],
)  # fmt: skip
def test_it_stands_in_for_who_cannot_be_reached_and_for_nobody_who_says_no(error, kept) -> None:
    assert copy_action(error) is kept


def test_a_registry_is_written_as_it_was_read() -> None:
    def read_registry(data: bytes):
        reader = RegistryReader()
        reader.feed(data)
        return reader.close()

    first = read_registry(json.dumps(REGISTRY).encode())
    again = read_registry(b"".join(first.written()))
    assert list(again.agents) == list(first.agents)
    assert (again.version, again.updated_at, again.extra) == (first.version, first.updated_at, first.extra)
    assert (len(first.skipped), len(again.skipped)) == (1, 0)
    empty = read_registry(json.dumps({**REGISTRY, "agents": []}).encode())
    assert len(read_registry(b"".join(empty.written()))) == 0
    entry: Any = REGISTRY["agents"][0]
    many = read_registry(json.dumps({**REGISTRY, "agents": [entry] * 2_001}).encode())
    assert len(read_registry(b"".join(many.written()))) == 2_001


def test_how_near_it_was_is_recalled_until_it_is_seen() -> None:
    known = Provenance()
    assert known.proximity_of(URL) is Proximity.INTERNET
    known.recall(URL, Proximity.NETWORK)
    known.recall("nothing", Proximity.NETWORK)
    assert known.proximity_of(URL) is Proximity.NETWORK
    seen = Provenance()
    seen.connected("r.example:443", "203.0.113.9")
    before = seen.proximity_of(URL)
    seen.recall(URL, Proximity.MACHINE)
    assert seen.proximity_of(URL) is before
