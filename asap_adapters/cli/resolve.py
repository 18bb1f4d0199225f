"""`asap resolve`: finding an agent by its URN, and showing what was asked and what came of each question."""

import argparse
from pathlib import Path
from typing import Any

from asap_adapters.cli.options import CLI_SENDER, add_client_options, reach, seconds, urn
from asap_adapters.cli.output import UserError, card, complain, print_json, say
from asap_adapters.client.agent_client import AgentClient
from asap_core.client.resolution import Asked, Resolved, Unresolved, Verdict, is_version
from asap_core.errors import NotResolved
from asap_core.wire.codec import to_json


def add_commands(commands: Any) -> None:
    """Add the command of this module."""
    resolve = commands.add_parser(
        "resolve",
        help="find an agent by its URN (exit 1 if it isn't found)",
        description="Ask the registries in order, then the local network, for the agent with this URN.",
    )
    resolve.add_argument("urn", metavar="URN", type=urn, help="the agent's id")
    add = resolve.add_argument
    add("--registry", metavar="LOCATION", action="append", default=[], help="URL or file to ask; may be given again")
    add("--revocations", metavar="LOCATION", help="URL or file of a revocation list, asked first")
    add("--registry-cache", metavar="DIR", type=Path, help="keep a copy of each registry there, for when it's down")
    add("--wait", metavar="SECONDS", type=seconds, default=3.0, help="listen to the local network so long (default: 3)")
    add("--no-mdns", action="store_true", help="don't ask the local network")
    add("--require-skill", metavar="SKILL", help="take no agent without this skill")
    add("--require-version", metavar="VERSION", type=_version, help="take none that speaks only earlier ASAP")
    add("--explain", action="store_true", help="show what was asked, and what came of each")
    add_client_options(resolve)
    resolve.set_defaults(run=_resolve)


def _version(text: str) -> str:
    if not is_version(text):
        raise argparse.ArgumentTypeError("expected a version such as 2.1")
    return text


async def _resolve(arguments: argparse.Namespace) -> int:
    where = {
        "registries": arguments.registry,
        "revocations": arguments.revocations,
        "registry_cache": arguments.registry_cache,
    }
    async with AgentClient(sender=CLI_SENDER, **where, **reach(arguments)) as client:
        end = await client.explain(
            arguments.urn,
            wait=0.0 if arguments.no_mdns else arguments.wait,
            require_skill=arguments.require_skill,
            require_version=arguments.require_version,
        )
    if arguments.json:
        _print(end, explain=arguments.explain)
    else:
        _show(end, explain=arguments.explain)
    return 0 if isinstance(end, Resolved) else 1


def _print(end: Resolved | Unresolved, *, explain: bool) -> None:
    found = (
        {"url": end.url, "source": end.source, "manifest": to_json(end.manifest)} if isinstance(end, Resolved) else {}
    )
    asked = [{"where": one.where, "verdict": one.verdict.value, "why": one.why} for one in end.trace]
    print_json({"found": isinstance(end, Resolved), **found, **({"asked": asked} if explain else {})})


_MARKS = {Verdict.TAKEN: "+", Verdict.REFUSED: "-", Verdict.ABSENT: " ", Verdict.FAILED: "!"}


def _show(end: Resolved | Unresolved, *, explain: bool) -> None:
    if explain:
        for one in end.trace:
            say(_line(one))
    if isinstance(end, Resolved):
        manifest = end.manifest
        facts = {
            "id": manifest.id,
            "skills": ", ".join(manifest.skill_ids) or "none",
            "endpoint": manifest.endpoints.asap,
        }
        card(manifest.name, {**facts, "manifest": end.url, "named by": end.source})
    elif explain and end.trace:
        complain(f"{end.wanted.urn} isn't found")
    else:
        raise UserError(str(NotResolved(end.wanted.urn or "", end.trace)))


def _line(one: Asked) -> str:
    return f"{_MARKS[one.verdict]} {one}"
