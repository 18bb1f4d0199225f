"""`asap discover`, `health`, `browse`, `registry`: finding agents, and showing what was found and how."""

import argparse
import logging
from pathlib import Path
from typing import Any, Final, assert_never

import anyio
from attrs import evolve

from asap_adapters.cli.options import CLI_SENDER, add_client_options, reach, seconds, urn
from asap_adapters.cli.output import UserError, card, complain, print_json, say, table
from asap_adapters.client.agent_client import AgentClient
from asap_adapters.client.discovery import Discovery
from asap_core.errors import InvalidDocument
from asap_core.http.freshness import Freshness
from asap_core.mdns.dnssd import Added, Announcement, Event, Ignored, Removed, Updated
from asap_core.wire.codec import to_json
from asap_core.wire.registry import Skipped
from asap_core.wire.registry_entry import asap_url, make_entry


def add_commands(commands: Any) -> None:
    """Add the commands of this module."""
    discover = commands.add_parser("discover", help="fetch an agent's manifest and show it")
    discover.add_argument("url", metavar="URL", help="base URL of the agent")
    discover.add_argument("--expect", metavar="URN", type=urn, help="fail unless the agent has this id")
    add_client_options(discover)
    discover.set_defaults(run=_discover)

    health = commands.add_parser("health", help="ask an agent how it is (exit 1 if unhealthy)")
    health.add_argument("url", metavar="URL", help="base URL of the agent")
    add_client_options(health)
    health.set_defaults(run=_health)

    browse = commands.add_parser("browse", help="list agents on the local network (mDNS)")
    browse.add_argument("--wait", metavar="SECONDS", type=seconds, default=3.0, help="how long to listen (default: 3)")
    browse.add_argument("--watch", action="store_true", help="print agents as they come and go, until interrupted")
    browse.add_argument("--loopback", action="store_true", help="listen on loopback only")
    browse.add_argument(
        "--interface", metavar="NAME", action="append", help="listen there only (repeatable; a name or an address)"
    )
    add_client_options(browse)
    browse.set_defaults(run=_browse)

    registry = commands.add_parser("registry", help="search a registry, or make an entry for one")
    parts = registry.add_subparsers(title="commands", metavar="COMMAND", required=True)
    search = parts.add_parser("find", help="search a registry (exit 1 if nothing fits)")
    search.add_argument("location", metavar="LOCATION", help="URL or file of the registry")
    search.add_argument("--skill", metavar="SKILL", help="agents with this skill")
    search.add_argument("--id", metavar="URN", type=urn, help="the agent with this id")
    search.add_argument(
        "--registry-cache", metavar="DIR", type=Path, help="keep a copy of the registry there, for when it's down"
    )
    add_client_options(search)
    search.set_defaults(run=_registry_find)
    entry = parts.add_parser("entry", help="make the registry entry of a running agent")
    entry.add_argument("url", metavar="URL", help="base URL of the agent")
    add_client_options(entry)
    entry.set_defaults(run=_registry_entry)


def _client(arguments: argparse.Namespace, **options: Any) -> AgentClient:
    return AgentClient(sender=CLI_SENDER, **reach(arguments), **options)


# --- one agent -------------------------------------------------------------------------------------------------------


async def _discover(arguments: argparse.Namespace) -> int:
    async with _client(arguments) as client:
        found = await client.look_up(arguments.url, expect=arguments.expect)
    if arguments.json:
        document = {"url": found.url, "source": found.source.value, "age": round(found.age, 3)}
        print_json({**document, "kept": _kept(found.freshness), "manifest": to_json(found.manifest)})
    else:
        _show(found)
    return 0


def _show(found: Discovery) -> None:
    manifest = found.manifest
    skills = [
        f"{skill.id} ({skill.description})" if skill.description else skill.id for skill in manifest.capabilities.skills
    ]
    card(
        manifest.name,
        {
            "id": manifest.id,
            "version": manifest.version,
            "about": manifest.description or None,
            "skills": ", ".join(skills) or "none",
            "endpoint": manifest.endpoints.asap,
            "auth": "none" if manifest.auth is None else ", ".join(manifest.auth.schemes),
            "manifest": f"{found.source.value} from {found.url}",
            "kept": _kept(found.freshness),
            "also says": ", ".join(sorted(manifest.extra)) or None,
        },
    )


def _kept(freshness: Freshness | None) -> str:
    """What a client that goes on may do with it, and why."""
    if freshness is None:
        return "not at all: its server says so"
    after = "revalidated by its ETag" if freshness.etag else "fetched again"
    if freshness.fresh_for <= 0:
        return f"but {after} every time"
    return f"for {freshness.fresh_for:.0f} s, then {after}; while its server fails, {freshness.error_for:.0f} s longer"


