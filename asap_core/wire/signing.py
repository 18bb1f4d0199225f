"""Signs manifests, and verifies signed ones against trusted keys (docs/wire.md §13).

Rule of this module: a verified manifest is decoded from exactly the bytes that were signed.

The reference signs the canonical JSON (RFC 8785) of a manifest with all its defaults filled in and with its own names
of fields, but publishes the document as its user wrote it. So the received document isn't byte for byte what was
signed. This module makes each form that may have been signed from the received document and tries it; the form whose
signature is valid is the manifest. Nothing unsigned is ever used, whichever forms are tried and whatever an attacker
removed.

Ed25519 itself is injected (`Ed25519Verifier`). Implementations disagree about some inputs, so these are refused here by
their bytes: S not below the group order (RFC 8032 §5.1.7), keys that aren't the canonical encoding of their point, and
points of small order, for which one signature can be valid for any message.
"""

import binascii
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final, assert_never

from attrs import field, frozen

from asap_core.errors import InvalidDocument, Problem
from asap_core.wire.codec import decode_manifest
from asap_core.wire.json import canonical_json
from asap_core.wire.json_values import JsonObject
from asap_core.wire.manifest import Manifest, is_wrapper

Ed25519Verifier = Callable[[bytes, bytes, bytes], bool]
"""Called with `(public_key, signature, message)`; returns whether the signature is valid (RFC 8032 §5.1.7)."""
Ed25519Signer = Callable[[bytes], bytes]
"""Called with a message; returns its Ed25519 signature, 64 bytes (RFC 8032 §5.1.6)."""

SELF_SIGNED: Final = "self-signed"
# The current key, its successor, and some for other hosts. Each costs a verification, some 0.1 ms.
MAX_KEYS: Final = 8
# The reference's trust levels have at most 11 letters.
_MAX_LABEL: Final = 64
_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64

