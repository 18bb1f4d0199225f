"""JSON, read so strictly that two readers can't disagree, and written so that every reader can read it."""

import importlib.util
import json
import math
import struct
import sys
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, strategies as st

from asap_core.testing import json_values, request_bodies
from asap_core.wire import json as jsontext
from asap_core.wire.json import MAX_DEPTH, MOST_DEPTH, NotJson, canonical_json, read_json, stable_json, write_json
from asap_core.wire.json_values import NotWritable

HAS = "values that JSON has (objects, arrays, strings, numbers, true, false, null)"

BAD = [
    b"",
    b"not json",
    b"\xef\xbb\xbf1",
    b'"\xff"',
    b'{"a":1,"a":1}',
    b'{"a":{"b":[{"c":1,"c":2}]}}',
    b'{"a":1,"\\u0061":2}',
    b"NaN",
    b"[Infinity]",
    b"-Infinity",
    b"1e999",
    b'"\\ud800"',
    b'"\\uDC00x"',
    b'{"\\ud800":1}',
    b"1" * 5000,
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"[" * 65 + b"]" * 65,
    b"1 2",
    b"01",
    b"'a'",
    b'"\x01"',
]


@pytest.fixture(params=["msgspec", "without msgspec"])
def both_ways(request, monkeypatch) -> None:
    if request.param != "msgspec":
        monkeypatch.setattr(jsontext, "msgspec", None)


@pytest.mark.usefixtures("both_ways")
class TestReading:
    @pytest.mark.parametrize("data", BAD, ids=lambda data: repr(data[:20]))
    def test_invalid_texts_are_refused(self, data) -> None:
        with pytest.raises(NotJson):
            read_json(data)

    @pytest.mark.parametrize(
        ("data", "value"),
        [
            (b"null", None),
            (b" [1, 2.5, -0] \n", [1, 2.5, 0]),
            (b'{"a":"\\u00e9\\ud83d\\ude00"}', {"a": "é😀"}),
            ('{"é":"😀"}'.encode(), {"é": "😀"}),
            (b"123456789012345678901234567890", 123456789012345678901234567890),
            (b"[" * 64 + b"]" * 64, eval("[" * 64 + "]" * 64)),
            (b'"\\ud83d\\ude00"', "😀"),
            (b"[" + b"[]," * 100 + b"[]]", [[]] * 101),
            (b'"' + b"{[" * 100 + b'"', "{[" * 100),
        ],
    )
    def test_valid_texts_are_read(self, data, value) -> None:
        assert read_json(data) == value

    @given(st.binary(max_size=100) | request_bodies())
    def test_any_bytes_are_read_or_refused(self, data) -> None:
        refused = "expected nothing"
        try:
            read_json(data)
        except NotJson as error:
            refused = str(error)
        assert refused.startswith("expected ")

    def test_the_caller_chooses_the_depth(self) -> None:
        assert read_json(b"[[1]]", max_depth=2) == [[1]]
        with pytest.raises(NotJson, match="at most 1 "):
            read_json(b"[[1]]", max_depth=1)

    @given(json_values())
    def test_written_values_are_read_back(self, value) -> None:
        assert read_json(write_json(value)) == value
        assert read_json(json.dumps(value).encode()) == value
        assert read_json(stable_json(value)) == value


class TestFastAndSlowReaders:
    @given(request_bodies() | st.binary(max_size=50) | st.text().map(lambda text: json.dumps(text).encode()))
    def test_both_readers_decide_alike_on_any_bytes(self, data) -> None:
        fast = jsontext._read_fast(data)
        if fast is not jsontext._UNDECIDED:
            assert repr(jsontext._read_slowly(data)) == repr(fast)

    @pytest.mark.parametrize("data", BAD, ids=lambda data: repr(data[:20]))
    def test_the_fast_reader_accepts_no_text_that_the_slow_one_refuses(self, data) -> None:
        fast = jsontext._read_fast(data)
        if fast is not jsontext._UNDECIDED:  # depth is judged after either of them
            assert jsontext._read_slowly(data) == fast


