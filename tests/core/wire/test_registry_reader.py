"""A registry read in pieces: cut anywhere, it's the registry read whole; any bytes give that, or one error."""

import json
from typing import Any

import pytest
from attrs import evolve
from hypothesis import example, given, strategies as st

from asap_core.errors import InvalidDocument
from asap_core.testing.strategies import json_values
from asap_core.wire import registry_reader
from asap_core.wire.codec import to_json
from asap_core.wire.json import MAX_DEPTH, NotJson, read_json, read_json_at, write_json
from asap_core.wire.registry import Registry, RegistryEntry, Skipped, decode_registry_entry, decode_registry_root
from asap_core.wire.registry_index import RegistryIndex
from asap_core.wire.registry_reader import MAX_ENTRY, MAX_SKILLS, MAX_SKIPPED, RegistryReader, read_registry

ENTRY: dict[str, Any] = {
    "id": "urn:asap:agent:a", "name": "A", "description": "", "asap_version": "0.1", "skills": ["x", "y", "x"],
    "endpoints": {"http": "https://a.example"}, "tags": ["new"],
}  # fmt: skip
ROOT = {"version": "1", "updated_at": "2026-01-01"}


def registry(*agents, **more) -> bytes:
    return json.dumps({**ROOT, "agents": list(agents), **more}).encode()


def read(data: bytes, *cuts: int) -> RegistryIndex:
    reader = RegistryReader()
    at = 0
    for cut in sorted(cuts):
        reader.feed(data[at:cut])
        at = max(at, cut)
    reader.feed(data[at:])
    return reader.close()


def seen(data: bytes, *cuts: int):
    """All that can be seen of what was read, or of why it wasn't."""
    try:
        found = read(data, *cuts)
    except InvalidDocument as error:
        return str(error), error.problems
    return found.version, found.updated_at, found.extra, found.skipped, tuple(found.agents)


@st.composite
def entries(draw):
    """Entries right and wrong, of few ids and skills."""
    changes = draw(
        st.dictionaries(
            st.sampled_from([*ENTRY, "new"]), st.one_of(json_values(), st.sampled_from([["x"], "urn:asap:agent:b"]))
        )
    )
    entry = {**ENTRY, "id": f"urn:asap:agent:{draw(st.sampled_from('abc'))}", **changes}
    for key in draw(st.sets(st.sampled_from([*ENTRY]), max_size=1)):
        del entry[key]
    return draw(st.sampled_from([entry, entry, entry, draw(json_values())]))


cuts = st.lists(st.integers(0, 3000), max_size=5)


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


# Values about which readers of JSON differ, and neighbours about which they don't.
NUMBERS = (
    *("NaN", "-NaN", "Infinity", "-Infinity", "[NaN]", '{"a":NaN}', "1e999", "-1e999", "1e308", "1e-999", "-0", "-0.0"),
    *("01", "1.", ".5", "+1", "0x1", "1e", "-", "1_000"),
)
LONG_NUMBERS = ("9" * 4_300, "9" * 4_301, "-" + "9" * 4_301, "9" * 20, "1." + "0" * 5_000)
OBJECTS = (
    *('{"a":1,"a":1}', r'{"a":1,"\u0061":2}', '[{"a":{},"a":{}}]', '{"a":1,"A":2}', '{"":1,"":2}'),
    *('{"a":{"b":1,"b":2},}', '{"a":NaN,"b":}'),
)
SURROGATES = [r'"\ud800"', r'"\udc00\ud800"', r'"\ud83d\ude00"', r'{"\ud800":1}', r'"\\ud800"', r'"\uD83Dx"']
ESCAPES = [r'"\t"', r'"\0"', r'"\x41"', r'"\/"', r'"\u00e9"', r'"\u00"', r'"\q"', r'"\"']
CHARACTERS = [f'"{character}"' for character in "\0\x01\t\n\x7f\x85\ufeff\u2028\ud800"]
AROUND = ("\ufeff1", "1\ufeff", "\xa01", "\x0b1", "1\0", "/**/1", "'a'", "a", "True", "None", "1,", ",1", "")
DEEP = (*(nested(MAX_DEPTH - depth) for depth in (4, 3, 2, 1, 0, -1)), nested(900), "[" * 2_000, "]")
ODDITIES = (*NUMBERS, *LONG_NUMBERS, *OBJECTS, *SURROGATES, *ESCAPES, *CHARACTERS, *AROUND, *DEEP)

