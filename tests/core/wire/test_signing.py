"""Signed manifests: only what was signed, by a key that counts, is ever taken."""

import json
import types
from base64 import b64encode
from hashlib import sha512
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from asap_core.errors import InvalidDocument
from asap_core.wire import signing
from asap_core.wire.codec import decode_manifest, to_json
from asap_core.wire.json import canonical_json, read_json
from asap_core.wire.signing import (
    MAX_KEYS,
    Broken,
    OtherKey,
    PublicKey,
    SignedManifest,
    Unreadable,
    Unsigned,
    Verified,
    decode_signed,
    judge,
    read_keys,
    signed_bytes,
    why_not,
)

# --- Ed25519 as RFC 8032 §5.1 writes it: slow, and enough for an oracle ----------------------------------------------

P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
IDENTITY = (0, 1)


def add(a, b):
    (x1, y1), (x2, y2) = a, b
    t = D * x1 * x2 * y1 * y2
    return (
        (x1 * y2 + x2 * y1) * pow(1 + t, -1, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - t, -1, P) % P,
    )


def times(n: int, point):
    total = IDENTITY
    while n:
        if n & 1:
            total = add(total, point)
        point, n = add(point, point), n >> 1
    return total


def point_of(raw: bytes):
    number = int.from_bytes(raw, "little")
    sign_bit, y = number >> 255, number & (2**255 - 1)
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    if x * x % P != square:
        return None
    return (x if x & 1 == sign_bit else -x % P), y


BASE = point_of((4 * pow(5, -1, P) % P).to_bytes(32, "little"))


