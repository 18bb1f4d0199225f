"""The replay guard at 0, 10,000, 100,000 and 1,000,000 live nonces: mean, p99.9, worst, bytes per nonce."""

import gc
import time
from typing import Final

from asap_core.admission.replay import ReplayGuard, StartPolicy
from asap_core.clock import Instant, Moment, WallTime

# Seconds for which a nonce is live: the defaults of `max_age` and `skew`.
KEEP: Final = 330.0
CALLS: Final = 100_000
SENDER: Final = "urn:asap:agent:alice"


def resident() -> int:
    """Return the resident memory of this process in bytes. Linux only."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - a pseudo-file
        return int(file.read().split()[1]) * 4096


def measure(live: int) -> tuple[float, float, float, float]:
    """Return mean, p99.9 and worst time in µs, and bytes per nonce. `live` nonces are live: one expires per new one."""
    capacity = max(live * 2, CALLS * 2)
    guard = ReplayGuard(
        key=b"k" * 32,
        max_age=300.0,
        skew=30.0,
        capacity=capacity,
        per_sender=capacity,
        start=StartPolicy.OPEN,
        wall=WallTime(0.0),
    )
    rate = max(live, 1) / KEEP

    def admit(number: int) -> None:
        at = Moment(Instant(number / rate), WallTime(number / rate))
        guard.admit(SENDER, f"{number:024}", authenticated=True, issued=at.wall, at=at)

    gc.collect()
    before = resident()
    for number in range(1, live + 1):
        admit(number)
    per_nonce = (resident() - before) / live if live else 0.0
    # The mean without reading a clock for each call, which costs a tenth of one.
    coming = [
        (f"{number:024}", Moment(Instant(number / rate), WallTime(number / rate)))
        for number in range(live + 1, live + CALLS + 1)
    ]
    began = time.perf_counter()
    for nonce, at in coming:
        guard.admit(SENDER, nonce, authenticated=True, issued=at.wall, at=at)
    mean = (time.perf_counter() - began) / CALLS
    times = []
    for number in range(live + CALLS + 1, live + 2 * CALLS + 1):
        began = time.perf_counter()
        admit(number)
        times.append(time.perf_counter() - began)
    times.sort()
    return mean * 1e6, times[-CALLS // 1000] * 1e6, times[-1] * 1e6, per_nonce


def print_table(most: int = 1_000_000) -> None:
    """Measure with up to `most` live nonces, and print the table."""
    print("live nonces       mean      p99.9        max   bytes per nonce")
    for live in (0, 10_000, 100_000, 1_000_000):
        if live <= most:
            mean, tail, worst, per_nonce = measure(live)
            print(f"{live:>11,}  {mean:6.2f} µs  {tail:6.1f} µs  {worst:6.1f} µs   {per_nonce:8.0f}", flush=True)
