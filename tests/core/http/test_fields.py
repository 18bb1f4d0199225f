"""Law: what stands in a quoted-string separates nothing, and what can't be read is never guessed at (RFC 9110 §5.6)."""

import pytest
from hypothesis import given, strategies as st

from asap_core.http.fields import CHALLENGE_SCHEME, challenges, last_members, members, parameters

words = st.text("abcXYZ019!#$%&'*+.^_`|~-", min_size=1, max_size=8)
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126) | st.sampled_from('\t\\",;= \xff'), max_size=12)
values = words | texts
anything = st.text(st.characters(max_codepoint=255)) | st.text('",;= \\ab', max_size=40)


def written(value):
    """A value as a token if it is one, else as a quoted-string."""
    if value.isascii() and value and all(char.isalnum() or char in "!#$%&'*+.^_`|~-" for char in value):
        return value
    return '"' + value.replace("\\", r"\\").replace('"', r"\"") + '"'


pairs = st.dictionaries(words.map(str.lower), values, min_size=1, max_size=4)


def joined(pairs, separator):
    return separator.join(f"{name}={written(value)}" for name, value in pairs.items())


@given(st.lists(pairs, min_size=1, max_size=4), st.sampled_from([",", ", ", " ,\t"]))
def test_members_are_read_as_they_were_written(listed, comma) -> None:
    read = last_members(comma.join(joined(each, "; ") for each in listed))
    assert [parameters(each or "") for each in read] == listed[::-1]
    assert [parameters(each) for each in members(comma.join(joined(each, "; ") for each in listed))] == listed


@given(anything, pairs)
def test_text_further_left_does_not_change_how_a_member_is_read(left, member) -> None:
    assert next(last_members(f"{left},{joined(member, ';')}")) == joined(member, ";").strip()


@given(anything)
def test_any_text_gets_an_answer(text) -> None:
    read = list(last_members(text))
    # Every member is there once, whatever separates them; where the reading ended, something is left.
    found = [each for each in read if each is not None]
    assert len(found) <= text.count(",") + 1
    assert (None in read) == (read[-1] is None)
    assert members(text) == ([] if None in read else found[::-1])
    parameters(text)
    assert all(CHALLENGE_SCHEME in each for each in challenges(text))


@pytest.mark.parametrize("piece", ['"', '\\"', "a", " ", ",", ";", "a=", 'a="', "\\", "a ", '"\\', "a=b "])
def test_long_texts_take_linear_time(piece) -> None:
    text = piece * 100_000
    assert len(list(last_members(text))) <= len(text) + 1
    members(text)
    parameters(text)
    assert len(challenges(text)) <= len(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        (";", {}),
        ("a=b", {"a": "b"}),
        ("A=b;", {"a": "b"}),
        ('a="b;c=d"', {"a": "b;c=d"}),
        (r'a="\"\\"', {"a": '"\\'}),
        ("a=", {"a": ""}),
        ('a=""', {"a": ""}),
        ("a", None),
        ("a=b c", None),
        ("a=b;a=b", None),
        ("a=b;A=c", None),
        ('a="b', None),
        ('a="b"c', None),
        ('a=b"c"', None),
        ("a=b,c=d", None),
        ("a =b", None),
        ("=b", None),
        ('a="\n"', None),
    ],
)
def test_parameters_are_read(text, found) -> None:
    assert parameters(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("Bearer", [("bearer", {})]),
        ('Bearer realm="a, DPoP error=x", error=y', [("bearer", {"realm": "a, DPoP error=x", "error": "y"})]),
        ('Basic realm="x", DPoP algs="ES256"', [("basic", {"realm": "x"}), ("dpop", {"algs": "ES256"})]),
        ("Negotiate YWJj==, DPoP", [("negotiate", {}), ("dpop", {})]),
        ("DPoP a = b ,c= d", [("dpop", {"a": "b", "c": "d"})]),
        ('DPoP a="b" c="d"', [("dpop", {"a": "b", "c": "d"})]),  # without the comma, as some write it
        ("DPoP a=b, A=c", [("dpop", {"a": "b"})]),
        (",, DPoP ,, a=b,", [("dpop", {"a": "b"})]),
        ("a=b", []),
        ('DPoP a="b, c=d', [("dpop", {})]),
        ('DPoP a="b"c=d', [("dpop", {})]),
    ],
)
def test_challenges_are_read(text, found) -> None:
    assert challenges(text) == [{CHALLENGE_SCHEME: scheme, **given_} for scheme, given_ in found]
