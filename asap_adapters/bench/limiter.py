"""The limiter at 1,000, 100,000 and 1,000,000 keys, with the default limits: mean, worst, bytes per key."""

import gc
import time
from typing import Final

from asap_adapters.bench.guard import resident
from asap_core.admission.ratelimit import Limiter, parse_limits
from asap_core.clock import Instant

CALLS: Final = 200_000
LIMITS: Final = "10/second;100/minute"


def measure(keys: int) -> tuple[float, float, float]:
    """Return mean and worst time in µs, and bytes per key, with `keys` known addresses, none of which is limited."""
    limiter = Limiter(parse_limits(LIMITS), capacity=keys + 1)
    names = [f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::/64" for number in range(keys)]
    gc.collect()
    before = resident()
    now = Instant(0.0)
    for name in names:
        limiter.take(name, now=now)
    per_key = (resident() - before) / keys
    mean = float("inf")
    for step in range(1, 4):
        now = Instant(step * 100.0)
        chosen = names[: min(CALLS, keys)]
        began = time.perf_counter()
        for name in chosen:
            limiter.take(name, now=now)
        mean = min(mean, (time.perf_counter() - began) / len(chosen))
    times = []
    for name in names[-min(CALLS, keys) :]:
        began = time.perf_counter()
        limiter.take(name, now=now)
        times.append(time.perf_counter() - began)
    return mean * 1e6, max(times) * 1e6, per_key


def print_table(most: int = 1_000_000) -> None:
    """Measure with up to `most` keys, and print the table."""
    print(f"keys ({LIMITS})       mean        max   bytes per key")
    for keys in sorted({min(keys, most) for keys in (1_000, 100_000, 1_000_000)}):
        mean, worst, per_key = measure(keys)
        print(f"{keys:>27,}  {mean:6.2f} µs  {worst:6.1f} µs   {per_key:8.0f}", flush=True)
