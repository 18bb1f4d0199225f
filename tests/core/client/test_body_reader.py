"""Bodies of responses: any bytes, in any chunks, are read like those read at once, within limits, and never raise."""

import gzip
import zlib
from collections.abc import Iterator
from itertools import cycle, pairwise
from typing import Any

import pytest
from attrs import frozen
from hypothesis import example, given, strategies as st

from asap_core.client.body_reader import PIECE, BodyReader, WholeParser
from asap_core.errors import BadReply, InvalidDocument, Problem
from asap_core.http.messages import BadCoding, BodyTooLarge

GZIP = (("Content-Encoding", "gzip"),)


class Collecting:
    """A parser that notes its pieces, and refuses a document with a byte `refused`."""

    def __init__(self, refused: bytes | None = None) -> None:
        self.pieces: list[bytes] = []
        self.refused = refused

    def feed(self, data: bytes) -> None:
        if self.refused is not None and self.refused in data:
            raise InvalidDocument("a document", (Problem((), "no such byte"),))
        self.pieces.append(data)

    def close(self) -> bytes:
        return b"".join(self.pieces)


def read(body: bytes, headers: Any = (), *, status: int = 200, limit: int = 1_000_000, **options: Any) -> BodyReader:
    reader = BodyReader(limit, **options)
    reader.read(status, headers, body)
    return reader


class Reverse:
    """A content coding: the bytes, each inverted. It gives out at most `room` of them at once."""

    def __init__(self) -> None:
        self.rest = b""
        self.finished = True

    @property
    def pending(self) -> bool:
        return self.rest != b""

    def inflate(self, data: bytes, room: int) -> bytes:
        self.rest += data
        output, self.rest = self.rest[:room], self.rest[room:]
        return bytes(255 - byte for byte in output)


class TestCodings:
    @pytest.mark.parametrize(
        "headers",
        [
            (),
            (("content-encoding", ""),),
            (("content-encoding", "identity"),),
            (("content-type", "gzip"),),
            (("content-encoding", " , identity,"), ("content-encoding", "Identity")),
        ],
    )
    def test_a_body_without_a_coding_is_returned_unchanged(self, headers) -> None:
        assert read(b"hello", headers).body == b"hello"

    @pytest.mark.parametrize("coding", ["gzip", "GZIP", "x-gzip", " gzip ", "identity, gzip"])
    def test_gzip_is_decoded(self, coding: str) -> None:
        assert read(gzip.compress(b"hello"), [("Content-Encoding", coding)]).body == b"hello"

    @pytest.mark.parametrize(
        ("headers", "parser", "sizes"),
        [
            ((), None, [20_000]),
            ((), Collecting(), [8_192, 8_192, 3_616]),
            (GZIP, None, [*[1_024] * 19, 544]),
            (GZIP, Collecting(), [*[1_024] * 19, 544]),
        ],
    )
    def test_a_chunk_is_queued_in_small_pieces(self, headers, parser, sizes) -> None:
        reader = BodyReader(20_000, parser=parser)
        assert (reader.headers, reader.body) == ((), b"")
        reader.begin(200, headers)
        reader.feed(b"x" * 20_000)
        assert list(map(len, reader._queue)) == sizes

    def test_a_coding_of_the_caller_is_decoded(self) -> None:
        coded = bytes(255 - byte for byte in b"hello")
        assert read(coded, [("content-encoding", "inv")], codings={b"inv": Reverse}).body == b"hello"

    @pytest.mark.parametrize("coding", ["br", "deflate", "gzip, gzip", "gzip,br", "größe", "☃"])
    def test_other_codings_are_refused(self, coding: str) -> None:
        reader = read(b"hello", [("content-encoding", coding)])
        assert (str(reader.failed), reader.body) == ("expected a body in gzip, br, or plain", b"")
        assert isinstance(reader.failed, BadCoding)

    def test_two_fields_with_a_coding_are_refused(self) -> None:
        assert read(b"", [*GZIP, *GZIP]).failed is not None

    def test_a_body_decoded_by_the_driver_is_not_decoded_again(self) -> None:
        reader = BodyReader(100)
        reader.read(200, [("content-encoding", "br")], b"hello", decoded=True)
        assert (reader.body, reader.failed) == (b"hello", None)

    def test_a_missing_body_is_not_refused_as_truncated(self) -> None:
        for chunk in (b"", None):
            reader = BodyReader(100)
            reader.begin(200, GZIP)
            if chunk is not None:
                reader.feed(chunk)
            reader.end()
            assert (reader.body, reader.failed) == (b"", None)

    def test_a_truncated_body_is_refused(self) -> None:
        reader = read(gzip.compress(b"hello")[:-1], GZIP)
        assert str(reader.failed) == "expected the coded body to be complete"
        assert reader.body == b""


