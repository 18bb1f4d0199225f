"""Messages as values: requests check their types; headers that are repeated, and entity tags."""

from typing import Any

import pytest

from asap_core.http.messages import Request, Response, collect, json_response, matches_etag


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
