"""What importing the core costs, beside attrs and cattrs, each in a process of its own; the best of several."""

import subprocess
import sys

__all__ = ["run"]

ROUNDS = 9


def milliseconds(what: str) -> float:
    code = f"import time; a = time.perf_counter(); import {what}; print((time.perf_counter() - a) * 1000)"
    times = []
    for _ in range(ROUNDS):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        times.append(float(done.stdout))
    return min(times)


def run() -> None:
    """Print the table."""
    base, core = milliseconds("attrs, cattrs"), milliseconds("asap_core")
    print(f"import attrs, cattrs  {base:6.1f} ms")
    print(f"import asap_core      {core:6.1f} ms   {core / base:.2f}x")


if __name__ == "__main__":
    run()