class TestLimits:
    def test_the_limit_counts_decoded_bytes(self) -> None:
        for body, headers in ((b"x" * 101, ()), (gzip.compress(b"x" * 101), GZIP)):
            reader = read(body, headers, limit=100)
            assert isinstance(reader.failed, BodyTooLarge)
            assert str(reader.failed) == "expected at most 100 bytes"
            assert reader.body == b""
        assert read(gzip.compress(b"x" * 100), GZIP, limit=100).body == b"x" * 100

    def test_the_limit_applies_to_a_parser_too(self) -> None:
        parser = Collecting()
        reader = read(b"x" * 101, limit=100, parser=parser)
        assert isinstance(reader.failed, BodyTooLarge)

    def test_reading_stops_after_the_limit(self) -> None:
        reader = BodyReader(100)
        reader.begin(200, ())
        reader.feed(b"x" * 101)
        assert (reader.wants, reader.work()) == (True, False)
        assert not reader.wants
        reader.feed(b"more")
        assert held(reader) == 0
        assert not reader.work()
        reader.end()
        assert isinstance(reader.failed, BodyTooLarge)


class TestParsers:
    def test_a_parser_gets_small_pieces(self) -> None:
        parser = Collecting()
        reader = read(b"x" * (3 * PIECE + 1), parser=parser)
        assert [len(piece) for piece in parser.pieces] == [PIECE, PIECE, PIECE, 1]
        assert (reader.body, reader.failed) == (b"", None)

    def test_a_parser_gets_small_pieces_of_a_compressed_body_too(self) -> None:
        data = b"x" * 1_000_000
        parser, turns = Collecting(), 0
        reader = BodyReader(1_000_000, parser=parser)
        reader.begin(200, GZIP)
        reader.feed(gzip.compress(data))
        while reader.work():
            turns += 1
        reader.end()
        assert parser.close() == data
        assert max(map(len, parser.pieces)) == PIECE
        assert turns >= len(data) // PIECE

    def test_a_refusal_of_a_parser_is_remembered_and_reading_stops(self) -> None:
        parser = Collecting(refused=b"!")
        reader = BodyReader(100_000, parser=parser)
        reader.begin(200, ())
        reader.feed(b"a" * PIECE + b"!" + b"b" * 3 * PIECE)
        while reader.work():
            pass
        assert isinstance(reader.failed, InvalidDocument)
        assert reader.failed.__traceback__ is None
        assert not reader.wants
        reader.end()
        assert parser.pieces == [b"a" * PIECE]

    def test_a_parser_gets_nothing_after_its_refusal(self) -> None:
        parser = Collecting(refused=b"!")
        read(gzip.compress(b"a" * PIECE + b"!" + b"b" * 3 * PIECE), GZIP, parser=parser)
        assert parser.pieces == [b"a" * PIECE]

    def test_a_parser_gets_no_error_response(self) -> None:
        parser = Collecting()
        reader = read(b"sorry", status=503, parser=parser)
        assert (reader.body, parser.pieces) == (b"sorry", [])

    def test_a_small_document_is_read_when_it_is_complete(self) -> None:
        parser = WholeParser(bytes.decode)
        reader = read(b"hello", parser=parser)
        assert (parser.close(), reader.body) == ("hello", b"")

    def test_a_file_is_read_without_a_head(self) -> None:
        reader = BodyReader(100, parser=(parser := Collecting()))
        reader.feed(b"hello")
        reader.end()
        assert (parser.close(), reader.status, reader.failed, reader.patience) == (b"hello", 0, None, None)

    @pytest.mark.parametrize("parsed", [False, True])
    def test_a_step_decodes_one_block_at_most(self, parsed: bool) -> None:
        calls: list[int] = []

        class Noting(Reverse):
            def inflate(self, data: bytes, room: int) -> bytes:
                calls.append(room)
                return super().inflate(data * 1_000, room)

        reader = BodyReader(10_000_000, codings={b"x": Noting}, parser=Collecting() if parsed else None)
        reader.begin(200, [("content-encoding", "x")])
        reader.feed(bytes(1_000))
        more = True
        while more:
            before = len(calls)
            more = reader.work()
            assert len(calls) <= before + 1
        assert len(calls) == 16  # 1 MB
        assert max(calls) == 65_536
        reader.end()
        assert reader.failed is None

    def test_nothing_is_decoded_after_a_failure(self) -> None:
        reader = BodyReader(100, codings={b"x": Reverse})
        reader.begin(200, [("content-encoding", "x")])
        reader.feed(bytes(1_000))
        assert not reader.work()
        assert isinstance(reader.failed, BodyTooLarge)
        reader.end()

    def test_a_body_that_is_too_large_is_empty(self) -> None:
        reader = BodyReader(100)
        reader.begin(200, ())
        reader.feed(bytes(60))
        reader.work()
        reader.feed(bytes(60))
        reader.end()
        assert (type(reader.failed), reader.body) == (BodyTooLarge, b"")

    def test_it_is_complete_at_its_end_or_when_no_more_is_wanted(self) -> None:
        reader = BodyReader(10)
        reader.begin(200, ())
        reader.feed(b"{}")
        before = reader.complete
        reader.end()
        too_large = BodyReader(1)
        too_large.begin(200, ())
        too_large.feed(b"{}")
        too_large.work()
        assert (before, reader.complete, too_large.wants, too_large.complete) == (False, True, False, True)

    def test_one_chunk_may_hold_more_than_is_decoded_at_once(self) -> None:
        data = bytes(1_000_000)
        reader = read(gzip.compress(data), GZIP, limit=len(data))
        assert (reader.failed, reader.body == data) == (None, True)
        assert read(bytes(200_000), [("content-encoding", "x")], codings={b"x": Reverse}).body == b"\xff" * 200_000


