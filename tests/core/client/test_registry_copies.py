"""A registry's copy as a file: used only if it's exactly what was written, of this registry, and not too old."""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, strategies as st

from asap_core import InvalidDocument
from asap_core.client.file_to_write import HEAD_BYTES
from asap_core.client.registry_copies import (
    LONGEST,
    WRITE_AGAIN,
    Copy,
    CopyHead,
    CopyParser,
    _hash,
    _UnusableCopy,
    file_name,
    read_head,
)
from asap_core.clock import Instant, Moment, WallTime
from asap_core.net.addresses import Proximity
from asap_core.wire.registry_index import RegistryIndex
from asap_core.wire.registry_reader import RegistryReader

URL, WALL = "https://r.example/registry.json?key=s3cret", WallTime(1_800_000_000.0)
BODY = b'{"version":"1"}'
HEAD = CopyHead(WALL, LONGEST, Proximity.NETWORK, len(BODY), blake2b(BODY, digest_size=32).hexdigest())
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
WRITTEN = Path(__file__).parents[2] / "fixtures" / "written_by_0_1"


def line(**changes: Any) -> bytes:
    """Return a first line, with these changes of its JSON."""
    text, _, _ = HEAD.written(URL).rpartition(b" ")
    return sealed({**json.loads(text), **changes})


def sealed(value: object) -> bytes:
    text = json.dumps(value).encode()
    return text + b" " + _hash(text).encode() + b"\n"


def refusal(data: bytes, url: str = URL, wall: float = WALL) -> str | None:
    """Return why a file that begins so isn't used; None if it is."""
    try:
        read_head(data, url, wall=WallTime(wall))
    except _UnusableCopy as error:
        return str(error)
    return None


def read_registry(data: bytes) -> RegistryIndex:
    reader = RegistryReader()
    reader.feed(data)
    return reader.close()


def copy(index: RegistryIndex | None = None, *, confirmed: float = WALL, since: float = WALL) -> Copy:
    index = read_registry(json.dumps(REGISTRY).encode()) if index is None else index
    at = [Moment(Instant(0.0), WallTime(wall)) for wall in (since, confirmed)]
    return Copy(URL, index, at[0], at[1], LONGEST, Proximity.NETWORK)


