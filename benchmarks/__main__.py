"""All benchmarks, one after another: `python -m benchmarks`. Figures are ratios within one run; machines are noisy."""

from benchmarks import decision, guard, imports, load

for benchmark in (imports, decision, guard, load):
    benchmark.run()
    print()