@pytest.mark.usefixtures("both_ways")
class TestWriting:
    @pytest.mark.parametrize(
        "value", [math.nan, math.inf, {1, 2}, ..., b"bytes", "\ud800", {"a": [math.nan]}, 1j], ids=repr
    )
    def test_a_value_that_json_cannot_express_is_refused(self, value) -> None:
        with pytest.raises(ValueError, match=r"expected|Out of range|surrogates"):
            write_json(value)

    def test_a_cycle_is_refused(self) -> None:
        cycle: Any = []
        cycle.append(cycle)
        with pytest.raises(ValueError, match=r"expected|Circular"):
            write_json(cycle)

    def test_a_very_deep_value_is_refused(self) -> None:
        deep: Any = []
        for _ in range(100_000):
            deep = [deep]
        with pytest.raises(ValueError, match="expected"):
            write_json(deep)

    def test_tuples_become_arrays(self) -> None:
        assert write_json({"a": (1, (2,))}) == b'{"a":[1,[2]]}'

    def test_equal_values_give_equal_stable_bytes(self) -> None:
        assert stable_json({"b": 1, "a": [{"d": 1, "c": 2}]}) == stable_json({"a": [{"c": 2, "d": 1}], "b": 1})


class TestCanonicalJson:
    """RFC 8785: its sample and the numbers of its appendix B."""

    def test_the_sample_of_rfc_8785_section_3_2_2_is_reproduced(self) -> None:
        value = {
            "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
            "string": '€$\u000f\nA\'B"\\\\"/',
            "literals": [None, True, False],
        }
        expected = (
            '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
            '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
        )
        assert canonical_json(value).decode() == expected

    @pytest.mark.parametrize(
        ("bits", "text"),
        [
            ("0000000000000000", "0"),
            ("8000000000000000", "0"),
            ("0000000000000001", "5e-324"),
            ("8000000000000001", "-5e-324"),
            ("7fefffffffffffff", "1.7976931348623157e+308"),
            ("ffefffffffffffff", "-1.7976931348623157e+308"),
            ("4340000000000000", "9007199254740992"),
            ("c340000000000000", "-9007199254740992"),
            ("4430000000000000", "295147905179352830000"),
            ("44b52d02c7e14af5", "9.999999999999997e+22"),
            ("44b52d02c7e14af6", "1e+23"),
            ("44b52d02c7e14af7", "1.0000000000000001e+23"),
            ("444b1ae4d6e2ef4e", "999999999999999700000"),
            ("444b1ae4d6e2ef4f", "999999999999999900000"),
            ("444b1ae4d6e2ef50", "1e+21"),
            ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
            ("3eb0c6f7a0b5ed8d", "0.000001"),
            ("41b3de4355555553", "333333333.3333332"),
            ("41b3de4355555554", "333333333.33333325"),
            ("41b3de4355555555", "333333333.3333333"),
            ("41b3de4355555556", "333333333.3333334"),
            ("41b3de4355555557", "333333333.33333343"),
            ("becbf647612f3696", "-0.0000033333333333333333"),
            ("43143ff3c1cb0959", "1424953923781206.2"),
        ],
    )
    def test_the_numbers_of_rfc_8785_appendix_b_are_reproduced(self, bits, text) -> None:
        (number,) = struct.unpack(">d", bytes.fromhex(bits))
        assert canonical_json(number).decode() == text

    def test_keys_are_sorted_by_utf_16(self) -> None:
        keys = ["€", "\r", "\ufb33", "1", "😀", "\x80", "ö"]
        expected = ["\r", "1", "\x80", "ö", "€", "😀", "\ufb33"]
        assert list(json.loads(canonical_json(dict.fromkeys(keys, 1)))) == expected

    @pytest.mark.parametrize(
        ("value", "path", "expected"),
        [
            ({1: 2}, (), "keys that are strings, not int"),
            ({"a": [0, {None: 2}]}, ("a", 1), "keys that are strings, not NoneType"),
            ({"1": 1, 1: 2}, (), "keys that are strings, not int"),
            ({("a",): 1}, (), "keys that are strings, not tuple"),
            ({b"a": 1}, (), "keys that are strings, not bytes"),
            ({"a": [math.nan]}, ("a", 0), "finite numbers; NaN and Infinity aren't JSON"),
            ([-math.inf], (0,), "finite numbers; NaN and Infinity aren't JSON"),
            ({"a": 2**53}, ("a",), "integers within ±(2**53 - 1)"),
            (-(2**53), (), "integers within ±(2**53 - 1)"),
            ({"a": "\ud800"}, ("a",), "strings without lone surrogates (RFC 7493 §2.1)"),
            ({"\ud800": 1}, (), "strings without lone surrogates (RFC 7493 §2.1)"),
            *(
                ({"a": [value]}, ("a", 0), f"{HAS}, not {type(value).__name__}")
                for value in ({1}, ..., b"a", 1j, Decimal(1), date(2026, 1, 1))
            ),
        ],
    )
    def test_a_value_without_a_canonical_form_is_refused_with_its_path(self, value, path, expected) -> None:
        with pytest.raises(NotWritable) as caught:
            canonical_json(value)
        assert (caught.value.path, caught.value.expected) == (path, expected)

    def test_a_cycle_has_no_canonical_form(self) -> None:
        endless: Any = {}
        endless["a"] = [endless]
        with pytest.raises(NotWritable, match="fewer arrays and objects") as caught:
            canonical_json(endless)
        assert len(caught.value.path) == MAX_DEPTH
        with pytest.raises(NotWritable, match="integers within"):
            canonical_json(10**5_000)
        deep: Any = 1
        for _ in range(MAX_DEPTH):
            deep = [deep]
        assert read_json(canonical_json(deep)) == deep
        assert canonical_json(deep) == write_json(deep)
        with pytest.raises(NotWritable, match="fewer arrays and objects"):
            canonical_json([deep])

    @given(json_values())
    def test_canonical_json_is_json_of_the_same_value(self, value) -> None:
        try:
            text = canonical_json(value)
        except ValueError:
            return  # an integer of 2**53: allowed in JSON, not here
        again = json.loads(text, parse_int=lambda digits: int(digits) if abs(int(digits)) < 2**53 else float(digits))
        assert again == value
        assert canonical_json(again) == text