GOOD = '{"id":"urn:asap:agent:a","name":"","description":"","asap_version":"0.1","endpoints":{}}'
ODD = GOOD[:-1] + ',"x":ODDITY}'
PLACES = (
    f'"agents":[{GOOD},{ODD}]',
    f'"agents":[{ODD},{GOOD}]',
    f'"agents":[{GOOD},ODDITY]',
    f'"x":ODDITY,"agents":[{GOOD}]',
    f'"agents":[{GOOD}],"x":ODDITY',
    f'ODDITY:1,"agents":[{GOOD}]',
)


def whole_registry(value: Any) -> Registry:
    """The expected result: a model of the reader that has the whole text."""
    if type(value) is not dict or type(value.get("agents", [])) is not list:
        raise InvalidDocument("registry", ())
    agents, skipped = [], []
    for index, item in enumerate(value.get("agents", [])):
        try:
            agents.append(decode_registry_entry(item, path=("agents", index)))
        except InvalidDocument as error:
            skipped.append(Skipped(index, error.problems))
    return evolve(decode_registry_root(value), agents=tuple(agents), skipped=tuple(skipped))


def find(registry: Registry, *, skill: str | None = None, agent_id: str | None = None) -> tuple[RegistryEntry, ...]:
    return tuple(
        entry
        for entry in registry.agents
        if (skill is None or skill in entry.skills) and (agent_id is None or entry.id == agent_id)
    )


def test_the_deepest_root_that_is_read_can_be_written() -> None:
    deepest = json.loads(nested(MAX_DEPTH))
    index = read(registry(ENTRY, more=deepest))
    assert read_registry(b"".join(index.written())).extra == {"more": deepest}
    with pytest.raises(InvalidDocument, match="at most 64"):
        read(registry(more=[deepest]))


def test_entries_are_written_a_thousand_at_a_time() -> None:
    index = read(registry(*[ENTRY] * 2_001))
    _, *pieces, _ = index.written()
    assert [piece.count(b'"id"') for piece in pieces] == [1_000, 1_000, 1]
    assert len(read(b"".join(index.written()))) == 2_001


