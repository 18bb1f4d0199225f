"""The core's own tables, without a network: each in a process of its own, so that nothing else is measured."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Final

from attrs import frozen

from asap_core import Policy

__all__ = ["TABLES", "Table"]

POLICY: Final = Policy()
NONCE: Final = 180
"""By `nonce_capacity`: 180 MB for a million."""
SENDER: Final = 300
"""By `nonce_capacity` as well: 300 MB for a million that are each known by name."""
SHARE: Final = 300
"""By `limiter_capacity`: 30 MB for a hundred thousand."""
MILLION: Final = 1_000_000
ANYWAY: Final = 16_000_000
"""The tables while they're empty, and the allocator's arenas."""

RESIDENT: Final = """
import json
from collections import Counter
from pathlib import Path
from asap_core import Policy, StartPolicy, parse_limits
from asap_core.admission.ratelimit import Limiter
from asap_core.admission.replay import ReplayGuard
from asap_core.clock import Moment

policy = Policy()

def resident(name="VmRSS"):
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def tell(before, answers):
    print(json.dumps([resident("VmHWM") - before, dict(answers)]))
"""

GUARD: Final = """
guard = ReplayGuard(
    key=b"k" * 32, max_age=policy.max_age, skew=policy.skew, capacity={capacity},
    per_sender=policy.nonces_per_sender, start=StartPolicy.OPEN, wall=1e9,
)
before, answers = resident(), Counter()
for round in range({rounds}):
    # Each round in a window of its own: what the one before left is forgotten on the way.
    for number in range({senders}):
        at = round * 1000.0 + number * 1e-6
        verdict = guard.admit(
            f"urn:asap:agent:s{{round}}-{{number}}", "n", authenticated={known},
            issued=1e9 + at, at=Moment(at, 1e9 + at),
        )
        answers[type(verdict).__name__] += 1
tell(before, answers)
"""

LIMITER: Final = """
limiter = Limiter(parse_limits("10/second;100/minute"), capacity=policy.limiter_capacity)
before, answers = resident(), Counter()
for number in range({peers}):
    # All within a second: no share is whole again, so the table stays full.
    verdict = limiter.take(f"2001:db8:{{number >> 16:x}}:{{number & 65535:x}}::/64", now=number * 1e-7)
    answers[type(verdict).__name__] += 1
tell(before, answers)
"""


@frozen
class Table:
    """What came of one: `growth` and `bound` are bytes, `answers` is how often which verdict was given."""

    case: str
    asked: int
    growth: int
    bound: int
    answers: dict[str, int]


def _measured(case: str, asked: int, bound: int, script: str) -> Table:
    done = subprocess.run([sys.executable, "-c", RESIDENT + script], capture_output=True, text=True, check=True)
    growth, answers = json.loads(done.stdout)
    return Table(case, asked, growth, bound, answers)


def known_senders(asked: int, *, capacity: int = POLICY.nonce_capacity) -> Table:
    """Senders that proved who they are, a million in every window; `capacity` is the guard's, in nonces."""
    bound = capacity * (NONCE + SENDER) + ANYWAY
    script = GUARD.format(rounds=max(asked // MILLION, 1), senders=min(asked, MILLION), known=True, capacity=capacity)
    return _measured("the guard alone: proven senders", asked, bound, script)


def unknown_senders(asked: int) -> Table:
    """Those that proved nothing: half of the room is theirs, together."""
    bound = POLICY.nonce_capacity // 2 * NONCE + ANYWAY
    script = GUARD.format(
        rounds=max(asked // MILLION, 1), senders=min(asked, MILLION), known=False, capacity=POLICY.nonce_capacity
    )
    return _measured("the guard alone: anonymous senders", asked, bound, script)


def addresses(asked: int) -> Table:
    """Many more addresses than there's room for."""
    bound = POLICY.limiter_capacity * SHARE + ANYWAY
    return _measured("the limiter alone: addresses", asked, bound, LIMITER.format(peers=asked))


TABLES: Final[dict[str, Callable[[int], Table]]] = {
    "known_senders": known_senders,
    "unknown_senders": unknown_senders,
    "addresses": addresses,
}