def test_the_module_works_without_msgspec(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    spec: Any = importlib.util.spec_from_file_location("without_msgspec", jsontext.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.msgspec is None
    assert module.read_json(module.write_json({"a": [1]})) == {"a": [1]}


@pytest.mark.parametrize("slowly", [False, True])
@given(most=st.integers(1, MOST_DEPTH), depth=st.integers(1, 2 * MOST_DEPTH))
def test_any_depth_up_to_the_limit_is_read_and_no_more(slowly, most, depth) -> None:
    # A space at the end sends it the slow way.
    text = b"[" * depth + b"]" * depth + b" " * slowly
    if depth <= most:
        read_json(text, max_depth=most)
    else:
        with pytest.raises(NotJson, match="within each other"):
            read_json(text, max_depth=most)


LONG = "x" * jsontext.COUNTED


class TestLongTextsOfFewParts:
    """They are written without being read again."""

    @given(json_values())
    def test_they_are_written_as_shorter_ones(self, value) -> None:
        assert write_json([LONG, value]) == b'["%b",%b]' % (LONG.encode(), write_json(value))
        assert write_json({"a": LONG, "b": value}) == b'{"a":"%b","b":%b}' % (LONG.encode(), write_json(value))

    @pytest.mark.parametrize(
        "value",
        [math.nan, -math.inf, {1: "a", "1": "b"}, {1, 2}, "\ud800", Decimal(1), {"a": [b"bytes"]}, [object()]],
    )
    def test_what_is_not_json_is_refused(self, value) -> None:
        with pytest.raises(NotWritable):
            write_json({"text": LONG, "value": value})

    def test_they_are_no_deeper_than_others(self) -> None:
        assert write_json([[LONG]], max_depth=2) == b'[["%b"]]' % LONG.encode()
        with pytest.raises(NotWritable):
            write_json([[[LONG]]], max_depth=2)

    def test_cycles_are_refused(self) -> None:
        cycle: list[Any] = [LONG]
        cycle.append(cycle)
        with pytest.raises(NotWritable):
            write_json(cycle)

    @pytest.mark.parametrize("count", [61, 62, 63, 64, 200])
    def test_any_number_of_parts_is_written(self, count) -> None:
        value = [LONG, {"1": 1, "b": [1.5] * count}]
        assert json.loads(write_json(value)) == value
        with pytest.raises(NotWritable):
            write_json([LONG, {"b": [1.5] * count, 1: 1, "1": 2}])
