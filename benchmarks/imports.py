"""What importing the core costs, beside attrs and cattrs, each in a process of its own; the best of several."""

import subprocess
import sys

__all__ = ["run"]

ROUNDS = 9
# Names are imported when they're first asked for: so the face alone, one value, and everything there is.
STATEMENTS = (
    "import asap_core",
    "from asap_core import Envelope",
    "from asap_core import Agent",
    "from asap_core import *",
)


def milliseconds(statement: str) -> float:
    code = f"import time; a = time.perf_counter(); {statement}; print((time.perf_counter() - a) * 1000)"
    times = []
    for _ in range(ROUNDS):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        times.append(float(done.stdout))
    return min(times)


def run() -> None:
    """Print the table."""
    base = milliseconds("import attrs, cattrs")
    print(f"import attrs, cattrs                    {base:6.1f} ms")
    for statement in STATEMENTS:
        taken = milliseconds(statement)
        print(f"{statement:<40}{taken:6.1f} ms   {taken / base:.2f}x")


if __name__ == "__main__":
    run()
