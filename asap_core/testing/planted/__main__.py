"""Serves a planted agent, with the switches that are named; or tells which laws each switch breaks.

python -m asap_core.testing.planted --port 8000 --break replay.accepted
python -m asap_core.testing.planted --matrix
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from threading import Event

from asap_core.testing.planted.agent import PlantedAgent
from asap_core.testing.planted.messages import PlantedOptions
from asap_core.testing.planted.serving import PlantedServer
from asap_core.testing.planted.switches import SWITCHES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m asap_core.testing.planted", description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="0 for any free one")
    parser.add_argument("--break", dest="breaks", action="append", default=[], metavar="SWITCH", choices=[*SWITCHES])
    parser.add_argument("--list", action="store_true", help="list the switches")
    parser.add_argument("--matrix", action="store_true", help="try every law with every switch, or those of --break")
    parser.add_argument("--jobs", type=int, default=2, help="processes that work at the matrix")
    parser.add_argument("--without-tokens", action="store_true", help="accept anonymous callers")
    options = parser.parse_args(arguments)
    if options.list:
        for switch in SWITCHES.values():
            print(f"{switch.name:44} {switch.breaks}")
        return 0
    if options.matrix:
        return _print_matrix(options.breaks or SWITCHES, options.jobs)
    _serve(options.port, options.breaks, with_tokens=not options.without_tokens)
    return 0


def _print_matrix(switches: Iterable[str], jobs: int) -> int:
    from asap_core.testing.laws.catalogue import LAWS  # noqa: PLC0415 - the laws need attrs
    from asap_core.testing.planted.matrix import broken_by, complaints, lines, measure  # noqa: PLC0415 - as above

    matrix = measure(switches, processes=jobs)
    for line in lines(matrix):
        print(line)
    wrong = [f"{law} is broken by the correct agent" for law in broken_by(None, LAWS)]
    # Some switches say nothing about all laws.
    wrong += complaints(matrix, LAWS if len(matrix) == len(SWITCHES) else ())
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


def _serve(port: int, breaks: Sequence[str], *, with_tokens: bool) -> None:
    made = PlantedOptions() if with_tokens else PlantedOptions(tokens=())
    server = PlantedServer(PlantedAgent(made, breaks=breaks), port=port)
    server.agent = PlantedAgent(replace(made, url=server.url), breaks=breaks)
    with server:
        print(f"{server.url} {' '.join(breaks) or 'correct'}", flush=True)
        try:
            Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    sys.exit(main())
