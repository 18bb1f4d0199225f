"""`asap bench admission`: what admission costs on this machine, each part in a process of its own."""

import subprocess
import sys
from pathlib import Path
from typing import Final

from attrs import frozen

from asap_adapters.cli.command import command, in_event_loop, option
from asap_adapters.cli.failures import UserError
from asap_adapters.cli.options import backend_option, redis_url, whole_number
from asap_adapters.cli.output import say

_MAX_LIVE: Final = 1_000_000


def _count(text: str) -> int:
    return whole_number(text, 1, _MAX_LIVE, f"expected a number, 1 to {_MAX_LIVE}")


@frozen(kw_only=True)
class BenchOptions:
    """The options of `asap bench admission`."""

    live: int = option("--live N", _count, "measure with up to this many nonces and keys", default=_MAX_LIVE)
    redis: str | None = option(
        "--redis URL", redis_url, "also measure claims in this Redis or Valkey; the keys that it leaves expire"
    )
    reference: Path | None = option(
        "--reference PYTHON", Path, "compare decisions with asap-protocol in this Python interpreter"
    )
    backend: str = backend_option()


async def _admission(options: BenchOptions) -> int:
    reference = None if options.reference is None else str(options.reference)
    parts: list[tuple[str, str | int | None]] = [
        ("decision", reference),
        ("guard", options.live),
        ("limiter", options.live),
    ]
    if options.redis is not None:
        parts.append(("shared", options.redis))
    for number, (name, value) in enumerate(parts):
        if number:
            say("")
        # In a process of its own: the memory that another part leaves would change the figures.
        code = f"from asap_adapters.bench.{name} import print_table; print_table({value!r})"
        if subprocess.run([sys.executable, "-c", code], check=False).returncode:  # noqa: ASYNC221, S603 - nothing else runs
            raise UserError(f"measuring the {name} failed; its error is shown above")
    return 0


COMMANDS: Final = (
    command(
        "bench admission",
        BenchOptions,
        in_event_loop(_admission),
        "measure the decisions on an envelope",
        description=(
            "Measure admission: from bytes to a decision, the replay guard with up to a million nonces, the limiter "
            "with up to a million keys, and, with --redis, a claim there against a bare SET NX. It takes one to two "
            "minutes. Compare figures as ratios within one run, on a machine that does nothing else."
        ),
    ),
)