# RFC 8032 §5.1: the field's prime and the group's order.
_PRIME: Final = 2**255 - 19
_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
_Y_BITS: Final = 2**255 - 1
# The y of all points whose order divides 8; with either sign of x there are no others (tests/core/wire/test_signing.py
# proves it).
_SMALL_ORDER: Final = frozenset(
    {
        0,
        1,
        _PRIME - 1,
        int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"),
        int.from_bytes(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"),
    }
)


def _read_base64(text: object, size: int) -> bytes | None:
    """Decode `size` bytes of standard base64 (RFC 4648 §4). Returns None if it isn't the canonical encoding of them."""
    if type(text) is not str or len(text) > 2 * size:
        return None
    try:
        data = b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # ValueError: characters beyond ASCII
        return None
    return data if len(data) == size and b64encode(data).decode() == text else None


def _is_sound(raw: bytes) -> bool:
    if type(raw) is not bytes or len(raw) != _KEY_BYTES:
        return False
    y = int.from_bytes(raw, "little") & _Y_BITS
    return y < _PRIME and y not in _SMALL_ORDER


_KEY_EXPECTED: Final = "an Ed25519 public key: 32 bytes in standard base64, a point that isn't of small order"


@frozen
class PublicKey:
    """An Ed25519 public key.

    raw: its 32 bytes.
    Raises: ValueError for an encoding that isn't canonical and for points of small order.
    """

    raw: bytes = field(repr=False)

    @raw.validator
    def _sound(self, _attribute: object, raw: bytes) -> None:
        if not _is_sound(raw):
            raise ValueError(f"expected {_KEY_EXPECTED}")

    @classmethod
    def read(cls, text: object) -> "PublicKey":
        """Read a key from base64. Raises ValueError, which doesn't repeat the text."""
        raw = _read_base64(text, _KEY_BYTES)
        if raw is None:
            raise ValueError(f"expected {_KEY_EXPECTED}")
        return cls(raw)

    def __str__(self) -> str:
        return b64encode(self.raw).decode()


def read_keys(given: object) -> tuple[PublicKey, ...]:
    """Read one key in base64, or an array of 1 to `MAX_KEYS` of them: the current one and its successors.

    Raises: ValueError.
    """
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not 0 < len(texts) <= MAX_KEYS:
        raise ValueError(f"expected one public key in base64, or 1 to {MAX_KEYS} of them")
    return tuple(map(PublicKey.read, texts))


# --- the wrapper -----------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class SignedManifest:
    """The wrapper of a signed manifest, decoded but not verified.

    document: the manifest as plain JSON.
    public_key: not signed, so only a hint which key signed it.
    trust_level: not signed, and not used.
    """

    document: Mapping[str, object]
    signature: bytes
    public_key: PublicKey | None = None
    trust_level: str = SELF_SIGNED


def decode_signed(value: object) -> SignedManifest | None:
    """Decode the wrapper of a signed manifest. Returns None if `value` isn't a wrapper.

    Strict about the members that verification uses; other members are ignored, since nobody signed them.
    Raises: InvalidDocument.
    """
    if not is_wrapper(value):
        return None
    problems: list[Problem] = []
    block = value["signature"]
    if type(block) is not dict:
        raise _invalid(Problem(("signature",), "an object with alg and signature"))
    if block.get("alg") != "ed25519":
        problems.append(Problem(("signature", "alg"), "ed25519"))
    signature = _read_base64(block.get("signature"), _SIGNATURE_BYTES)
    if signature is None or int.from_bytes(signature[_KEY_BYTES:], "little") >= _ORDER:
        expected = "an Ed25519 signature: 64 bytes in standard base64, S below the group order (RFC 8032 §5.1.7)"
        problems.append(Problem(("signature", "signature"), expected))
    trust_level = block.get("trust_level", SELF_SIGNED)
    if type(trust_level) is not str or len(trust_level) > _MAX_LABEL:
        problems.append(Problem(("signature", "trust_level"), f"a label of at most {_MAX_LABEL} characters"))
    public_key = None
    if value.get("public_key") is not None:
        try:
            public_key = PublicKey.read(value["public_key"])
        except ValueError:
            problems.append(Problem(("public_key",), _KEY_EXPECTED))
    if signature is None or problems:
        raise _invalid(*problems)
    return SignedManifest(
        document=value["manifest"], signature=signature, public_key=public_key, trust_level=trust_level
    )


def _invalid(*problems: Problem) -> InvalidDocument:
    return InvalidDocument("signed manifest", problems)


# --- what is signed --------------------------------------------------------------------------------------------------

# The defaults that the reference (2.5.10) fills in before it signs, found by letting it sign (tests/interop).
_MANIFEST: Final[Mapping[str, object]] = {
    "supported_versions": ["2.2"], "auth": None, "sla": None, "verification": None, "ttl_seconds": 300,
}  # fmt: skip
_CAPABILITIES: Final[Mapping[str, object]] = {
    "asap_version": "0.1", "skills": [], "state_persistence": False, "streaming": False, "mcp_tools": [],
    "hardware": None, "inference": None,
}  # fmt: skip
_SKILL: Final[Mapping[str, object]] = {"input_schema": None, "output_schema": None}
_HARDWARE: Final[Mapping[str, object]] = {"class_": None, "model": None, "io": []}
_INFERENCE: Final[Mapping[str, object]] = {"modes": [], "local_models": []}
_LOCAL_MODEL: Final[Mapping[str, object]] = {"id": None, "quantization": None, "throughput_tokens_per_second": None}
_SLA: Final[Mapping[str, object]] = {
    "availability": None, "max_latency_p95_ms": None, "max_error_rate": None, "support_hours": None,
}  # fmt: skip
_VERIFICATION: Final[Mapping[str, object]] = {"verified_at": None}


def _filled(value: object, defaults: Mapping[str, object]) -> object:
    # This library writes null for a missing value; the reference reads null only where null is its default too.
    if type(value) is not dict:
        return value
    return {**defaults, **{key: item for key, item in value.items() if key not in defaults or item is not None}}


def _each(items: object, defaults: Mapping[str, object]) -> object:
    return [_filled(item, defaults) for item in items] if type(items) is list else items


def _with(value: object, **parts: Callable[[object], object]) -> object:
    """Return `value` with the named members changed, if it has them."""
    if type(value) is not dict:
        return value
    return {**value, **{name: change(value[name]) for name, change in parts.items() if name in value}}


def _renamed(document: object, before: str, after: str) -> object:
    """Rename `class` of `capabilities.hardware` between the document's key and the reference's field, `class_`."""

    def rename(hardware: object) -> object:
        if type(hardware) is not dict or before not in hardware or after in hardware:
            return hardware
        return {after if key == before else key: item for key, item in hardware.items()}

    return _with(document, capabilities=lambda capabilities: _with(capabilities, hardware=rename))


def _as_reference(document: object) -> object:
    """Return the manifest as the reference holds it in memory: with every field, and `class_` for `class`."""
    whole = _filled(_renamed(document, "class", "class_"), _MANIFEST)
    return _with(
        whole,
        capabilities=lambda capabilities: _with(
            _filled(capabilities, _CAPABILITIES),
            skills=lambda skills: _each(skills, _SKILL),
            hardware=lambda hardware: _filled(hardware, _HARDWARE),
            inference=lambda inference: _with(
                _filled(inference, _INFERENCE), local_models=lambda models: _each(models, _LOCAL_MODEL)
            ),
        ),
        endpoints=lambda endpoints: _filled(endpoints, {"events": None}),
        auth=lambda auth: _filled(auth, {"oauth2": None}),
        sla=lambda sla: _filled(sla, _SLA),
        verification=lambda verification: _filled(verification, _VERIFICATION),
    )


def _unsigned(document: Mapping[str, object]) -> dict[str, object]:
    return {key: item for key, item in document.items() if key != "signature"}


def signed_bytes(document: Mapping[str, object]) -> bytes:
    """Return the bytes to sign for a manifest (plain JSON), as the reference 2.5 signs and verifies it.

    Raises: ValueError if canonical JSON can't express it: integers beyond ±(2**53 - 1).
    """
    return canonical_json(_as_reference(_unsigned(document)))


def _forms(document: Mapping[str, object]) -> Iterator[tuple[object, bytes]]:
    """Yield each distinct form of a received manifest that may have been signed, with its bytes.

    1. With the reference's defaults filled in: the reference publishes manifests without them.
    2. As received: a signer with other defaults publishes all fields.
    3. As received, with the reference's name for `class`.
    """
    plain = _unsigned(document)
    seen: set[bytes] = set()
    for form in (_as_reference(plain), plain, _renamed(plain, "class", "class_")):
        try:
            message = canonical_json(form)
        except ValueError:
            continue
        if message not in seen:
            seen.add(message)
            yield form, message


# --- verification ----------------------------------------------------------------------------------------------------


@frozen
class Verified:
    """Signed by `key`, one of the trusted ones. `manifest` is decoded from the signed bytes: use only this one."""

    manifest: Manifest
    key: PublicKey


@frozen
class Unsigned:
    """The manifest has no signature."""


@frozen
class Unreadable:
    """The document looks like a wrapper and isn't a valid one."""

    error: InvalidDocument


@frozen
class OtherKey:
    """Validly signed by the key that the wrapper names, which isn't a trusted one."""

    key: PublicKey


@frozen
class Broken:
    """The signature is valid neither for a trusted key nor for the one that the wrapper names."""


Judgement = Verified | Unsigned | Unreadable | OtherKey | Broken


def judge(value: object, trusted: Collection[PublicKey], verify: Ed25519Verifier) -> Judgement:
    """Verify a manifest (plain JSON, with wrapper or without) against the trusted keys.

    The key and trust level that the wrapper names never make a manifest trusted.
    Raises: InvalidDocument if the signed document isn't a manifest.
    """
    try:
        signed = decode_signed(value)
    except InvalidDocument as error:
        return Unreadable(error)
    if signed is None:
        return Unsigned()
    named, by_named = signed.public_key, False
    for form, message in _forms(signed.document):
        for key in trusted:
            if verify(key.raw, signed.signature, message):
                return Verified(decode_manifest(_renamed(form, "class_", "class")), key)
        by_named = by_named or (named is not None and verify(named.raw, signed.signature, message))
    return OtherKey(named) if named is not None and by_named else Broken()


def why_not(judgement: Judgement) -> str | None:
    """Return why a manifest isn't trusted, for people. Returns None if it's verified."""
    match judgement:
        case Verified():
            return None
        case Unsigned():
            return "it isn't signed"
        case Unreadable(error):
            return str(error)
        case OtherKey(key):
            return f"it's signed by {key}, which isn't a trusted key of this agent; if the key was changed, trust it"
        case Broken():
            return "its signature isn't one of this manifest by a trusted key; it was changed, or signed by another"
        case _:
            assert_never(judgement)


def sign(document: Mapping[str, object], signer: Ed25519Signer, public_key: PublicKey) -> JsonObject:
    """Sign a manifest (plain JSON) and return the wrapper to publish, which peers from 2.0 on verify.

    The wrapper has every field that was signed, so that a verifier's own defaults don't matter. If the document is a
    wrapper already, its manifest is signed again.
    Raises: InvalidDocument if it isn't a manifest; ValueError if canonical JSON can't express it.
    """
    if is_wrapper(document):
        document = document["manifest"]
    decode_manifest(document)
    signature = signer(signed_bytes(document))
    return {
        "manifest": _renamed(_as_reference(_unsigned(document)), "class_", "class"),
        "signature": {"alg": "ed25519", "signature": b64encode(signature).decode(), "trust_level": SELF_SIGNED},
        "public_key": str(public_key),
    }
