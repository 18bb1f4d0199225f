"""Prints the table of docs/conformance.md, of reports that `asap conform --json` printed.

python -m docs.conformance ours=ours.json reference=reference.json
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from asap_core.testing.laws.records import LawRecord, from_json
from asap_core.testing.laws.runner import LawResult


def table(runs: Mapping[str, Sequence[LawRecord]]) -> Iterator[str]:
    """Yield a table of how many laws of each group every run keeps, of those that were tried."""
    yield f"| group | {' | '.join(runs)} |"
    yield f"|---{'|---:' * len(runs)}|"
    groups = dict.fromkeys(law.group for records in runs.values() for law in records)
    for group in [*groups, ""]:
        cells = [_kept([law for law in records if group in ("", law.group)]) for records in runs.values()]
        yield f"| {group or 'all'} | {' | '.join(cells)} |"


def broken(runs: Mapping[str, Sequence[LawRecord]]) -> Iterator[str]:
    """Yield the laws that each run breaks, by severity."""
    for name, records in runs.items():
        failed = [law for law in records if law.outcome is LawResult.FAILED]
        for severity in dict.fromkeys(law.severity for law in failed):
            ids = ", ".join(f"`{law.id}`" for law in failed if law.severity == severity)
            yield f"* {name}, {severity}: {ids}"


def _kept(records: Sequence[LawRecord]) -> str:
    counts = Counter(law.outcome for law in records)
    tried = counts[LawResult.PASSED] + counts[LawResult.FAILED]
    return f"{counts[LawResult.PASSED]} of {tried}" if tried else "none tried"


def main(arguments: Sequence[str]) -> None:
    """Print the table, and the laws that are broken."""
    named = (argument.partition("=") for argument in arguments)
    runs = {name: from_json(Path(path).read_bytes()) for name, _, path in named}
    print("\n".join([*table(runs), "", *broken(runs)]))


if __name__ == "__main__":
    main(sys.argv[1:])
