"""Which manifests must be signed, and by whom; a naive model beside it, and mutants that it must catch."""

import json
import types
from hashlib import sha512
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from asap_core.client import trust
from asap_core.client.outbound import without_credentials
from asap_core.client.trust import MAX_SIGNED, TrustedKeys, named_keys, read_published
from asap_core.codec import decode_registry_entry
from asap_core.errors import InvalidDocument, Unverified
from asap_core.signing import PublicKey, sign

A, B = "urn:asap:agent:a", "urn:asap:agent:b"
URL, OTHER_URL = "https://a.example/m", "https://b.example/m"
KEYS = tuple(PublicKey(bytes([n]) * 32) for n in (3, 4, 5))


def signature(key: PublicKey, message: bytes) -> bytes:
    digest = sha512(key.raw + message).digest()
    return digest[:63] + bytes([digest[63] & 0x0F])


def verify(key: bytes, given: bytes, message: bytes) -> bool:
    return given == signature(PublicKey(key), message)


def document(agent_id: str, key: PublicKey | None) -> Any:
    plain = {
        "id": agent_id, "name": "N", "version": "1", "description": "", "capabilities": {},
        "endpoints": {"asap": "https://a.example/asap"},
    }  # fmt: skip
    return plain if key is None else sign(plain, lambda message: signature(key, message), key)


def published(agent_id: str, key: PublicKey | None) -> Any:
    return read_published(json.dumps(document(agent_id, key)).encode())


def entry(**extra: Any) -> Any:
    return decode_registry_entry(
        {"id": A, "name": "", "description": "", "endpoints": {}, "asap_version": "0.1", **extra}
    )


KEY = st.sampled_from([*KEYS, None])
WORLDS = st.fixed_dictionaries(
    {
        "pinned": st.dictionaries(st.sampled_from([A, B]), st.lists(st.sampled_from(KEYS), min_size=1, max_size=2)),
        "named": st.none() | st.tuples(st.sampled_from([URL, OTHER_URL]), st.sampled_from([A, B]), st.lists(KEY)),
        "required": st.booleans(),
        "agent": st.sampled_from([A, B]),
        "signer": KEY,
    }
)


def law(module: Any, world: Any) -> None:
    """Who pins an agent's key gets nothing else; who doesn't, what a registry's entry says; else it's as required."""
    keys = module.TrustedKeys(
        {urn: [str(key) for key in pinned] for urn, pinned in world["pinned"].items()},
        require_signed=world["required"],
        verify=verify,
    )
    counting = world["pinned"].get(world["agent"])
    if world["named"] is not None:
        url, agent, named = world["named"]
        named = tuple(key for key in named if key is not None)
        keys.name(url, agent, named)
        if counting is None and (url, agent) == (URL, world["agent"]):
            counting = named
    came = published(world["agent"], world["signer"])
    good = world["signer"] in counting if counting else not world["required"]
    if not good:
        with pytest.raises(Unverified) as caught:
            keys.admit(URL, came)
        assert (caught.value.url, caught.value.agent_id) == (without_credentials(URL), world["agent"])
        return
    admitted = keys.admit(URL, came)
    assert admitted.manifest.id == world["agent"]
    assert admitted.key == (world["signer"] if counting else None)
    assert keys.admit(URL, admitted) == admitted
    if counting:
        keys.clear()
        keys.name(URL, world["agent"], ())
        other = KEYS[(KEYS.index(world["signer"]) + 1) % 3]
        if not world["pinned"].get(world["agent"]):
            keys.name(URL, world["agent"], (other,))
            with pytest.raises(Unverified, match="isn't a trusted key of this agent"):
                keys.admit(URL, admitted)


@given(WORLDS)
def test_only_what_counts_is_let_in(world: Any) -> None:
    law(trust, world)


MUTANTS = {
    "pins don't count": ("if pinned is not None:", "if False:"),
    "a registry overrules pins": ("if pinned is not None:", "if pinned is not None and not self._named:"),
    "any agent's keys count": ("if named_id == agent_id else ()", ""),
    "nothing is required": ("if self._require_signed:", "if False:"),
    "what was verified once is good for ever": ("and published.key in keys", ""),
    "the judgement doesn't matter": ("raise Unverified(without_credentials(url), agent_id, w", "return published, (w"),
    "the key isn't kept": (", key=judgement.key)", ")"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_the_law_catches(name: str) -> None:
    before, after = MUTANTS[name]
    source = Path(str(trust.__file__)).read_text("utf-8")
    assert source.count(before) == 1
    mutant = types.ModuleType("mutant")
    exec(compile(source.replace(before, after), "mutant", "exec"), mutant.__dict__)

    @settings(database=None, max_examples=500, report_multiple_bugs=False)
    @given(WORLDS)
    def run(world: Any) -> None:
        law(mutant, world)

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run()


def test_what_came_is_replaced_by_what_was_signed() -> None:
    wrapper = document(A, KEYS[0])
    del wrapper["manifest"]["supported_versions"]
    wrapper["manifest"]["signature"] = "smuggled"
    came = read_published(json.dumps(wrapper).encode())
    assert (came.manifest.supported_versions, came.manifest.signature) == (None, "smuggled")
    admitted = TrustedKeys({A: str(KEYS[0])}, require_signed=True, verify=verify).admit(URL, came)
    assert (admitted.manifest.supported_versions, admitted.manifest.signature) == (("2.2",), None)


def test_one_that_would_take_too_long_is_not_verified() -> None:
    wrapper = document(A, KEYS[0])
    data = json.dumps(wrapper).encode()
    keys = TrustedKeys({A: str(KEYS[0])}, require_signed=False, verify=verify)
    assert keys.admit(URL, read_published(data.ljust(MAX_SIGNED))).key == KEYS[0]
    with pytest.raises(Unverified, match="longer than the 65536 bytes that are verified"):
        keys.admit(URL, read_published(data.ljust(MAX_SIGNED + 1)))
    # Of an agent without trusted keys nothing is verified.
    others = json.dumps(document(B, KEYS[0])).encode()
    assert keys.admit(URL, read_published(others.ljust(MAX_SIGNED + 1))).key is None


def test_what_a_registry_said_is_forgotten_with_its_url() -> None:
    keys = TrustedKeys({}, require_signed=False, verify=verify)
    keys.name(URL, A, KEYS[:1])
    with pytest.raises(Unverified, match=f"the manifest of {A} at .*443/m isn't verified: it isn't signed"):
        keys.admit(URL, published(A, None))
    keys.forget(URL)
    keys.forget(URL)
    assert keys.admit(URL, published(A, None)).key is None


@pytest.mark.parametrize("pinned", [{"nobody": str(KEYS[0])}, {A: "x"}, {A: []}])
def test_pins_that_are_none_are_refused(pinned: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        TrustedKeys(pinned, require_signed=False, verify=verify)


def test_a_registry_names_keys() -> None:
    assert named_keys(entry()) == named_keys(entry(public_key=None)) == ()
    assert named_keys(entry(public_key=str(KEYS[0]))) == KEYS[:1]
    assert named_keys(entry(public_key=list(map(str, KEYS)))) == KEYS
    wrongs: list[Any] = ["", 7, [], {}, ["x"]]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="expected"):
            named_keys(entry(public_key=wrong))


@given(st.binary(max_size=50))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(InvalidDocument, match="not a valid manifest"):
        read_published(data)
