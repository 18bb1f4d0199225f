"""Runs the shell lines of a report again, and compares the answers with those that the report shows.

TOKEN=… OTHER_TOKEN=… python -m tests.live.repeated_lines report.json

The report is one that `asap conform --json` printed, of an agent that still runs. The lines of a law are run in their
order, in a shell of their own, as a reader of the report would.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from attrs import frozen

from asap_core.testing.laws.http_messages import Answer, read_answers
from asap_core.testing.laws.records import ExchangeRecord, LawRecord, from_json
from asap_core.testing.laws.runner import LawResult
from asap_core.testing.laws.shell_lines import PREPARE

# For all lines of a law, one after another: three slow peers take 40 s each.
SECONDS = 300
# Most lines wait for an answer, or for time to pass.
AT_ONCE = 4
# Of shapes that are compared: below are the parts of an envelope.
DEEPEST = 6


@frozen
class Repetition:
    """One line: what the report shows, and what came when it was run again, as statuses and the shapes of bodies."""

    law: str
    line: str
    reported: str
    again: str

    @property
    def is_same(self) -> bool:
        return self.reported == self.again


def is_repeatable(exchange: ExchangeRecord) -> bool:
    """Whether there is a line, without a remark that it can't be repeated."""
    return bool(exchange.curl) and "  # " not in exchange.curl


def repeated(law: LawRecord) -> list[Repetition]:
    """Run the lines of a law once more."""
    chosen = [each for each in law.exchanges if is_repeatable(each)]
    with TemporaryDirectory() as folder:
        lines = [
            line
            for number, each in enumerate(chosen)
            for line in (*(hook.line for hook in each.hooks), f"{{ {each.curl}; }} > {number}")
        ]
        # An argument of a program has at most 128 KiB; the lines of a law may have several MiB.
        Path(folder, "lines").write_text("\n".join([*PREPARE, *lines]), "utf-8")
        subprocess.run(
            ["sh", "lines"], cwd=folder, env=os.environ, stderr=subprocess.DEVNULL, timeout=SECONDS, check=False
        )
        printed = [Path(folder, str(number)).read_bytes() for number, _ in enumerate(chosen)]
    return [
        Repetition(law.id, each.curl, _reported(each), _again(each.curl, data))
        for each, data in zip(chosen, printed, strict=True)
    ]


def repetitions(report: Sequence[LawRecord]) -> list[Repetition]:
    """Run the lines of all laws that failed."""
    failed = [each for each in report if each.outcome is LawResult.FAILED]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return [each for found in threads.map(repeated, failed) for each in found]


def _reported(exchange: ExchangeRecord) -> str:
    method = exchange.sent.partition(" ")[0]
    return _shapes(read_answers(exchange.sides["received"], (method,), closed=True)[0])


def _again(line: str, data: bytes) -> str:
    if "telnet://" in line:
        return _shapes(read_answers(data, (), closed=True)[0])
    # `curl -i` prints the body without its transfer coding.
    head, _, body = data.partition(b"\r\n\r\n")
    if b" 100 " in head[:13]:  # curl asks for it before it sends a long body
        head, _, body = body.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return _shapes([Answer(int(words[1]), body=body)] if len(words) > 1 else [])


def _shapes(answers: Sequence[Answer]) -> str:
    return "; ".join(f"{each.status} {_shape(each.json) if each.body else 'empty'}" for each in answers) or "no answer"


def _shape(value: object, key: str = "", depth: int = 0) -> str:
    """Return types and keys, and the values by which clients classify an error."""
    match value:
        case dict() | list() if depth == DEEPEST:
            return "..."
        case dict():
            return f"{{{', '.join(f'{name}: {_shape(value[name], name, depth + 1)}' for name in sorted(value))}}}"
        case list():
            return f"[{', '.join(_shape(each, depth=depth + 1) for each in value)}]"
        case bool() | None:
            return str(value)
        case int() | str() if key == "code":
            return repr(value)
        case _:
            return "number" if isinstance(value, int | float) else "text"


def main(arguments: Sequence[str]) -> int:
    """Print what differs, and counts. Returns the exit code."""
    report = from_json(Path(arguments[0]).read_bytes())
    found = repetitions(report)
    differing = [each for each in found if not each.is_same]
    for each in differing:
        print(json.dumps({"law": each.law, "line": each.line[:400], "reported": each.reported, "again": each.again}))
    shown = [one for law in report if law.outcome is LawResult.FAILED for one in law.exchanges]
    laws = {each.law for each in found}
    print(
        f"{len(laws)} laws with {len(shown)} exchanges: {len(found)} lines were run, {len(found) - len(differing)} "
        f"have the answer of the report; all of {len(laws - {each.law for each in differing})} laws have"
    )
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
