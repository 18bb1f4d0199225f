"""The syntax of access tokens and scopes (RFC 6750, RFC 6749), and a name that challenges contain."""

from typing import Final

# RFC 6750 sets no bound; proxies cut headers at 8 KiB (nginx, Apache), so no longer token arrives intact elsewhere.
MAX_TOKEN: Final = 8192
USE_NONCE: Final = "use_dpop_nonce"
"""The error of a server that wants its nonce in a DPoP proof (RFC 9449 §8, §9)."""
_NOT_IN_SCOPES: Final = frozenset('"\\ ')


def is_token(text: str) -> bool:
    """Whether `text` can be sent as a bearer token: visible ASCII, nothing that would end or split a header."""
    return 0 < len(text) <= MAX_TOKEN and text.isascii() and text.isprintable() and " " not in text


def is_scope(text: object) -> bool:
    """Whether `text` is one scope (RFC 6749 §3.3): visible ASCII without quotes and backslashes."""
    if not isinstance(text, str) or not text:
        return False
    return text.isascii() and text.isprintable() and _NOT_IN_SCOPES.isdisjoint(text)