async def _health(arguments: argparse.Namespace) -> int:
    async with _client(arguments) as client:
        health = await client.health_check(arguments.url)
    if arguments.json:
        print_json(to_json(health))
    else:
        facts = {"agent": health.agent_id, "version": health.version, "up for": f"{health.uptime_seconds:.0f} s"}
        load = None if health.load is None else f"{health.load.active_tasks} running"
        card(health.status, {**facts, "load": load})
    return 0 if health.healthy else 1


# --- the local network -----------------------------------------------------------------------------------------------


async def _browse(arguments: argparse.Namespace) -> int:
    interfaces = ["127.0.0.1"] if arguments.loopback else arguments.interface
    known: dict[tuple[str, str], Announcement] = {}
    logging.getLogger("zeroconf").setLevel(logging.CRITICAL)  # packets that can't be sent where a link has gone
    async with _client(arguments) as client, client.browse(interfaces=interfaces) as events:
        complain(f"mDNS: listening on {', '.join(events.links)}; this reaches the local network only")
        # From here on, that is: what it takes to begin isn't listening.
        with anyio.move_on_after(None if arguments.watch else arguments.wait):
            async for event in events:
                if arguments.watch:
                    _tell(event, as_json=arguments.json)
                else:
                    _note(event, known)
    if not arguments.watch:
        _print_agents(list(known.values()), as_json=arguments.json)
    return 0


def _note(event: Event, known: dict[tuple[str, str], Announcement]) -> None:
    match event:
        case Added(announcement) | Updated(announcement):
            known[announcement.link, announcement.instance] = announcement
        case Removed(announcement):
            known.pop((announcement.link, announcement.instance), None)
        case Ignored(unusable):
            complain(f"{unusable.instance} is ignored: {unusable.reason}")
        case _:
            assert_never(event)


_MARKS = {Added: "+", Updated: "~", Removed: "-"}


def _tell(event: Event, *, as_json: bool) -> None:
    if isinstance(event, Ignored):
        _note(event, {})
    elif as_json:
        # A line for each, so that a reader needn't know where one ends.
        print_json({"event": type(event).__name__.lower(), **to_json(event.announcement)}, indent=None)
    else:
        agent = event.announcement
        say(f"{_MARKS[type(event)]}  {agent.agent_id or agent.instance}  {agent.manifest_url}  {agent.link}")


def _print_agents(agents: list[Announcement], *, as_json: bool) -> None:
    if as_json:
        print_json([to_json(agent) for agent in agents])
    elif agents:
        rows = [
            (agent.instance, agent.agent_id or "?", ",".join(agent.skills or ()) or "?", agent.manifest_url, agent.link)
            for agent in agents
        ]
        table(("NAME", "ID", "SKILLS", "MANIFEST", "LINK"), rows)
    else:
        complain("no agents are announced on this network")


# --- registries ------------------------------------------------------------------------------------------------------


async def _registry_find(arguments: argparse.Namespace) -> int:
    async with _client(arguments, registry_cache=arguments.registry_cache) as client:
        try:
            registry = await client.registry(arguments.location)
        except InvalidDocument as error:
            raise UserError(f"{arguments.location} is {error}") from None
    entries = registry.find(skill=arguments.skill, agent_id=arguments.id)
    for skipped in registry.skipped:
        complain(_skipped(skipped))
    if arguments.json:
        print_json([to_json(entry) for entry in entries])
    elif entries:
        rows = [(entry.name, entry.id, ",".join(entry.skills), asap_url(entry) or "?") for entry in entries]
        table(("NAME", "ID", "SKILLS", "ENDPOINT"), rows)
    else:
        complain("no entry fits")
    return 0 if entries else 1


def _skipped(skipped: Skipped) -> str:
    """An entry that can't be read, as people count, and what is wrong within it."""
    problem = skipped.problems[0]
    inside = evolve(problem, path=problem.path[_TO_AN_ENTRY:]).json_path.removeprefix("$").removeprefix(".")
    return f"entry {skipped.index + 1} is skipped: {inside and f'{inside}: '}expected {problem.expected}"


# `$.agents[0]`
_TO_AN_ENTRY: Final = 2


async def _registry_entry(arguments: argparse.Namespace) -> int:
    async with _client(arguments) as client:
        found = await client.look_up(arguments.url)
    base = arguments.url.rstrip("/")
    print_json(to_json(make_entry(found.manifest, {"http": base, "manifest": found.url})))
    return 0