class TestDocuments:
    @given(st.lists(entries(), max_size=5), json_values(), cuts)
    def test_pieces_give_the_same_index_as_the_whole_document(self, agents, more, places) -> None:
        data = registry(*agents, more=more)
        whole, pieces = whole_registry(read_json(data)), read(data, *places)
        assert read_registry(data) == whole
        assert (pieces.version, pieces.updated_at, pieces.extra) == (whole.version, whole.updated_at, whole.extra)
        assert tuple(pieces.agents) == whole.agents
        assert pieces.skipped == whole.skipped
        assert pieces.find() == find(whole)
        for agent_id in ("urn:asap:agent:a", "urn:asap:agent:b", "urn:asap:agent:z"):
            assert pieces.find(agent_id=agent_id) == find(whole, agent_id=agent_id)
            assert pieces.by_id(agent_id) == next(iter(find(whole, agent_id=agent_id)), None)
            for skill in ("x", "y", "z"):
                assert tuple(pieces.by_skill(skill)) == find(whole, skill=skill) == pieces.find(skill=skill)
                assert pieces.find(skill=skill, agent_id=agent_id) == find(whole, skill=skill, agent_id=agent_id)

    @given(st.lists(entries(), max_size=3), st.text(alphabet='{}[]",:\\ é\n1', max_size=12), st.integers(0, 900), cuts)
    def test_a_document_in_pieces_is_read_as_in_one(self, agents, spoilt, at, places) -> None:
        data = registry(*agents)
        data = data[:at] + spoilt.encode() + data[at:]
        assert seen(data, *places) == seen(data)

    @given(st.binary(max_size=60), cuts)
    @example(b"{", [])
    @example(b'{"agents":[NaN,{}]}', [12])
    def test_any_bytes_give_an_index_or_one_error(self, data, places) -> None:
        whole, pieces = seen(data), seen(data, *places)
        # Of two things that are wrong, the cuts decide which comes first.
        assert pieces == whole or (len(pieces) == len(whole) == 2)

    @pytest.mark.parametrize("place", PLACES)
    @given(oddity=st.sampled_from(ODDITIES), places=cuts)
    def test_each_oddity_has_one_reading(self, place, oddity, places) -> None:
        """Read whole or in pieces, from the copy that's made of it, or by another reader of JSON if it's JSON."""
        text = f'{{"version":"1","updated_at":"2026-01-01",{place.replace("ODDITY", oddity)}}}'
        data = text.encode("utf-8", "surrogatepass")
        pieces = seen(data, *places)
        assert pieces == seen(data)
        try:
            # An entry may be as deep as any text, and so may what is beside the agents.
            beside = place.startswith('"x"') or place.endswith("ODDITY")
            whole = whole_registry(read_json(data, max_depth=MAX_DEPTH + (1 if beside else 2)))
        except (NotJson, InvalidDocument):
            whole = None
        if len(pieces) == 2:
            assert whole is None
            with pytest.raises(InvalidDocument) as caught:
                read_registry(data)
            assert pieces == (str(caught.value), caught.value.problems)
            return
        registry = read_registry(data)
        assert pieces == (registry.version, registry.updated_at, registry.extra, registry.skipped, registry.agents)
        # What has no reading, or two, costs its entry.
        assert registry == whole or (whole is None and len(registry.agents) == len(registry.skipped) == 1)
        again = read_registry(b"".join(read(data, *places).written()))
        assert (again.extra, again.agents) == (registry.extra, registry.agents)
        assert read_registry(write_json(to_json(registry), max_depth=MAX_DEPTH + 2)).agents == registry.agents

    @given(st.lists(entries(), max_size=5))
    def test_invalid_json_is_refused(self, agents) -> None:
        data = registry(*agents)
        for wrong in (data[:-1], data + b"x", b"\xef\xbb\xbf" + data, b"[" + data + b"]", data + b"\xff", b""):
            with pytest.raises(InvalidDocument):
                read(wrong)
            with pytest.raises(InvalidDocument):
                read_registry(wrong)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("{}", r"\$.version"),
            ('{"agents":{}}', r"\$.agents: expected an array of entries"),
            ('{"agents":[]}', r"\$.version"),
            ('{"version":"1","version":"1"}', "unique"),
            ('{"agents":[],"agents":[]}', "unique"),
            ("{}x", "and nothing after it"),
            ('{"version":"1","agents":[]}x', "and nothing after it"),
            ('{"version":"1";"updated_at":"2026-01-01"}', "one JSON text"),
            ('{"version":"1","updated_at";"2026-01-01"}', "one JSON text"),
            ('{"version":"1","updated_at":"2026-01-01","agents":[1;2]}', "one JSON text"),
            ('{"version":"1","updated_at":"2026-01-01","agents":[1}', "one JSON text"),
            ("{1:2}", "keys are strings"),
            ('{"agents":[],}', "keys are strings|one JSON text"),
            ('{"agents":[{},]}', "one JSON text"),
            ('{"agents":[{"a":]}', "one JSON text"),
            ('{"agents":[{}', "one JSON text"),
            ('{"agents":[{"a":"\\', "one JSON text"),
            ('{"version" "1"}', "one JSON text"),
            ('{"version":NaN}', r"\$.version: expected numbers"),
            ('{"secret":NaN}', r"\$: expected numbers"),
        ],
    )
    def test_an_invalid_root_is_refused_with_what_was_expected(self, text, expected) -> None:
        with pytest.raises(InvalidDocument, match=expected) as caught:
            read(text.encode())
        assert "secret" not in str(caught.value)

    def test_bytes_that_are_not_utf_8_are_refused_at_once(self) -> None:
        reader = RegistryReader()
        with pytest.raises(InvalidDocument, match="UTF-8"):
            reader.feed(b'{"version":"\xff"')

    def test_an_entry_among_many_may_be_cut_anywhere(self) -> None:
        """Its length is its own, not that of all that came with it."""
        data = registry(*[ENTRY] * 1_000)
        assert len(data) > 2 * MAX_ENTRY
        for cut in range(len(data) - 300, len(data), 23):
            assert len(read(data, cut)) == 1_000

    def test_entries_are_read_as_they_arrive(self) -> None:
        data = registry(*[ENTRY] * 1_000)
        reader = RegistryReader()
        for start in range(0, len(data) // 2, 1_000):
            reader.feed(data[start : start + 1_000])
            assert len(reader._text) < 3_000
        assert len(reader._texts) > 450

    @pytest.mark.parametrize(("begins", "more"), [(b'"', b"x"), (b"0.", b"1"), (b"[", b"[],"), (b"1e", b"0")])
    @pytest.mark.parametrize("place", [b'"agents":[', b'"x":'])
    def test_an_endless_value_takes_bounded_memory(self, begins, more, place) -> None:
        reader = RegistryReader()
        reader.feed(b'{"version":"1",' + place + begins)
        for _ in range(100):
            reader.feed(more * 10_000)
            assert len(reader._text) < 2 * MAX_ENTRY

    @pytest.mark.parametrize(
        "number",
        ["0", "-1", "1.0000000000000002e+16", "2E5", "1.25e-7", "-0.5", "12345", "1" * 70_000, "0." + "1" * 70_000],
    )
    def test_a_number_may_be_cut_anywhere(self, number) -> None:
        before = f'{{"version":"1","updated_at":"2026-01-01","agents":[{json.dumps(ENTRY)},'
        for after in (f',{json.dumps(ENTRY)}],"x":1.5e-3}}', ']  , "x":1.5e-3, "agent":{}}'):
            data = (before + number + after).encode()
            places = range(len(before), len(data)) if len(number) < 100 else (len(before) + 1, len(before) + 69_999)
            for place in places:
                assert seen(data, place) == seen(data, place, place + 1) == seen(data)
                assert len(seen(data)[3]) == 1

    def test_an_invalid_number_is_reported_wherever_it_is_cut(self) -> None:
        for number in ("1e", "1.", "-", "1e+", "1.5e-x", "1-2", "1.2.3"):
            data = f'{{"version":"1","updated_at":"2026-01-01","x":{number},"agents":[]}}'.encode()
            for place in range(40, len(data)):
                with pytest.raises(InvalidDocument, match="one JSON text"):
                    read(data, place)

    def test_an_error_is_final(self) -> None:
        reader = RegistryReader()
        for piece in (b"[]", registry(ENTRY)):
            with pytest.raises(InvalidDocument):
                reader.feed(piece)
        with pytest.raises(InvalidDocument):
            reader.close()

    def test_an_empty_registry_is_valid(self) -> None:
        for data in (json.dumps(ROOT).encode(), registry(), json.dumps({**ROOT, "agents": []}, indent=2).encode()):
            assert (len(read(data)), repr(read(data))) == (0, "<RegistryIndex of 0 agents, 0 skipped>")


class TestEntries:
    def test_the_entries_are_a_sequence(self) -> None:
        found = read(registry(ENTRY, {**ENTRY, "name": "B"}, {**ENTRY, "name": "C"}))
        assert [entry.name for entry in found.agents] == ["A", "B", "C"]
        assert [entry.name for entry in found.agents[1:]] == ["B", "C"]
        assert found.agents[-1].name == found.by_skill("x")[2].name == "C"
        assert (len(found), repr(found.agents)) == (3, "<3 registry entries>")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('{"id":"urn:asap:agent:b","id":"urn:asap:agent:b"}', "keys that are unique within their object"),
            ('{"deep":' + "[" * 70 + "]" * 70 + "}", "at most 64 arrays and objects within each other"),
            ("[" * 20_000 + "]" * 20_000, "fewer arrays and objects within each other"),
            ("NaN", "numbers; NaN and Infinity aren't JSON"),
            ("1e999", "numbers within the range of a double"),
            ("1" * 5_000, "numbers of at most 4,300 digits"),
            (r'"\ud800"', "strings without lone surrogates (RFC 7493 §2.1)"),
            (r'{"a":"}\"\\","b":1e999}', "numbers within the range of a double"),
            ('"' + "x" * MAX_ENTRY + '"', "at most 65536 characters"),
            ('{"a":"' + "]\\\"" * MAX_ENTRY + '"}', "at most 65536 characters"),
            ('{"a":1,"a":1,"b":"' + "x" * MAX_ENTRY + '"}', "at most 65536 characters"),
            ('[{"a":"' + "x" * MAX_ENTRY + '"},NaN]', "at most 65536 characters"),
        ],
    )  # fmt: skip
    def test_an_invalid_entry_is_skipped_and_the_rest_is_read(self, text, expected) -> None:
        plain = json.dumps(ENTRY)
        data = f'{{"version":"1","updated_at":"2026-01-01","agents":[{plain},{text} ,{plain},{text}]}}'.encode()
        found = read(data)
        assert len(found) == 2
        assert [skipped.index for skipped in found.skipped] == [1, 3]
        assert {str(skipped.problems[0]) for skipped in found.skipped} == {
            f"$.agents[{index}]: expected {expected}" for index in (1, 3)
        }
        for place in (len(plain), len(plain) + 70, len(data) // 2, len(data) - 60):
            assert seen(data, place, place + 1, place + 2) == seen(data)

    def test_an_entry_invalid_before_its_end_is_skipped_wherever_it_is_cut(self) -> None:
        bad = r'{"a":{"x":1,"x":1},"b":["\\",{"}]":"\"]"}],"c":{}}'
        good = ",".join([json.dumps(ENTRY)] * 300)
        data = f'{{"version":"1","updated_at":"2026-01-01","agents":[{good},{bad},{json.dumps(ENTRY)}]}}'.encode()
        begins = data.index(b'{"a":{')
        for cut in range(begins + 18, begins + len(bad) + 2):
            found = read(data, cut)
            assert (len(found), [str(one.problems[0]) for one in found.skipped]) == (
                301,
                ["$.agents[300]: expected keys that are unique within their object"],
            )

    def test_an_entry_of_invalid_json_fails_the_whole_document(self) -> None:
        for text in ('{"a":' + "x" * 100 + "}", '{"a":x},"' + "x" * MAX_ENTRY + '"', '{"a":' + " " * MAX_ENTRY + "}}"):
            with pytest.raises(InvalidDocument):
                read(f'{{"version":"1","updated_at":"2026-01-01","agents":[{text}]}}'.encode())

    def test_a_long_entry_may_be_cut_anywhere(self) -> None:
        data = registry({"a": "\\" * MAX_ENTRY, "b": '"}' * MAX_ENTRY}, ENTRY)
        for cut in range(MAX_ENTRY * 2, MAX_ENTRY * 2 + 4):
            for more in (1, 2, 3):
                assert [skipped.index for skipped in read(data, cut, cut + more).skipped] == [0]
        with pytest.raises(InvalidDocument, match="one JSON text"):
            read(data[: MAX_ENTRY * 3])

    def test_too_many_invalid_entries_fail_the_document(self) -> None:
        assert len(read(registry(*[{}] * MAX_SKIPPED, ENTRY)).skipped) == MAX_SKIPPED
        with pytest.raises(InvalidDocument, match="at most 1000 can't be read"):
            read(registry(*[{}] * MAX_SKIPPED, ENTRY, {}))

    @given(entries())
    @example({**ENTRY, "extra": 1})
    def test_the_fast_check_of_an_entry_agrees_with_the_full_one(self, entry) -> None:
        try:
            decode_registry_entry(entry)
        except InvalidDocument:
            assert not registry_reader._is_entry(entry)
        else:
            assert registry_reader._is_entry(entry)


class TestBounds:
    """A registry uses no more memory than the documented bounds, however small its text."""

    @pytest.mark.parametrize(
        "rest",
        [
            {f"k{number}": [[]] for number in range(20_000)},
            {"k": "x" * 40_000, "l": "x" * 40_000},
            {"x" * 40_000: 1, "y" * 40_000: 2},
        ],
    )
    def test_the_size_of_all_fields_beside_the_agents_is_bounded(self, rest) -> None:
        with pytest.raises(InvalidDocument, match="at most 65536 characters beside its agents"):
            read(registry(ENTRY, **rest))
        assert read(registry(ENTRY, k="x" * 60_000)).extra == {"k": "x" * 60_000}

    def test_the_bound_is_exact_to_the_character(self) -> None:
        rest = len('"version""1""updated_at""2026-01-01""agents""k"""')
        most = "x" * (65_536 - rest)
        assert read(registry(ENTRY, k=most)).extra == {"k": most}
        with pytest.raises(InvalidDocument, match="at most 65536 characters beside its agents"):
            read(registry(ENTRY, k=most + "x"))

    @pytest.mark.parametrize("twice", [False, True], ids=["good", "that says a key twice"])
    def test_the_bound_of_an_entry_is_exact(self, twice) -> None:
        """Skipped entries are counted too, so their index is right."""
        more = ',"name":""' if twice else ""
        made = '{"id":"urn:asap:agent:a","name":"","description":"%s","asap_version":"1","endpoints":{}%s}'
        room = 65_536 - len(made % ("", more))
        for size, long in ((room, False), (room + 1, True)):
            text = made % ("x" * size, more)
            data = f'{{"version":"1","updated_at":"2026-01-01","agents":[{text}]}}'.encode()
            for cuts in ((), (100, 65_600)):
                problems = [one.problems[0].expected for one in read(data, *cuts).skipped]
                expected = (
                    ["at most 65536 characters"] if long else ["keys that are unique within their object"] * twice
                )
                assert problems == expected

    def test_the_bounds_are_as_documented(self) -> None:
        assert (MAX_ENTRY, MAX_SKILLS, MAX_SKIPPED) == (65_536, 256, 1_000)
        assert registry_reader.MAX_SKILLS_IN_ALL == 1_000_000

    def test_an_entry_has_a_bounded_number_of_skills(self) -> None:
        most = [f"s{number}" for number in range(MAX_SKILLS)]
        found = read(registry({**ENTRY, "skills": most}, {**ENTRY, "skills": [*most, "one more"]}))
        assert (len(found), [skipped.index for skipped in found.skipped]) == (1, [1])
        assert str(found.skipped[0].problems[0]) == "$.agents[1].skills: expected at most 256 skills"

    def test_all_entries_together_have_a_bound(self, monkeypatch) -> None:
        monkeypatch.setattr(registry_reader, "MAX_SKILLS_IN_ALL", 4)
        assert len(read(registry(ENTRY, ENTRY))) == 2
        with pytest.raises(InvalidDocument, match=r"agents: expected at most 4 skills in all"):
            read(registry(ENTRY, ENTRY, ENTRY))

    def test_escapes_are_skipped_in_bulk(self) -> None:
        data = registry({"a": "\\" * 500_000, "b": '"' * 1_000}, ENTRY)
        for cut in (500_001, 500_002, 500_003):
            assert seen(data, cut, cut + 1) == seen(data)
        assert registry_reader._MARKS.search("\\" * 500_000).end() == 500_000  # type: ignore[union-attr]


class TestTime:
    def test_tiny_pieces_are_not_parsed_repeatedly(self, monkeypatch) -> None:
        calls = 0
        inner = read_json_at

        def counted(text: str, at: int):
            nonlocal calls
            calls += 1
            return inner(text, at)

        monkeypatch.setattr("asap_core.wire.registry_reader.read_json_at", counted)
        data = registry({**ENTRY, "name": "x" * 20_000})
        read(data, *range(len(data)))
        assert calls < 100
