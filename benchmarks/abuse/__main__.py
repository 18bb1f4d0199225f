"""All of it at full size: `python -m benchmarks.abuse [CASE …]` takes half an hour and prints a table at the end."""

import argparse
import sys
import time
from collections.abc import Callable

from benchmarks.abuse.cases import CASES, CI, FULL, Sizes
from benchmarks.abuse.tables import TABLES, Table
from benchmarks.abuse.world import Report, raise_file_limit


def progress(name: str) -> Callable[[int], None]:
    last = 0.0

    def told(count: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 1:
            last = time.monotonic()
            print(f"\r{name}: {count:,}", end="", file=sys.stderr, flush=True)

    return told


def row(report: Report) -> str:
    told = f", {report.told_to_wait:,} told to wait" if report.told_to_wait else ""
    failed = f", {len(report.failed):,} FAILED" if report.failed else ""
    memory = f"{report.growth / 1e6:.0f} MB | {report.bound / 1e6:.0f} MB"
    honest = f"{report.served:,} served{told}{failed} | {report.worst:.2f} s"
    return f"| {report.case} | {report.backend} | {report.requests:,} | {report.answered:,} | {memory} | {honest} |"


def table_row(table: Table) -> str:
    answered = sum(table.answers.values())
    memory = f"{table.growth / 1e6:.0f} MB | {table.bound / 1e6:.0f} MB"
    return f"| {table.case} | - | {table.asked:,} | {answered:,} | {memory} | - | - |"


def main() -> int:
    names = {case.__name__: case for case in CASES}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.abuse", description=__doc__)
    parser.add_argument("--backend", choices=("trio", "asyncio"), default="trio")
    parser.add_argument("--small", action="store_true", help="as CI does it, in a minute")
    parser.add_argument("cases", nargs="*", help=" ".join([*names, *TABLES]))
    arguments = parser.parse_args()
    sizes: Sizes = CI if arguments.small else FULL
    raise_file_limit(sizes.half_open + 1_000)
    began, bad, lines = time.monotonic(), 0, []
    for name in arguments.cases or [*names, *TABLES]:
        if name in names:
            report = names[name](arguments.backend, sizes, progress(name))
            lines.append(row(report))
            bad += report.growth > report.bound or bool(report.failed)
            for failure in set(report.failed):
                print(f"\r{name}: {failure}", file=sys.stderr)
            print(f"\r{name}: {report.seconds:.0f} s, {dict(report.answers)}", file=sys.stderr)
        else:
            table = TABLES[name](sizes.asked)
            lines.append(table_row(table))
            bad += table.growth > table.bound
    print("\r| case | backend | requests | answered | memory grew by | bound | honest client | its worst answer |")
    print("|---|---|---|---|---|---|---|---|", *lines, sep="\n")
    print(f"\n{time.monotonic() - began:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