class TestErrorResponses:
    """Their status is enough."""

    def test_a_readable_body_of_an_error_response_is_read(self) -> None:
        reader = read(gzip.compress(b"sorry"), GZIP, status=500)
        assert (reader.status, reader.optional, reader.body) == (500, True, b"sorry")
        assert reader.patience == 5.0

    @pytest.mark.parametrize(
        ("body", "headers"),
        [(b"x" * 101, ()), (b"nonsense", GZIP), (gzip.compress(b"x")[:-1], GZIP), (b"x", [("content-encoding", "br")])],
    )
    def test_an_unreadable_body_of_an_error_response_is_empty(self, body: bytes, headers) -> None:
        reader = read(body, headers, status=500, limit=100)
        assert (reader.body, reader.failed, reader.wants, reader.optional) == (b"", None, False, True)

    def test_the_caller_chooses_which_statuses_are_errors(self) -> None:
        assert read(b"x", status=503, statuses={200, 503}).optional is False
        assert read(b"x", status=204, statuses={200, 503}).optional is True
        assert [read(b"", status=status).optional for status in (199, 200, 299, 300)] == [True, False, False, True]


class TestDraining:
    """A body that isn't needed is read only so that the connection can be used again."""

    def test_the_body_of_a_redirect_is_drained(self) -> None:
        for status, patience in ((299, 5.0), (300, 0.2), (399, 0.2), (400, 5.0)):
            reader = BodyReader(100, statuses=(200,))
            reader.begin(status, ())
            reader.feed(b"x")
            reader.end()
            assert (reader.patience, reader.body) == (patience, b"" if patience == 0.2 else b"x")

    def test_a_drained_body_is_not_kept(self) -> None:
        reader = read(b"sorry", [("content-encoding", "br")], status=404, drain=True)
        assert (reader.body, reader.failed, reader.wants, reader.patience) == (b"", None, True, 0.2)

    def test_draining_stops_after_64_kib(self) -> None:
        reader = BodyReader(10, drain=True)
        reader.begin(404, ())
        reader.feed(b"x" * 65_535)
        assert (reader.wants, reader.work()) == (True, False)
        reader.feed(b"x")
        assert not reader.wants

    def test_a_drained_response_with_an_expected_status_keeps_its_body(self) -> None:
        assert read(b"hello", drain=True).body == b"hello"


def test_a_failure_can_be_raised() -> None:
    read(b"").check("https://a.example")
    with pytest.raises(InvalidDocument, match="no such byte"):
        read(b"!", parser=Collecting(b"!")).check("https://a.example")
    with pytest.raises(BadReply, match=r"unusable answer from https://a\.example: expected at most 1 bytes"):
        read(b"12", limit=1).check("https://a.example")


def test_names_of_fields_are_in_lower_case() -> None:
    reader = read(b"", [("ETag", '"A"'), ("X-Y", "Z")])
    assert (reader.status, reader.headers) == (200, (("etag", '"A"'), ("x-y", "Z")))


def outcome(reader: BodyReader, parser: Collecting | None) -> tuple[Any, ...]:
    """The result. If it failed, where it failed depends on the chunks."""
    if reader.failed is not None:
        return ("failed", reader.body)
    return ("read", reader.body if parser is None else parser.close(), reader.wants, reader.optional)


def held(reader: BodyReader) -> int:
    decoded = 0 if reader._body is None else reader._body.held
    return decoded + sum(map(len, reader._decoded)) + sum(map(len, reader._queue))


