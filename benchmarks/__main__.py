"""All benchmarks, one after another: `python -m benchmarks`. Figures are ratios within one run; machines are noisy.

Each has a process of its own, so that none finds the memory as another left it.
"""

import subprocess
import sys

for name in ("imports", "decision", "guard", "limiter", "load"):
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
    print(flush=True)
