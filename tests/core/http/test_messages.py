"""Messages as values: types of requests, repeated headers, entity tags; and bodies, within their limit of memory."""

import gzip
import random
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given, strategies as st

from asap_core.http.messages import (
    BadCoding,
    Body,
    BodyTooLarge,
    Gzip,
    Request,
    Response,
    collect,
    header_values,
    json_response,
    matches_etag,
)


class TestHeaders:
    def test_several_values_of_a_header_are_one_list(self) -> None:
        headers = ((b"a", b"1"), (b"b", b"2"), (b"a", b"3"))
        assert collect(headers) == {b"a": b"1, 3", b"b": b"2"}

    def test_the_values_of_one_header_are_found_in_order(self) -> None:
        assert header_values(((b"a", b"1"), (b"b", b"2"), (b"a", b"3")), b"a") == [b"1", b"3"]

    @pytest.mark.parametrize(
        ("value", "names"),
        [
            (b'"a"', True), (b'W/"a"', True), (b'"b", "a"', True), (b" * ", True), (b'"b"', False), (b'"a,*,b"', False),
            (b'"b,W/,a"', False), (b'*, "b"', False), (b"a", False), (b"", False),
        ],
    )  # fmt: skip
    def test_an_entity_tag_is_compared_with_its_quotes(self, value, names) -> None:
        assert matches_etag([value], '"a"') is names


class TestMessages:
    @pytest.mark.parametrize("headers", [[(b"A", b"1")], [("a", b"1")], [(b"a", "1")], [b"ab1"], 5])
    def test_headers_are_pairs_of_bytes_with_names_in_lower_case(self, headers: Any) -> None:
        with pytest.raises(ValueError, match="headers: expected pairs of bytes"):
            Request(method="GET", target="/", headers=headers)

    @pytest.mark.parametrize("wrong", [{"method": b"GET"}, {"target": b"/"}, {"peer": None}, {"local": 5}])
    def test_a_head_of_anything_but_text_is_refused(self, wrong: Any) -> None:
        with pytest.raises(ValueError, match="expected strings"):
            Request(**{"method": "GET", "target": "/", **wrong})

    def test_a_json_response_has_its_content_type(self) -> None:
        assert json_response(200, {"a": 1}, ((b"x", b"y"),), close=True) == Response(
            status=200, headers=((b"content-type", b"application/json"), (b"x", b"y")), body=b'{"a":1}', close=True
        )

    def test_the_connection_stays_open_after_a_response_that_does_not_say_otherwise(self) -> None:
        assert not json_response(200, {}).close
        assert not Response(status=200).close


