"""Who speaks: credentials as they come, principals as they're proven, and the rule that binds the sender to them.

A principal is `Authenticated` or `Anonymous`, never a bare string, so that a handler can't take an unproven sender for
a proven one.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from attrs import field, frozen

from asap_core.bearer import MAX_TOKEN, is_scope, is_token
from asap_core.errors import SENDER_MISMATCH, Refusal
from asap_core.http import Headers, header_values
from asap_core.model.rules import URN

__all__ = [
    "Anonymous",
    "Authenticated",
    "BadCredential",
    "Credential",
    "Insufficient",
    "NoCredential",
    "Principal",
    "TokenTable",
    "insufficient_scope",
    "read_credential",
    "sender_rule",
]

CHALLENGE: Final = 'Bearer realm="asap"'


@frozen
class Authenticated:
    """A caller whose credential was verified: `urn` is the agent that it stands for.

    `scopes` are what the credential allows, as its issuer wrote it; who the caller is doesn't depend on them.
    """

    urn: str = field(validator=URN)
    scopes: frozenset[str] = field(default=frozenset(), eq=False)


@frozen
class Anonymous:
    """A caller who proved nothing. `peer` is the address the connection came from, all that's known."""

    peer: str


Principal = Authenticated | Anonymous


@frozen
class Insufficient:
    """A good credential that doesn't allow enough: it takes all of `scopes`, at least one (RFC 6750 §3.1)."""

    scopes: frozenset[str]

    def __attrs_post_init__(self) -> None:
        # RFC 6749 §3.3; what a quote would do to the challenge nobody needs to find out.
        if not self.scopes or not all(map(is_scope, self.scopes)):
            raise ValueError("scopes: expected words of visible ASCII characters without quotes (RFC 6749 §3.3)")


@frozen
class Credential:
    """A bearer token as received (RFC 6750 §2.1). It never appears in a repr."""

    token: str = field(repr=False)


@frozen
class NoCredential:
    """No Authorization header, or one of another scheme."""


@frozen
class BadCredential:
    """An Authorization header that can't be read; `expected` says what one looks like."""

    expected: str


def read_credential(headers: Headers) -> Credential | NoCredential | BadCredential:
    """Read the bearer token from a request's headers. Never raises."""
    values = header_values(headers, b"authorization")
    if not values:
        return NoCredential()
    if len(values) > 1:
        return BadCredential("one Authorization header")
    scheme, _, token = values[0].strip().partition(b" ")
    # RFC 9110 §11.1: the scheme is case-insensitive (fault 22).
    if scheme.lower() != b"bearer":
        return NoCredential()
    token = token.strip()
    if not token or len(token) > MAX_TOKEN or not token.isascii() or b" " in token:
        return BadCredential(f"Authorization: Bearer and a token of 1 to {MAX_TOKEN} visible ASCII characters")
    return Credential(token.decode("ascii"))


def insufficient_scope(scopes: frozenset[str]) -> str:
    """The challenge for want of scope (RFC 6750 §3.1): it names all that it takes."""
    return f'{CHALLENGE}, error="insufficient_scope", scope="{" ".join(sorted(scopes))}"'


class TokenTable:
    """Static bearer tokens, each standing for one agent.

    Tokens are looked up by their SHA-256: the time it takes depends on digests, which a caller can't steer towards a
    match byte by byte (fault 27), and the table holds no token in clear.
    """

    __slots__ = ("_by_digest",)

    def __init__(self, tokens: Mapping[str, str]) -> None:
        """Take a mapping of token to agent URN. Raises ValueError where one of them can't be."""
        for token, urn in tokens.items():
            if not is_token(token):
                raise ValueError(f"expected tokens of 1 to {MAX_TOKEN} visible ASCII characters")
            if not URN.fits(urn):
                raise ValueError(f"expected {URN.expected}")
        self._by_digest = {_digest(token): Authenticated(urn) for token, urn in tokens.items()}

    def __len__(self) -> int:
        return len(self._by_digest)

    def verify(self, credential: Credential) -> Authenticated | None:
        """Return whom the token stands for, or None."""
        return self._by_digest.get(_digest(credential.token))


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


def sender_rule(principal: Principal, sender: str) -> Refusal | None:
    """The sender of an envelope is whoever authenticated; with nobody authenticated there's nothing to hold it to."""
    if isinstance(principal, Authenticated) and principal.urn != sender:
        return Refusal(kind=SENDER_MISMATCH)
    return None