class TestHead:
    def test_a_head_is_read_as_it_was_written(self) -> None:
        assert read_head(HEAD.written(URL) + BODY, URL, wall=WALL) == HEAD
        assert line() != HEAD.written(URL)  # with spaces
        assert read_head(line(), URL, wall=WALL) == HEAD

    def test_head_and_file_name_do_not_contain_the_url(self) -> None:
        assert b"example" not in HEAD.written(URL)
        assert "example" not in file_name(URL)
        assert file_name("https://R.example:443/x") == file_name("https://r.example/x") != file_name(URL)

    def test_a_head_of_another_registry_is_refused(self) -> None:
        assert refusal(HEAD.written(URL), "https://r.example/registry.json") == "it's a copy of another registry"

    @pytest.mark.parametrize(
        ("wall", "wrong"),
        [
            (WALL + LONGEST, None), (WALL + LONGEST + 0.01, "it's too old"), (WALL - 60.0, None),
            (WALL - 60.01, "it's from the future"),
        ],
    )  # fmt: skip
    def test_a_head_with_an_unknown_or_too_high_age_is_refused(self, wall: float, wrong: str | None) -> None:
        assert refusal(HEAD.written(URL), wall=wall) == wrong

    @pytest.mark.parametrize(
        ("serves", "age", "wrong"),
        [
            (10.0, 10.0, None), (10.0, 10.1, "it's too old"), (0.5, 0.7, "it's too old"),
            (2 * LONGEST, LONGEST + 1, "it's too old"), (0.0, 0.0, None), (-1.0, 0.0, "it's from the future"),
        ],
    )  # fmt: skip
    def test_a_copy_serves_no_longer_than_its_server_says(self, serves: float, age: float, wrong: str | None) -> None:
        assert refusal(evolve(HEAD, serves=serves).written(URL), wall=WALL + age) == wrong

    def test_a_head_has_the_documented_form(self) -> None:
        assert (LONGEST, HEAD_BYTES, WRITE_AGAIN) == (7 * 86_400.0, 1_024, 3_600.0)
        text, _, seal = HEAD.written(URL).rpartition(b" ")
        assert json.loads(text)["vouched"] == WALL
        assert (len(json.loads(text)["digest"]), len(seal), seal[-1:]) == (64, 33, b"\n")
        assert [len(part) for part in file_name(URL).split(".")] == [32, 8]
        assert b'"vouched":1800000000.123,' in evolve(HEAD, confirmed=WallTime(WALL + 0.12345)).written(URL)

    def test_the_longest_head_fits_into_its_limit(self) -> None:
        longest = CopyHead(WallTime(1e15 + 0.123), LONGEST / 3, Proximity.INTERNET, 10**12, "f" * 64)
        assert len(longest.written(URL)) < HEAD_BYTES / 2

    @given(st.integers(0, 500), st.integers(1, 255))
    def test_a_head_with_one_changed_byte_is_refused(self, place: int, change: int) -> None:
        good = HEAD.written(URL)
        at = place % len(good)
        assert refusal(good[:at] + bytes([good[at] ^ change]) + good[at + 1 :] + BODY) is not None

    @pytest.mark.parametrize(
        "changes",
        [
            {"kind": "asap registry copy 1"}, {"kind": None}, {"of": 5}, {"vouched": "1"}, {"vouched": True},
            {"vouched": 10**400}, {"serves": 5}, {"serves": None}, {"length": 1.0},
            {"zone": "HERE"}, {"zone": ["NETWORK"]}, {"digest": None},
        ],
    )  # fmt: skip
    def test_a_head_with_other_fields_is_refused(self, changes: dict[str, object]) -> None:
        assert refusal(line(**changes)) == "it isn't a copy of a registry"

    @pytest.mark.parametrize(
        "data",
        [
            b"", b"{", b"[]\n", sealed(None), sealed([]), sealed("\ud800"), b"x " + _hash(b"x").encode() + b"\n",
            HEAD.written(URL)[:-1], b" " * 2_000 + HEAD.written(URL), b"\xff\n",
        ],
    )  # fmt: skip
    def test_a_truncated_head_is_refused(self, data: bytes) -> None:
        assert refusal(data) == "it isn't a copy of a registry"

    @given(st.binary(), st.integers(0, 400))
    def test_any_bytes_are_read_or_refused(self, data: bytes, at: int) -> None:
        good = HEAD.written(URL)
        for torn in (data, good[:at], good[:at] + data):
            assert refusal(torn + BODY) is not None or torn.startswith(good)


