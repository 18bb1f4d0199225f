"""The system's randomness: ids, secrets, jitter. No other module reads it."""

import os
import random
import secrets
import time
from typing import Final

# Crockford's base 32: no I, L, O, U.
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Two characters at a time, for half the steps.
_PAIRS: Final = [first + second for first in _ALPHABET for second in _ALPHABET]
_SHIFTS: Final = range(120, -1, -10)
_SYSTEM: Final = random.SystemRandom()


def new_id() -> str:
    """Return a ULID: 48 bits of milliseconds and 80 random bits, as 26 characters that sort by time."""
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in _SHIFTS])


def new_secret() -> bytes:
    """Return a key of 256 bits for keyed digests."""
    return secrets.token_bytes(32)


def new_mark() -> bytes:
    """Return 64 bits that identify a reservation."""
    return secrets.token_bytes(8)


def new_token() -> str:
    """Return a nonce or bearer token of 128 bits, in URL-safe base64."""
    return secrets.token_urlsafe(16)


def random_fraction() -> float:
    """Return a number in [0, 1), for jitter."""
    return _SYSTEM.random()
