"""`asap bench admission`: what admission costs on this machine, each part in a process of its own."""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from asap_adapters.cli.options import add_backend, redis_url, whole_number
from asap_adapters.cli.output import UserError, say

_DESCRIPTION: Final = (
    "Measure admission: bytes to decision, the replay guard with up to a million live nonces, the limiter with up to a "
    "million keys, and, with --redis, a claim there against a bare SET NX. It takes a minute or two. Figures mean "
    "something as ratios within one run, on a machine that does nothing else."
)
_MOST: Final = 1_000_000


def add_commands(commands: Any) -> None:
    """Add the command of this module."""
    bench = commands.add_parser("bench", help="measure what admission costs here")
    admission = bench.add_subparsers(title="commands", metavar="COMMAND", required=True).add_parser(
        "admission", help="the decisions on an envelope", description=_DESCRIPTION
    )
    add = admission.add_argument
    add("--live", metavar="N", type=_count, default=_MOST, help="live nonces and keys at most (default: 1000000)")
    add("--redis", metavar="URL", type=redis_url, help="measure claims there too; it leaves keys that expire")
    add("--reference", metavar="PYTHON", type=Path, help="an interpreter with asap-protocol, to compare with")
    add_backend(admission)
    admission.set_defaults(run=_admission)


def _count(text: str) -> int:
    return whole_number(text, 1, _MOST, f"expected a number, 1 to {_MOST}")


async def _admission(arguments: argparse.Namespace) -> int:
    reference = None if arguments.reference is None else str(arguments.reference)
    parts = [("decision", [reference]), ("guard", [arguments.live]), ("limiter", [arguments.live])]
    if arguments.redis is not None:
        parts.append(("shared", [arguments.redis]))
    for number, (name, values) in enumerate(parts):
        if number:
            say("")
        # None finds the memory as another left it.
        code = f"from asap_adapters.bench.{name} import run; run(*{values!r})"
        if subprocess.run([sys.executable, "-c", code], check=False).returncode:  # noqa: ASYNC221, S603 - nothing else runs
            raise UserError(f"measuring the {name} didn't work; what went wrong stands above")
    return 0
