"""All benchmarks, one after another: `python -m benchmarks`. Figures are ratios within one run; machines are noisy."""

from benchmarks import decision, guard, http, imports

for benchmark in (imports, decision, guard, http):
    benchmark.run()
    print()
