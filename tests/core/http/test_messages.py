"""Headers of messages: repeated ones, and entity tags."""

import pytest

from asap_core.http.messages import collect, matches_etag


class TestHeaders:
    def test_several_values_of_a_header_are_one_list(self) -> None:
        headers = ((b"a", b"1"), (b"b", b"2"), (b"a", b"3"))
        assert collect(headers) == {b"a": b"1, 3", b"b": b"2"}

    @pytest.mark.parametrize(
        ("value", "names"),
        [
            (b'"a"', True), (b'W/"a"', True), (b'"b", "a"', True), (b" * ", True), (b'"b"', False), (b'"a,*,b"', False),
            (b'"b,W/,a"', False), (b'*, "b"', False), (b"a", False), (b"", False),
        ],
    )  # fmt: skip
    def test_an_entity_tag_is_read_with_its_quotes(self, value, names) -> None:
        assert matches_etag([value], '"a"') is names