def ed25519(key: bytes, signature: bytes, message: bytes) -> bool:
    a, r = point_of(key), point_of(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    h = int.from_bytes(sha512(signature[:32] + key + message).digest(), "little")
    return a is not None and r is not None and times(s, BASE) == add(r, times(h, a))


# Made by the reference, 2.5.10, with the private key 00 01 02 … 1f: the seed of its tests and of ours.
THEIRS: Any = json.loads(
    '{"manifest":{"id":"urn:asap:agent:a","name":"Ä€😀","version":"1.0.0","description":"","capabilities":{'
    '"asap_version":"2.2","skills":[{"id":"e","description":"","input_schema":{"maximum":1e+21,"b":0.1},'
    '"output_schema":null}],"state_persistence":false,"streaming":false,"mcp_tools":[],"hardware":{"class":'
    '"edge_accelerator","model":null,"io":["gpio"]},"inference":{"modes":["cloud"],"local_models":[{"id":"m",'
    '"quantization":null,"throughput_tokens_per_second":10.0}]}},"endpoints":{"asap":"http://x/asap","events":null},'
    '"supported_versions":["2.2"],"auth":{"schemes":["Bearer"],"oauth2":null},"signature":null,"sla":{"availability":'
    '"99%","max_latency_p95_ms":null,"max_error_rate":null,"support_hours":null},"verification":{"status":"verified",'
    '"verified_at":null},"ttl_seconds":300},"signature":{"alg":"ed25519","signature":'
    '"UFVHLwdcAyYaBEH2zM9LiZwX1I4/4e8XB2MAEvP5kMLyNP7KRxm5CpehKPeXl1oVxZLPdoBY3TvXH1IFjJtLCQ==",'
    '"trust_level":"self-signed"},"public_key":"A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="}'
)
THEIR_KEY = PublicKey.read(THEIRS["public_key"])


# --- a scheme that's as unforgeable, and quick: who knows the public key can sign, and nobody here does otherwise ----


def toy_signature(key: bytes, message: bytes) -> bytes:
    digest = sha512(key + message).digest()
    return digest[:63] + bytes([digest[63] & 0x0F])  # S below the group order


def toy(key: bytes, signature: bytes, message: bytes) -> bool:
    return signature == toy_signature(key, message)


KEY, NEXT, STRANGERS = (PublicKey(bytes([n]) * 32) for n in (3, 4, 5))
PLAIN: Any = {
    "id": "urn:asap:agent:a", "name": "A", "version": "1.0.0", "description": "",
    "capabilities": {"skills": [{"id": "e", "description": ""}], "hardware": {"class": "sbc"}},
    "endpoints": {"asap": "https://a.example/asap"},
}  # fmt: skip


def signed_by(key: PublicKey, document=PLAIN, module=signing):
    return module.sign(document, lambda message: toy_signature(key.raw, message), key)


class TestKeys:
    def test_a_key_has_one_spelling(self) -> None:
        assert PublicKey.read(str(KEY)) == KEY
        assert repr(KEY) == "PublicKey()"
        assert read_keys(str(KEY)) == (KEY,)
        assert read_keys([str(KEY), str(NEXT)]) == (KEY, NEXT)

    @pytest.mark.parametrize(
        "text",
        [
            None, 7, b"", "", "x", "é" * 44, str(KEY)[:-1], str(KEY) + "=", str(KEY) + "\n", " " + str(KEY),
            str(KEY).replace("A", "-"), b64encode(b"k" * 31).decode(), b64encode(b"k" * 33).decode(),
            str(KEY)[:-2] + "N=",  # other bits after the last byte: the same bytes, written otherwise
            "A" * 5000,
        ],
    )  # fmt: skip
    def test_other_spellings_are_refused(self, text) -> None:
        with pytest.raises(ValueError, match="expected an Ed25519 public key"):
            PublicKey.read(text)

    @pytest.mark.parametrize("given", [[], None, 7, {}, [str(KEY)] * (MAX_KEYS + 1)])
    def test_no_keys_and_too_many_keys_are_refused(self, given) -> None:
        with pytest.raises(ValueError, match="expected one public key in base64, or 1 to 8"):
            read_keys(given)

    def test_all_points_of_small_order_are_refused(self) -> None:
        """All points whose order divides 8, found from one of order 8; all other ways to write them are ≥ the prime."""
        low = next(
            point
            for y in range(2, 60)
            if (found := point_of(y.to_bytes(32, "little"))) and times(4, point := times(L, found)) != IDENTITY
        )
        small = {times(n, low) for n in range(8)}
        assert len(small) == 8
        assert {y for _, y in small} == signing._SMALL_ORDER
        for _, y in small:
            for sign_bit in (0, 1 << 255):
                with pytest.raises(ValueError, match="small order"):
                    PublicKey((y + sign_bit).to_bytes(32, "little"))

    @pytest.mark.parametrize("y", range(P, 2**255))
    def test_a_noncanonical_point_is_refused(self, y: int) -> None:
        for sign_bit in (0, 1 << 255):
            with pytest.raises(ValueError, match="expected"):
                PublicKey((y + sign_bit).to_bytes(32, "little"))

    def test_a_key_of_another_length_is_refused(self) -> None:
        for raw in (b"", b"k" * 31, b"k" * 33, "k" * 32):
            with pytest.raises(ValueError, match="expected"):
                PublicKey(raw)  # type: ignore[arg-type]  # what types rule out

    def test_the_oracle_agrees_with_the_vectors_of_rfc_8032(self) -> None:
        """RFC 8032 §7.1, test 2."""
        key = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
        signature = bytes.fromhex(
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        )
        assert ed25519(key, signature, b"\x72")
        assert not ed25519(key, signature, b"\x73")


class TestReferenceSignature:
    def test_the_references_signature_is_valid(self) -> None:
        verdict = judge(THEIRS, [KEY, THEIR_KEY], ed25519)
        assert isinstance(verdict, Verified)
        assert (verdict.key, verdict.manifest.name) == (THEIR_KEY, "Ä€😀")
        hardware = verdict.manifest.capabilities.hardware
        assert hardware is not None
        assert hardware["class"] == "edge_accelerator"

    def test_the_references_signature_is_over_these_bytes(self) -> None:
        text = signed_bytes(THEIRS["manifest"]).decode()
        assert text.startswith(
            '{"auth":{"oauth2":null,"schemes":["Bearer"]},"capabilities":{"asap_version":"2.2","hard'
        )
        assert '"hardware":{"class_":"edge_accelerator","io":["gpio"],"model":null}' in text
        assert '"throughput_tokens_per_second":10}' in text
        assert '"signature"' not in text

    def test_the_signature_is_valid_if_default_values_are_omitted(self) -> None:
        def bare(value):
            if type(value) is dict:
                return {key: bare(item) for key, item in value.items() if item is not None}
            return [bare(item) for item in value] if type(value) is list else value

        document = bare(THEIRS["manifest"])
        del document["supported_versions"], document["capabilities"]["streaming"], document["ttl_seconds"]
        verdict = judge({**THEIRS, "manifest": document}, [THEIR_KEY], ed25519)
        assert isinstance(verdict, Verified)
        # Read from what was signed, not from what came.
        assert verdict.manifest.supported_versions == ("2.2",)


class TestTheWrapper:
    def test_the_wrapper_is_read(self) -> None:
        wrapper = {**signed_by(KEY), "more": 1}
        signed = decode_signed(wrapper)
        assert isinstance(signed, SignedManifest)
        assert (signed.public_key, signed.trust_level, len(signed.signature)) == (KEY, "self-signed", 64)
        unnamed = decode_signed({**wrapper, "public_key": None})
        assert unnamed is not None
        assert unnamed.public_key is None
        assert decode_signed(PLAIN) is decode_signed(None) is decode_signed([]) is None

    @pytest.mark.parametrize(
        ("key", "value", "path"),
        [
            ("alg", "ed448", "$.signature.alg"),
            ("alg", None, "$.signature.alg"),
            ("signature", None, "$.signature.signature"),
            ("signature", "", "$.signature.signature"),
            ("signature", "A" * 88, "$.signature.signature"),
            ("signature", b64encode(bytes(63)).decode(), "$.signature.signature"),
            # S + L says the same to a verifier that doesn't look (RFC 8032 §8.4).
            ("signature", b64encode(bytes(32) + L.to_bytes(32, "little")).decode(), "$.signature.signature"),
            ("trust_level", 7, "$.signature.trust_level"),
            ("trust_level", "v" * 65, "$.signature.trust_level"),
        ],
    )
    def test_an_invalid_signature_object_is_refused_with_its_path(self, key: str, value, path: str) -> None:
        wrapper = signed_by(KEY)
        wrapper["signature"][key] = value
        with pytest.raises(InvalidDocument) as caught:
            decode_signed(wrapper)
        assert [problem.json_path for problem in caught.value.problems] == [path]
        verdict = judge(wrapper, [KEY], toy)
        assert isinstance(verdict, Unreadable)
        assert why_not(verdict) == str(caught.value)

    def test_an_invalid_part_of_the_wrapper_is_refused_with_its_path(self) -> None:
        for wrong, path in (({"signature": "x"}, "$.signature"), ({"public_key": "x"}, "$.public_key")):
            with pytest.raises(InvalidDocument) as caught:
                decode_signed({**signed_by(KEY), **wrong})
            assert [problem.json_path for problem in caught.value.problems] == [path]

    @given(st.binary(max_size=200) | st.just(json.dumps(signed_by(KEY)).encode()), st.data())
    def test_any_wrapper_gets_a_verdict(self, data: bytes, draw) -> None:
        try:
            value = read_json(data)
        except ValueError:
            return
        if type(value) is dict:
            name = draw.draw(st.sampled_from([*value, "x"]))
            value[name] = draw.draw(st.none() | st.integers() | st.text() | st.just({}) | st.just([]))
        try:
            verdict = judge(value, [KEY], toy)
        except InvalidDocument:
            return
        assert isinstance(verdict, Verified | Unsigned | Unreadable | OtherKey | Broken)


class TestSigning:
    def test_a_signed_manifest_is_verified_and_published_whole(self) -> None:
        wrapper = signed_by(KEY)
        assert wrapper["manifest"]["capabilities"]["hardware"] == {"class": "sbc", "model": None, "io": []}
        assert wrapper["manifest"]["supported_versions"] == ["2.2"]
        verdict = judge(wrapper, [KEY], toy)
        assert verdict == Verified(decode_manifest(wrapper["manifest"]), KEY)
        assert why_not(verdict) is None
        assert signed_by(KEY, wrapper) == signed_by(KEY, {**PLAIN, "signature": "old"}) == wrapper

    def test_an_invalid_manifest_is_not_signed(self) -> None:
        with pytest.raises(InvalidDocument):
            signed_by(KEY, {"id": "x"})
        with pytest.raises(ValueError, match="expected integers"):
            signed_by(KEY, {**PLAIN, "more": 2**53})

    def test_a_manifest_without_a_canonical_form_is_never_verified(self) -> None:
        wrapper = signed_by(KEY)
        wrapper["manifest"]["more"] = 2**53
        assert judge(wrapper, [KEY], lambda *_: True) == Broken()

    def test_a_signature_over_other_defaults_is_verified_over_the_published_document(self) -> None:
        """A signer without the fields of 2.x, and one with more of them; `class` by either name."""
        for document in (PLAIN, {**PLAIN, "from_3_0": None}):
            for hardware in ({"class": "sbc"}, {"class_": "sbc"}):
                capabilities = {**PLAIN["capabilities"], "hardware": hardware}
                own = {**document, "capabilities": capabilities, "signature": None}
                by_field = {**document, "capabilities": {**capabilities, "hardware": {"class_": "sbc"}}}
                wrapper = signed_by(KEY)
                wrapper["manifest"] = own
                wrapper["signature"]["signature"] = b64encode(toy_signature(KEY.raw, canonical_json(by_field))).decode()
                verdict = judge(wrapper, [KEY], toy)
                assert isinstance(verdict, Verified)
                assert verdict.manifest.capabilities.hardware == {"class": "sbc"}
                assert verdict.manifest.supported_versions is None

    def test_both_names_of_one_field_are_two_fields(self) -> None:
        document = {**PLAIN, "capabilities": {"hardware": {"class": "sbc", "class_": "edge"}}}
        verdict = judge(signed_by(KEY, document), [KEY], toy)
        assert isinstance(verdict, Verified)
        assert (verdict.manifest.capabilities.hardware or {})["class"] == "sbc"

    def test_parts_of_other_shapes_are_signed_unchanged(self) -> None:
        for document in (
            {"capabilities": 7, "signature": 1},
            {"capabilities": {"skills": 7, "hardware": 7, "inference": {"local_models": [7]}}, "sla": 7},
        ):
            assert canonical_json(document["capabilities"])[:1] in (b"7", b"{")
            assert b"7" in signed_bytes(document)


# --- the law, and mutants it must catch ------------------------------------------------------------------------------


@st.composite
def tamperings(draw):
    """A manifest signed by somebody, and perhaps changed afterwards; whether it counts for KEY and NEXT."""
    signer = draw(st.sampled_from([KEY, NEXT, STRANGERS]))
    named = draw(st.sampled_from([KEY, NEXT, STRANGERS, None]))
    trust = draw(st.sampled_from(["self-signed", "verified", "enterprise", "whatever"]))
    path = draw(
        st.sampled_from(
            [None, ("name",), ("endpoints", "asap"), ("capabilities", "hardware", "class"), ("id",), ("new",)]
        )
    )
    wrapped = draw(st.integers(0, 4)) > 0
    return signer, named, trust, path, wrapped


def law(module, tampering) -> None:
    """Verified exactly if a trusted key signed this document; the returned manifest is the signed one."""
    signer, named, trust, path, wrapped = tampering
    wrapper = json.loads(json.dumps(signed_by(signer, module=module)))
    wrapper["public_key"] = None if named is None else str(named)
    wrapper["signature"]["trust_level"] = trust
    place = wrapper["manifest"]
    for step in (path or ())[:-1]:
        place = place[step]
    if path is not None:
        place[path[-1]] = "urn:asap:agent:b"
    keys = [module.PublicKey(KEY.raw), module.PublicKey(NEXT.raw)]
    verdict = module.judge(wrapper if wrapped else wrapper["manifest"], keys, toy)
    good = wrapped and path is None and signer in (KEY, NEXT)
    assert isinstance(verdict, module.Verified) == good
    assert (module.why_not(verdict) is None) == good
    if good:
        signed = decode_manifest(json.loads(signed_bytes(PLAIN)))
        assert verdict.key.raw == signer.raw
        assert to_json(verdict.manifest)["supported_versions"] == to_json(signed)["supported_versions"]
        assert verdict.manifest.name == "A"
    elif not wrapped:
        assert verdict == module.Unsigned()
    elif path is None and named == signer:
        assert isinstance(verdict, module.OtherKey)
        assert str(named) in module.why_not(verdict)
    else:
        assert verdict == module.Broken()


@given(tamperings())
def test_only_a_manifest_signed_by_a_trusted_key_is_verified(tampering) -> None:
    law(signing, tampering)


MUTANTS = {
    "the signature isn't checked": ("if verify(key.raw, signed.signature, message):", "if True:"),
    "the key isn't compared": ("for key in trusted:", "for key in [signed.public_key or next(iter(trusted))]:"),
    "the trust label is believed": (
        "if verify(key.raw, signed.signature, message):",
        "if signed.trust_level == 'verified' or verify(key.raw, signed.signature, message):",
    ),
    "only the first key counts": ("for key in trusted:", "for key in list(trusted)[:1]:"),
    "what isn't signed passes": ("return Unsigned()", "return Verified(decode_manifest(value), *trusted)"),
    "another key is as good": (
        "return OtherKey(named)",
        "return Verified(decode_manifest(dict(signed.document)), named)",
    ),
}


@pytest.mark.planted
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught(name: str) -> None:
    before, after = MUTANTS[name]
    source = Path(str(signing.__file__)).read_text("utf-8")
    assert source.count(before) == 1
    mutant = types.ModuleType("mutant")
    exec(compile(source.replace(before, after), "mutant", "exec"), mutant.__dict__)

    @settings(database=None, max_examples=300, report_multiple_bugs=False)
    @given(tamperings())
    def run(tampering) -> None:
        law(mutant, tampering)

    with pytest.raises((AssertionError, TypeError)):
        run()
