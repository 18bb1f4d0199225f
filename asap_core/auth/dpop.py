"""What both sides of DPoP compute alike (RFC 9449): hashes of keys and tokens, normal forms of URLs, nonce syntax.

`asap_core.auth.dpop_client` makes proofs, `asap_core.auth.dpop_server` verifies them.
"""

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from asap_core.auth.jws import encode_base64url
from asap_core.net.urls import DEFAULT_PORTS, is_plain, read_url
from asap_core.wire.json import canonical_json

PROOF_TYPE: Final = "dpop+jwt"
"""The `typ` of a proof (RFC 9449 §4.2)."""
# RFC 9449 §4.2 asks for 96 random bits. A UUID takes 36 characters; nobody's id takes 256.
MAX_JTI: Final = 256
# Some servers encrypt their state into the nonce; a kilobyte leaves room for the other headers.
MAX_NONCE: Final = 1_024
# Common servers refuse longer URLs.
_MAX_URL: Final = 8_000

# RFC 7638 §3.2, RFC 8037 §2: the members that define a key.
_MEMBERS: Final = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x"), "RSA": ("e", "kty", "n")}
# RFC 9449 §8.1: NQCHAR of RFC 6749, Appendix A.
_NONCE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+\Z")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?\Z", re.ASCII)
_ESCAPE: Final = re.compile(r"%(.{0,2})")
_TWO_DIGITS: Final = re.compile(r"[0-9A-Fa-f]{2}\Z")
# RFC 3986 §2.3.
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def thumbprint(jwk: Mapping[str, object]) -> str:
    """Return the SHA-256 thumbprint of a key (RFC 7638), as in `cnf.jkt`. Members that don't define it don't count.

    Raises ValueError if it isn't a public key of a known type, or a member isn't text.
    """
    members = _MEMBERS.get(str(jwk.get("kty")), ("kty",))
    if members == ("kty",) or not all(isinstance(jwk.get(name), str) for name in members):
        raise ValueError("expected a JWK of type EC, OKP or RSA with the members that make it (RFC 7638 §3.2)")
    return encode_base64url(sha256(canonical_json({name: jwk[name] for name in members})).digest())


def token_hash(token: str) -> str:
    """Return the `ath` of an access token (RFC 9449 §4.2)."""
    return encode_base64url(sha256(token.encode("utf-8", "surrogatepass")).digest())


def is_nonce(text: object) -> bool:
    """Whether `text` is a nonce that a server may issue (RFC 9449 §8.1), of at most 1,024 characters."""
    return isinstance(text, str) and len(text) <= MAX_NONCE and _NONCE.match(text) is not None


def is_proof_id(text: object) -> bool:
    """Whether `text` is a `jti` of 1 to 256 characters."""
    return isinstance(text, str) and 0 < len(text) <= MAX_JTI


def comparable_url(url: str) -> str | None:
    """Return a URL in the form in which `htu` is compared (RFC 9449 §4.3): normalized, without query and fragment.

    Returns None if it isn't a URL of http or https, or has a user. Never raises. Source: RFC 3986 §6.2.2, §6.2.3.
    """
    parts = read_url(url) if len(url) <= _MAX_URL and url.isascii() and is_plain(url) else None
    if parts is None or parts.scheme not in DEFAULT_PORTS or not _HOST.match(parts.netloc):
        return None
    path = _normal_path(parts.path)
    host = parts.netloc.rpartition(":")[0] if parts.port is not None else parts.netloc.removesuffix(":")
    shown = "" if parts.port in (None, DEFAULT_PORTS[parts.scheme]) else f":{parts.port}"
    return None if path is None else f"{parts.scheme}://{host.lower()}{shown}{path}"


def _normal_path(path: str) -> str | None:
    escapes = _ESCAPE.findall(path)
    if not all(map(_TWO_DIGITS.match, escapes)):
        return None
    return _without_dots(_ESCAPE.sub(_normal_escape, path))


def _normal_escape(found: re.Match[str]) -> str:
    # RFC 3986 §6.2.2.1, §6.2.2.2: upper-case digits, and no escape of an unreserved character.
    character = chr(int(found[1], 16))
    return character if character in _UNRESERVED else found[0].upper()


def _without_dots(path: str) -> str:
    """Remove dot segments from a path that is absolute or empty (RFC 3986 §5.2.4)."""
    kept: list[str] = []
    segments = path.split("/")[1:] or [""]
    for segment in segments:
        if segment == "..":
            kept = kept[:-1]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)