class TestParser:
    @pytest.mark.parametrize("size", [1, 7, 400, 100_000])
    def test_a_file_is_read_in_pieces_of_any_size(self, size: int) -> None:
        head, index = self.read(b"".join(copy().pieces()), size)
        assert (head.confirmed, head.serves, head.proximity) == (WALL, LONGEST, Proximity.NETWORK)
        assert [entry.id for entry in index.agents] == ["urn:asap:agent:a", "urn:asap:agent:b"]

    @pytest.mark.parametrize(
        ("change", "wrong"),
        [
            (lambda data: data[:-1], "it isn't whole"),
            (lambda data: data + b" ", "it isn't whole"),
            (lambda data: data[:-1] + b" ", "it isn't whole"),
            (lambda data: data.replace(b'"agents"', b'"agentz"'), "it isn't whole"),
            (lambda data: data[:40], "it isn't a copy of a registry"),
            (lambda _: b"", "it isn't a copy of a registry"),
            (lambda _: b"x" * 5_000, "it isn't a copy of a registry"),
        ],
    )
    @pytest.mark.parametrize("size", [1, 100_000])
    def test_a_changed_file_is_refused(self, change: Any, wrong: str, size: int) -> None:
        with pytest.raises(_UnusableCopy) as refused:
            self.read(change(b"".join(copy().pieces())), size)
        assert str(refused.value) == wrong

    def test_a_whole_file_without_a_registry_is_refused(self) -> None:
        with pytest.raises(InvalidDocument, match="not a valid registry"):
            self.read(HEAD.written(URL) + BODY)

    def test_a_too_large_file_is_refused_at_its_head(self) -> None:
        length = len(b"".join(copy().index.written()))
        assert self.read(b"".join(copy().pieces()), most=length)
        parser = CopyParser(URL, wall=WALL, most=length - 1)
        with pytest.raises(_UnusableCopy, match="it's too large"):
            parser.feed(copy()._head.written(URL))

    def test_a_file_without_a_head_is_refused_before_its_end(self) -> None:
        parser = CopyParser(URL, wall=WALL, most=10_000)
        parser.feed(b"x" * (HEAD_BYTES - 1))
        with pytest.raises(_UnusableCopy, match="it isn't a copy"):
            parser.feed(b"x")

    def test_a_file_of_version_0_1_is_read_and_written_byte_for_byte(self) -> None:
        facts = json.loads((WRITTEN / "copy.json").read_text("utf-8"))
        data = (WRITTEN / file_name(facts["url"])).read_bytes()
        parser = CopyParser(facts["url"], wall=facts["wall"], most=1_000)
        parser.feed(data)
        head, index = parser.close()
        confirmed = Moment(Instant(0.0), head.confirmed)
        again = Copy(facts["url"], index, confirmed, confirmed, head.serves, head.proximity)
        assert b"".join(again.pieces()) == data

    def read(self, data: bytes, size: int = 8_192, most: int = 10_000) -> tuple[CopyHead, RegistryIndex]:
        parser = CopyParser(URL, wall=WALL, most=most)
        for at in range(0, len(data), size):
            parser.feed(data[at : at + size])
        return parser.close()


class TestWriting:
    def test_a_registry_is_written_as_it_was_read(self) -> None:
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

    def test_a_copy_that_was_dropped_or_replaced_is_not_wanted(self) -> None:
        new = copy()
        assert new.wanted()
        new.current = False
        assert not new.wanted()

    @pytest.mark.parametrize(
        ("old", "written"),
        [
            (copy(), True), (copy(confirmed=WALL - 3_599), True), (copy(confirmed=WALL - 3_600), False),
            (copy(confirmed=WALL + 30), True),
            (copy(read_registry(json.dumps({**REGISTRY, "version": "2"}).encode())), False),
        ],
    )  # fmt: skip
    def test_the_same_copy_is_not_written_again_within_an_hour(self, old: Copy, written: bool) -> None:
        data = b"".join(old.pieces())
        assert copy().is_written(data[:HEAD_BYTES], len(data)) is written
        assert not copy().is_written(data[:HEAD_BYTES], len(data) - 1)

    def test_a_copy_with_another_term_or_proximity_is_replaced(self) -> None:
        old, new = copy(), copy()
        old.serves = 60.0
        data = b"".join(old.pieces())
        assert not new.is_written(data, len(data))
        old = copy()
        old.proximity = Proximity.INTERNET
        data = b"".join(old.pieces())
        assert not new.is_written(data, len(data))

    def test_a_file_that_is_no_copy_is_replaced(self) -> None:
        assert not copy().is_written(b"", 0)
        assert not copy().is_written(line(of="0"), 1_000)

    def test_old_copies_and_unfinished_files_are_surplus(self) -> None:
        new = copy(since=WALL)
        files = {
            "old.registry": LONGEST + 1, "week.registry": LONGEST, "a.registry": 5.0, "b.txt": 9e9, "c.tmp": 9e9,
            "a.registry.x.tmp": 600.0, "b.registry.x.tmp": 601.0, "c.registryx.tmp": 9e9,
        }  # fmt: skip
        surplus = new.surplus((name, WALL - age) for name, age in files.items())
        assert sorted(surplus) == ["b.registry.x.tmp", "old.registry"]

    def test_at_most_32_copies_are_kept_with_the_new_one(self) -> None:
        files = [(f"{age:02}.registry", WALL - age) for age in range(33)]
        assert sorted(copy().surplus(files)) == ["31.registry", "32.registry"]
        unfinished = [(f"{age:02}.registry.x.tmp", WALL - age) for age in range(33)]
        assert list(copy().surplus(files[:31] + unfinished)) == []