PLAIN = st.binary(max_size=400) | st.integers(0, 40_000).map(lambda size: b"ab" * size)
CODED = st.builds(
    lambda data, cut, tail: gzip.compress(data, mtime=0)[: cut if cut < 0 else None] + tail,
    PLAIN, st.integers(-3, 3), st.sampled_from([b"", b"\0\0", b"x", gzip.compress(b"more", mtime=0)]),
)  # fmt: skip
HEADERS = st.sampled_from([(), GZIP, (("content-encoding", "inv"),), (("content-encoding", "br"),)])
CUTS = st.lists(st.integers(0, 3_000), max_size=12)


@frozen
class Case:
    """A body that is read in pieces. `pauses`: how much is worked before each piece."""

    body: bytes
    headers: tuple[tuple[str, str], ...]
    cuts: list[int]
    pauses: list[int]
    limit: int = 80_000
    status: int = 200
    parsed: bool = True
    drain: bool = False

    def reader(self) -> tuple[BodyReader, Collecting | None]:
        parser = Collecting(b"!") if self.parsed else None
        codings = {b"inv": Reverse}
        reader = BodyReader(self.limit, codings=codings, parser=parser, statuses={200}, drain=self.drain)
        return reader, parser if self.status == 200 else None

    def pieces(self) -> Iterator[tuple[bytes, int]]:
        edges = [0, *sorted(min(cut, len(self.body)) for cut in self.cuts), len(self.body)]
        for (start, end), pause in zip(pairwise(edges), cycle(self.pauses), strict=False):
            yield self.body[start:end], pause


CASES = st.builds(
    Case, PLAIN | CODED, HEADERS, CUTS, st.lists(st.integers(0, 20), min_size=1, max_size=5),
    st.sampled_from([0, 1, 100, 5_000, 80_000]), st.sampled_from([200, 404]), st.booleans(), st.booleans(),
)  # fmt: skip


@given(CASES)
@example(Case(gzip.compress(b"x" * 80_001), GZIP, [], [3]))
@example(Case(gzip.compress(b"x" * 80_000), GZIP, [500], [3]))
@example(Case(b"x" * 20_000 + b"!" + b"x" * 20_000, (), [1_000, 2_000], [1, 9]))
def test_any_bytes_in_any_chunks_are_read_as_in_one(case: Case) -> None:
    once, parser = case.reader()
    once.read(case.status, case.headers, case.body)
    whole = outcome(once, parser)

    reader, parser = case.reader()
    reader.begin(case.status, case.headers)
    fed = 0
    for piece, pause in case.pieces():
        reader.feed(piece)
        fed += len(piece)
        for _ in range(pause):
            if not reader.work():
                assert held(reader) <= case.limit
            # One block is decoded at once.
            assert held(reader) <= fed + case.limit
    reader.end()
    assert outcome(reader, parser) == whole
    assert not reader.work()
    assert reader.failed is None or case.status == 200
    if parser is not None:
        assert max(map(len, parser.pieces), default=0) <= PIECE
        assert sum(map(len, parser.pieces)) <= case.limit


@given(PLAIN, st.sampled_from([None, "gzip", "inv"]), CUTS, st.booleans())
def test_an_encoded_body_is_decoded(data: bytes, coding: str | None, cuts: list[int], parsed: bool) -> None:
    coded = {None: data, "gzip": gzip.compress(data), "inv": bytes(255 - byte for byte in data)}
    headers = () if coding is None else (("content-encoding", coding),)
    parser = Collecting() if parsed else None
    reader = BodyReader(len(data), codings={b"inv": Reverse}, parser=parser)
    reader.begin(200, headers)
    for piece, _ in Case(coded[coding], (), cuts, [0]).pieces():
        reader.feed(piece)
        reader.work()
    reader.end()
    assert (reader.failed, reader.body if parser is None else parser.close()) == (None, data)


def test_a_bomb_is_refused_one_block_after_the_limit() -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    reader = BodyReader(100_000, parser=(parser := Collecting()))
    reader.begin(200, GZIP)
    reader.feed(bomb)
    turns, most = 0, 0
    while reader.work():
        turns, most = turns + 1, max(most, held(reader))
    assert isinstance(reader.failed, BodyTooLarge)
    assert (len(parser.close()), held(reader)) == (65_536, 0)
    assert turns == 8
    assert most <= len(bomb) + 100_000


def test_an_error_refers_to_nothing_that_was_read() -> None:
    reader = BodyReader(1_000, parser=Collecting(refused=b"!"))
    reader.begin(200, ())
    reader.feed(b"!" * 900)
    reader.end()
    error: Any = reader.failed
    assert (error.__traceback__, error.__context__, error.__cause__) == (None, None, None)
    coded = read(zlib.compress(b"x"), GZIP)
    error = coded.failed
    assert (error.__traceback__, error.__context__, error.__cause__) == (None, None, None)
