"""`asap discover`, `health`, `browse`, `registry`: finding agents, and showing what was found and how."""

import argparse
import sys
from typing import Any, Final

import anyio

from asap_adapters.cli.output import add_client_options, card, complain, print_json, print_line, table
from asap_adapters.client import AgentClient
from asap_core.codec import to_json
from asap_core.dnssd import Added, Announcement, Ignored, Removed, Updated
from asap_core.model.manifest import Manifest
from asap_core.registry import asap_url, find, make_entry

__all__ = ["add_commands"]

CLI_SENDER: Final = "urn:asap:agent:asap-cli"


def add_commands(commands: Any) -> None:
    """Add the commands of this module."""
    discover = commands.add_parser("discover", help="fetch an agent's manifest and show it", allow_abbrev=False)
    discover.add_argument("url", metavar="URL", help="base URL of the agent")
    discover.add_argument("--expect", metavar="URN", help="fail unless the agent has this id")
    add_client_options(discover)
    discover.set_defaults(run=_discover)

    health = commands.add_parser("health", help="ask an agent how it is (exit 1 if unhealthy)", allow_abbrev=False)
    health.add_argument("url", metavar="URL", help="base URL of the agent")
    add_client_options(health)
    health.set_defaults(run=_health)

    browse = commands.add_parser("browse", help="list agents on the local network (mDNS)", allow_abbrev=False)
    browse.add_argument("--wait", metavar="SECONDS", type=_seconds, default=3.0, help="how long to listen (default: 3)")
    browse.add_argument("--watch", action="store_true", help="print agents as they come and go, until interrupted")
    browse.add_argument("--loopback", action="store_true", help="listen on loopback only")
    add_client_options(browse)
    browse.set_defaults(run=_browse)

    registry = commands.add_parser("registry", help="search a registry, or make an entry for one", allow_abbrev=False)
    parts = registry.add_subparsers(title="commands", metavar="COMMAND", required=True)
    search = parts.add_parser("find", help="search a registry", allow_abbrev=False)
    search.add_argument("location", metavar="LOCATION", help="URL or file of the registry")
    search.add_argument("--skill", metavar="SKILL", help="agents with this skill")
    search.add_argument("--id", metavar="URN", help="the agent with this id")
    add_client_options(search)
    search.set_defaults(run=_registry_find)
    entry = parts.add_parser("entry", help="make the registry entry of a running agent", allow_abbrev=False)
    entry.add_argument("url", metavar="URL", help="base URL of the agent")
    add_client_options(entry)
    entry.set_defaults(run=_registry_entry)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST:
        raise argparse.ArgumentTypeError("expected a number of seconds above 0, at most a day")
    return seconds


_LONGEST: Final = 86_400


def _client(arguments: argparse.Namespace) -> AgentClient:
    return AgentClient(sender=CLI_SENDER, allow_http=arguments.allow_http)


async def _discover(arguments: argparse.Namespace) -> int:
    async with _client(arguments) as client:
        found = await client.look_up(arguments.url, expect=arguments.expect)
    if arguments.json:
        print_json({"url": found.url, "source": found.source.value, "manifest": to_json(found.manifest)})
    else:
        _show_manifest(found.manifest, f"{found.source.value} from {found.url}")
    return 0


def _show_manifest(manifest: Manifest, source: str) -> None:
    skills = [f"{skill.id} ({skill.description})" for skill in manifest.capabilities.skills]
    card(
        manifest.name,
        {
            "id": manifest.id,
            "version": manifest.version,
            "about": manifest.description or None,
            "skills": ", ".join(skills) or "none",
            "endpoint": manifest.endpoints.asap,
            "auth": "none" if manifest.auth is None else ", ".join(manifest.auth.schemes),
            "manifest": source,
            "good for": f"{manifest.ttl_seconds} s",
            "also says": ", ".join(sorted(manifest.extra)) or None,
        },
    )


async def _health(arguments: argparse.Namespace) -> int:
    async with _client(arguments) as client:
        health = await client.health_check(arguments.url)
    if arguments.json:
        print_json(to_json(health))
    else:
        facts = {"agent": health.agent_id, "version": health.version, "up for": f"{health.uptime_seconds:g} s"}
        load = None if health.load is None else f"{health.load.active_tasks} running"
        card(health.status, {**facts, "load": load})
    return 0 if health.healthy else 1


async def _browse(arguments: argparse.Namespace) -> int:
    interfaces = ["127.0.0.1"] if arguments.loopback else None
    known: dict[str, Announcement] = {}
    with anyio.move_on_after(None if arguments.watch else arguments.wait):
        async with _client(arguments) as client, client.browse(interfaces=interfaces) as events:
            async for event in events:
                _note(event, known)
                if arguments.watch:
                    _print_event(event, as_json=arguments.json)
    if not arguments.watch:
        _print_agents(list(known.values()), as_json=arguments.json)
    return 0


def _note(event: Any, known: dict[str, Announcement]) -> None:
    match event:
        case Added(announcement) | Updated(announcement):
            known[announcement.instance] = announcement
        case Removed(announcement):
            known.pop(announcement.instance, None)
        case Ignored(unusable):
            complain(f"{unusable.instance} is ignored: {unusable.reason}")


def _print_event(event: Any, *, as_json: bool) -> None:
    word = {Added: "+", Updated: "~", Removed: "-"}.get(type(event))
    if word is None:
        return
    if as_json:
        # One line for each event, so that a reader needn't find where one ends.
        print_line({"event": type(event).__name__.lower(), **to_json(event.announcement)})
    else:
        agent = event.announcement
        table([word, agent.agent_id or agent.instance, agent.manifest_url], [])


def _print_agents(agents: list[Announcement], *, as_json: bool) -> None:
    if as_json:
        print_json([to_json(agent) for agent in agents])
    elif agents:
        rows = [
            (agent.instance, agent.agent_id or "?", ",".join(agent.skills or ()) or "?", agent.manifest_url)
            for agent in agents
        ]
        table(("NAME", "ID", "SKILLS", "MANIFEST"), rows)
    else:
        print("no agents announced on this network", file=sys.stderr)


async def _registry_find(arguments: argparse.Namespace) -> int:
    async with _client(arguments) as client:
        registry = await client.registry(arguments.location)
    entries = find(registry, skill=arguments.skill, agent_id=arguments.id)
    for skipped in registry.skipped:
        complain(f"entry {skipped.index} is skipped: {skipped.problems[0]}")
    if arguments.json:
        print_json([to_json(entry) for entry in entries])
    elif entries:
        rows = [(entry.name, entry.id, ",".join(entry.skills), asap_url(entry) or "?") for entry in entries]
        table(("NAME", "ID", "SKILLS", "ENDPOINT"), rows)
    else:
        complain("no entry fits")
        return 1
    return 0


async def _registry_entry(arguments: argparse.Namespace) -> int:
    async with _client(arguments) as client:
        found = await client.look_up(arguments.url)
    base = arguments.url.rstrip("/")
    print_json(to_json(make_entry(found.manifest, {"http": base, "manifest": found.url})))
    return 0
