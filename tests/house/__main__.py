"""Print the figures: `python -m tests.house`, with the files of each job by `--files`, all modules by `--modules`.

`--guarantees` counts what holds each guarantee of the docs instead, `--map` prints the map of all modules.
"""

import argparse
import logging

from tests.house.guarantees import held
from tests.house.jobs import touched
from tests.house.source import circles, client_half, module_map, read_modules, sizes, twice

# The client and what serves, by the modules that begin them.
CLIENT = "asap_adapters.client.agent_client"
SERVERS = ("asap_adapters.server.listener", "asap_adapters.server.asgi")
LONG = 400


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.house", description="Print figures of the code itself.")
    parser.add_argument(
        "--files", action="store_true", help="list the files that each job touches, with how much of each runs"
    )
    parser.add_argument("--modules", action="store_true", help="list all modules with their sizes")
    parser.add_argument("--guarantees", action="store_true", help="count the tests of each guarantee instead")
    parser.add_argument("--map", action="store_true", help="print docs/modules.md instead")
    asked = parser.parse_args()
    if asked.map:
        print(module_map(read_modules()), end="")
    elif asked.guarantees:
        print_guarantees()
    else:
        print_figures(files=asked.files, every_module=asked.modules)


def print_guarantees() -> None:
    for each in held():
        print(f"{each.page} {each.number}: {each.tests} tests, {each.planted} planted defects")


def print_figures(*, files: bool, every_module: bool) -> None:
    # The jobs' agents warn that they serve without authentication. With a handler, logging doesn't print it to stderr.
    logging.getLogger("asap").addHandler(logging.NullHandler())
    modules = read_modules()
    for name, job in touched().items():
        run = f"{len(job.functions)} functions of {sum(job.lines.values()):,} lines"
        print(f"{name}: {len(job.files)} files, {run}")
        for file in job.files if files else ():
            print(f"    {file:44} {job.lines[file]:4} lines of functions that run")
    for name, value in sizes(modules).items():
        print(f"{name}: {value:g}")
    for module in sorted(modules.values(), key=lambda module: -module.lines):
        if every_module or module.lines > LONG:
            print(f"    {module.lines:5} {module.name}")
    found = circles(modules)
    print(f"circles of imports: {len(found)}")
    for circle in found:
        print(f"    {', '.join(circle)}")
    print(f"names of classes that several modules define: {len(twice(modules))}")
    for name, homes in twice(modules).items():
        print(f"    {name}: {', '.join(homes)}")
    half = client_half(modules, CLIENT, SERVERS)
    print(f"the client half of the adapters: {len(half)} modules, {sum(module.lines for module in half)} lines")
    for module in half if every_module else ():
        print(f"    {module.lines:5} {module.name}")


if __name__ == "__main__":
    main()
