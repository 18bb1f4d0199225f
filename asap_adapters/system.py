"""The system's clocks and its randomness (ids, secrets, jitter). Agents and clients read them only here.

Monotonic time is the event loop's, so trio's MockClock, or an asyncio loop with virtual time, drives the whole library.
"""

import os
import random
import secrets
import time
from collections.abc import Callable
from typing import Final, cast

import anyio

from asap_core.clock import Instant, WallTime


class LoopClock:
    """The clock of the running event loop. It may be made before the loop starts.

    The first reading binds it to that loop, since monotonic times of two loops can't be compared.
    """

    __slots__ = ("_loop", "_running", "_time")

    def __init__(self) -> None:
        self._loop: object = None
        self._running: Callable[[], object] = _no_loop
        self._time: Callable[[], Instant] = _no_time

    def monotonic(self) -> Instant:
        """Return seconds on the running loop's clock. Raises RuntimeError in a second loop, or without one."""
        if self._loop is None:
            self._loop, self._running, self._time = _this_loop()
        try:
            here = self._running() is self._loop
        except RuntimeError:
            here = False
        if not here:
            raise RuntimeError("this object belongs to another event loop; make one for each loop")
        return self._time()

    def wall(self) -> WallTime:
        """Return seconds since the Unix epoch."""
        return time.time()  # type: ignore[return-value] # a NewType's call would take twice as long as this


class SystemClock:
    """The system's clocks, for code without an event loop. Any thread may read it."""

    def monotonic(self) -> Instant:
        """Return seconds on the system's monotonic clock."""
        return Instant(time.monotonic())

    def wall(self) -> WallTime:
        """Return seconds since the Unix epoch."""
        return WallTime(time.time())


def _no_loop() -> object:
    return None


def _no_time() -> Instant:
    return Instant(anyio.current_time())


def _this_loop() -> tuple[object, Callable[[], object], Callable[[], Instant]]:
    """Return the running loop, a function that returns the running loop, and the loop's clock.

    They are the backend's own functions, since anyio's take 2 µs.
    """
    if runs_on_asyncio():
        import asyncio  # noqa: PLC0415 - on trio it needn't be loaded

        loop = asyncio.get_running_loop()
        return loop, asyncio.get_running_loop, cast("Callable[[], Instant]", loop.time)
    import trio  # noqa: PLC0415 - on asyncio it needn't be loaded

    # The clock itself: `trio.current_time` looks it up each time.
    return (
        trio.lowlevel.current_trio_token(),
        trio.lowlevel.current_trio_token,
        cast("Callable[[], Instant]", trio.lowlevel.current_clock().current_time),
    )


def runs_on_asyncio() -> bool:
    """Whether the running loop is asyncio's. Raises RuntimeError if no loop is running."""
    return anyio.lowlevel.current_token().backend_class.__module__.endswith("_asyncio")


def loop_time() -> Callable[[], float]:
    """Return the running loop's own clock, which takes 0.1 µs."""
    return _this_loop()[2]


def cancel_scopes() -> Callable[[], anyio.CancelScope]:
    """Return what makes cancel scopes for the running loop: the backend's own class, since anyio's takes 1 to 2 µs."""
    if runs_on_asyncio():
        return type(anyio.CancelScope())
    import trio  # noqa: PLC0415 - on asyncio it needn't be loaded

    return cast("Callable[[], anyio.CancelScope]", trio.CancelScope)


# Crockford's base 32: no I, L, O, U.
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Two characters at a time, for half the steps.
_PAIRS: Final = [first + second for first in _ALPHABET for second in _ALPHABET]
_SHIFTS: Final = range(40, -1, -10)
# A byte's low five bits choose a character. 256 is eight times 32, so all characters are equally likely.
_CHARACTERS: Final = bytes(ord(_ALPHABET[byte % 32]) for byte in range(256))
_TAIL: Final = 16
# How many ids one system call gives randomness for: it takes as long as an id.
_BATCH: Final = 64
# The random parts of the next ids. Threads share it: `pop` and `extend` are atomic.
_tails: Final[list[str]] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tails.clear)  # or parent and child would make the same ids
# The last millisecond in which an id was made, and how ids of it begin: a busy server makes several in one.
_prefix: tuple[int, str] = (0, "")
_SYSTEM: Final = random.SystemRandom()


def new_id() -> str:
    """Return a ULID: 48 bits of milliseconds and 80 random bits, as 26 characters that sort by time."""
    global _prefix  # noqa: PLW0603 - one value, replaced as a whole
    millis = time.time_ns() // 1_000_000
    written_at, prefix = _prefix
    if written_at != millis:
        prefix = "".join([_PAIRS[(millis >> shift) & 1023] for shift in _SHIFTS])
        _prefix = (millis, prefix)
    try:
        tail = _tails.pop()
    except IndexError:
        tail, *others = _random_tails()
        _tails.extend(others)
    return prefix + tail


def _random_tails() -> list[str]:
    text = os.urandom(_TAIL * _BATCH).translate(_CHARACTERS).decode("ascii")
    return [text[at : at + _TAIL] for at in range(0, len(text), _TAIL)]


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