class TestBodies:
    def test_a_body_without_a_coding_may_be_decoded_in_steps_too(self) -> None:
        body = Body(limit=6)
        body.decode(b"abc")
        assert not body.pending
        body.decode(b"def")
        assert body.end() == b"abcdef"
        body = Body(limit=6)
        with pytest.raises(BodyTooLarge):
            body.decode(b"abcdefg")

    @given(st.binary(max_size=300), st.integers(1, 50))
    def test_any_bytes_through_gzip_are_the_same_however_they_are_cut(self, data, chunk) -> None:
        def run(pieces):
            body = Body(limit=100_000, inflater=Gzip())
            try:
                for piece in pieces:
                    body.feed(piece)
                return body.end()
            except (BadCoding, BodyTooLarge) as error:
                return type(error)

        for coded in (data, gzip.compress(data), gzip.compress(data)[:-1], gzip.compress(data) * 3):
            cut = [coded[start : start + chunk] for start in range(0, len(coded), chunk)]
            assert run([coded]) == run(cut)
        assert run([gzip.compress(data) * 3]) == data * 3

    @given(st.binary(max_size=300), st.integers(1, 50), st.lists(st.booleans(), min_size=5, max_size=5))
    def test_a_body_taken_in_pieces_is_unchanged(self, data, chunk, taking) -> None:
        for coded, inflater in ((data, None), (gzip.compress(data), Gzip())):
            body, found = Body(limit=len(data), inflater=inflater), b""
            for place, start in enumerate(range(0, len(coded), chunk)):
                body.feed(coded[start : start + chunk])
                if taking[place % len(taking)]:
                    found += body.take()
                    assert body.held == 0
            assert found + body.end() == data
            over = Body(limit=len(data))
            over.feed(data)
            over.take()
            with pytest.raises(BodyTooLarge):
                over.feed(b"x")

    def test_many_small_pieces_take_no_more_memory_than_a_few(self) -> None:
        body = Body(limit=1_000_000)
        tracemalloc.start()
        for _ in range(500_000):
            body.feed(b"xy")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3_000_000
        assert body.end() == b"xy" * 500_000

    def test_a_bomb_takes_no_more_memory_than_the_limit(self) -> None:
        bomb = gzip.compress(b"0" * 200_000_000)
        body = Body(limit=1_000_000, inflater=Gzip())
        tracemalloc.start()
        with pytest.raises(BodyTooLarge, match="at most 1000000 bytes"):
            body.feed(bomb)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
        tracemalloc.stop()

    @pytest.mark.parametrize(
        ("start", "nothing"),
        [
            # A stored block of no bytes (RFC 1951 §3.2.4), and a file name that never ends (RFC 1952 §2.3).
            (gzip.compress(b"")[:10], b"\x00\x00\x00\xff\xff"),
            (gzip.compress(b"")[:3] + b"\x08" + gzip.compress(b"")[4:10], b"name"),
        ],
    )
    def test_a_coded_body_that_decodes_to_nothing_has_a_limit_too(self, start, nothing) -> None:
        body = Body(limit=100_000, inflater=Gzip())
        body.feed(start)
        for _ in range(200_000 // len(nothing)):
            body.feed(nothing)
        with pytest.raises(BodyTooLarge, match="at most 100000 bytes"):
            body.feed(nothing * (40_000 // len(nothing)))

    @pytest.mark.parametrize("size", [0, 1, 1000, 10_000_000])
    def test_incompressible_data_still_fits_when_coded(self, size) -> None:
        data = random.Random(1).randbytes(size)
        for level in (0, 1, 9):
            coded = gzip.compress(data, level)
            assert len(coded) > size
            body = Body(limit=size, inflater=Gzip())
            body.feed(coded)
            assert body.end() == data

    def test_the_limit_is_exact(self) -> None:
        for size, fits in ((1000, True), (1001, False)):
            body = Body(limit=1000, inflater=Gzip())
            if fits:
                body.feed(gzip.compress(b"0" * size))
                assert len(body.end()) == size
            else:
                with pytest.raises(BodyTooLarge):
                    body.feed(gzip.compress(b"0" * size))

    def test_endless_members_are_refused(self) -> None:
        body = Body(limit=1000, inflater=Gzip())
        with pytest.raises(BadCoding, match="at most 16"):
            body.feed(gzip.compress(b"") * 17)

    @pytest.mark.parametrize("step", [1, 7, 1000])
    def test_zero_padding_is_skipped_as_gzip_does(self, step) -> None:
        coded = gzip.compress(b"one") + bytes(300) + gzip.compress(b"two") + bytes(5)
        body = Body(limit=1000, inflater=Gzip())
        for start in range(0, len(coded), step):
            body.feed(coded[start : start + step])
        assert body.end() == b"onetwo"

    @pytest.mark.parametrize("step", [1, 1000, 100_000])
    def test_endless_padding_and_other_trailing_bytes_are_refused(self, step) -> None:
        body = Body(limit=1000, inflater=Gzip())
        body.feed(gzip.compress(b"x") + bytes(65_536))
        with pytest.raises(BadCoding, match="at most 65536 zero bytes"):
            body.feed(bytes(step))
        with pytest.raises(BadCoding, match="gzip stream"):
            Body(limit=1000, inflater=Gzip()).feed(gzip.compress(b"x") + b"\0\0more")

    def test_output_that_waits_without_input_is_not_lost(self) -> None:
        data = b"a" * 65_536 * 3
        body = Body(limit=10**6, inflater=Gzip())
        for byte in gzip.compress(data):
            body.feed(bytes([byte]))
        assert body.end() == data


def named(length: int, data: bytes = b"") -> bytes:
    """A gzip member whose header names a file (RFC 1952 §2.3.1), as long as asked for."""
    member = gzip.compress(data)
    named = member[:3] + b"\x08" + member[4:10] + b"%s\0" + member[10:]
    return named % (b"x" * (length - len(member) - 1))


class TestGzip:
    @pytest.mark.parametrize("before", [b"", gzip.compress(b"x")])
    def test_a_member_in_another_format_is_refused(self, before: bytes) -> None:
        body = Body(limit=100, inflater=Gzip())
        with pytest.raises(BadCoding):
            body.feed(before + zlib.compress(b"x"))

    @pytest.mark.parametrize(("members", "fits"), [(16, True), (17, False)])
    def test_there_are_at_most_16_members(self, members: int, fits: bool) -> None:
        body = Body(limit=100, inflater=Gzip())
        if fits:
            body.feed(gzip.compress(b"x") * members)
            assert body.end() == b"x" * members
        else:
            with pytest.raises(BadCoding, match="at most 16 gzip members"):
                body.feed(gzip.compress(b"x") * members)

    def test_padding_is_zeros(self) -> None:
        body = Body(limit=100, inflater=Gzip())
        with pytest.raises(BadCoding):
            body.feed(gzip.compress(b"x") + b"\0?\0")

    def test_only_zeros_count_as_padding(self) -> None:
        data = random.Random(1).randbytes(60_000)
        body = Body(limit=100_000, inflater=Gzip())
        body.feed(gzip.compress(b"x") + bytes(30_000) + gzip.compress(data))
        assert body.end() == b"x" + data

    def test_gzip_is_finished_when_all_its_members_are_finished(self) -> None:
        coded = Gzip()
        assert not coded.pending
        assert coded.inflate(gzip.compress(b"a") + gzip.compress(b"b"), 100) == b"a"
        assert (coded.finished, coded.pending) == (False, True)
        assert coded.inflate(b"", 100) == b"b"
        assert (coded.finished, coded.pending) == (True, False)

    @pytest.mark.parametrize("room", [1, 7, 258])
    def test_the_bytes_so_far_give_all_their_output_before_the_rest_comes(self, room: int) -> None:
        whole = gzip.compress(b"x" * 2_000 + b"yz" * 500)
        for cut in range(len(whole) + 1):
            coded = Gzip()
            found = coded.inflate(whole[:cut], room)
            while coded.pending:
                found += coded.inflate(b"", room)
            assert found == zlib.decompressobj(wbits=31).decompress(whole[:cut])


class Rooms:
    """A decoder that returns its input, and notes how much room it is given."""

    pending = False
    finished = True

    def __init__(self) -> None:
        self.rooms: list[int] = []

    def inflate(self, data: bytes, room: int) -> bytes:
        self.rooms.append(room)
        return data


class TestRoom:
    def test_nothing_is_held_after_a_refusal_or_the_end(self) -> None:
        body = Body(limit=10)
        body.feed(b"x" * 10)
        with pytest.raises(BodyTooLarge):
            body.feed(b"x")
        assert body.held == 0
        body = Body(limit=10)
        body.feed(b"x")
        assert (body.end(), body.held) == (b"x", 0)

    def test_the_room_is_the_rest_of_the_limit_and_one_byte_to_detect_excess(self) -> None:
        coded = Rooms()
        body = Body(limit=100, inflater=coded)
        body.feed(b"x" * 40)
        body.feed(b"x" * 20)
        body.take()
        body.feed(b"x" * 10)
        body.feed(b"x" * 30)
        assert coded.rooms == [101, 61, 41, 31]

    def test_the_room_is_at_most_64_kib(self) -> None:
        coded = Rooms()
        Body(limit=1_000_000, inflater=coded).feed(b"x")
        assert coded.rooms == [65_536]

    @pytest.mark.parametrize(("more", "fits"), [(0, True), (1, False)])
    def test_a_coded_body_may_be_128_kib_longer_than_the_limit(self, more: int, fits: bool) -> None:
        coded = named(100 + 131_072 + more, b"x")
        body = Body(limit=100, inflater=Gzip())
        if fits:
            body.feed(coded)
            assert body.end() == b"x"
        else:
            with pytest.raises(BodyTooLarge):
                body.feed(coded)
