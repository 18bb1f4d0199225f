"""`asap discover`, `health`, `browse`, `registry` and `resolve`: finds agents, and shows what was found and how."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final, assert_never

import anyio
from attrs import evolve, frozen

from asap_adapters.cli.command import command, flag, in_event_loop, nested, option, repeated, required
from asap_adapters.cli.failures import UserError
from asap_adapters.cli.options import (
    CLI_SENDER,
    OutboundOptions,
    backend_option,
    json_option,
    registry_cache_option,
    seconds,
    urn,
)
from asap_adapters.cli.output import card, complain, print_json, say, table
from asap_adapters.client.agent_client import AgentClient
from asap_core.client.discovery import DiscoveredAgent
from asap_core.client.options import DiscoveryOptions
from asap_core.client.search import Resolved, TraceEntry, TraceVerdict, Unresolved
from asap_core.client.trust import is_version
from asap_core.errors import InvalidDocument, NotResolved
from asap_core.http.caching import Freshness
from asap_core.mdns.dnssd import Added, Announcement, Event, Ignored, Removed, Updated
from asap_core.wire.codec import to_json
from asap_core.wire.registry import Skipped, asap_url, make_entry


def _client(outbound: OutboundOptions) -> AgentClient:
    return AgentClient(CLI_SENDER, **outbound.client_arguments())


# --- one agent -------------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class DiscoverOptions:
    """The options of `asap discover`."""

    url: str = required("URL", str, "base URL of the agent")
    expect: str | None = option("--expect URN", urn, "fail if the agent at URL has another id")
    json: bool = json_option()
    outbound: OutboundOptions = nested(OutboundOptions, "connections")
    backend: str = backend_option()


async def _discover(options: DiscoverOptions) -> int:
    async with _client(options.outbound) as client:
        found = await client.look_up(options.url, expect=options.expect)
    if options.json:
        document = {"url": found.url, "source": found.source.value, "age": round(found.age, 3)}
        print_json({**document, "kept": _kept(found.freshness), "manifest": to_json(found.manifest)})
    else:
        _show_manifest(found)
    return 0


def _show_manifest(found: DiscoveredAgent) -> None:
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
    """Describe how long a client may keep the manifest, and what happens then."""
    if freshness is None:
        return "not at all: its server says so"
    after = "revalidated by its ETag" if freshness.etag else "fetched again"
    if freshness.fresh_for <= 0:
        return f"but {after} every time"
    return f"for {freshness.fresh_for:.0f} s, then {after}; while its server fails, {freshness.error_for:.0f} s longer"


@frozen(kw_only=True)
class UrlOptions:
    """The options of `asap health` and `asap registry entry`."""

    url: str = required("URL", str, "base URL of the agent")
    json: bool = json_option()
    outbound: OutboundOptions = nested(OutboundOptions, "connections")
    backend: str = backend_option()


async def _health(options: UrlOptions) -> int:
    async with _client(options.outbound) as client:
        health = await client.health_check(options.url)
    if options.json:
        print_json(to_json(health))
    else:
        facts = {"agent": health.agent_id, "version": health.version, "up for": f"{health.uptime_seconds:.0f} s"}
        load = None if health.load is None else f"{health.load.active_tasks} running"
        card(health.status, {**facts, "load": load})
    return 0 if health.healthy else 1


# --- the local network -----------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class BrowseOptions:
    """The options of `asap browse`."""

    wait: float = option("--wait SECONDS", seconds, "listen for this long", default=3.0)
    watch: bool = flag("--watch", "print agents as they appear (+), change (~) and go (-), until interrupted")
    loopback: bool = flag("--loopback", "listen on loopback only")
    interface: Sequence[str] = repeated("--interface NAME", str, "listen on this interface only, by name or address")
    json: bool = json_option()
    outbound: OutboundOptions = nested(OutboundOptions, "connections")
    backend: str = backend_option()


async def _browse(options: BrowseOptions) -> int:
    interfaces = ["127.0.0.1"] if options.loopback else options.interface or None
    known: dict[tuple[str, str], Announcement] = {}
    # zeroconf logs each packet that it can't send after an interface has gone.
    logging.getLogger("zeroconf").setLevel(logging.CRITICAL)
    async with _client(options.outbound) as client, client.browse(interfaces=interfaces) as events:
        complain(f"mDNS: listening on {', '.join(events.links)}; this reaches the local network only")
        # The wait begins here: setting up the sockets doesn't count as listening.
        with anyio.move_on_after(None if options.watch else options.wait):
            async for event in events:
                if options.watch:
                    _tell(event, as_json=options.json)
                else:
                    _note(event, known)
    if not options.watch:
        _print_agents(list(known.values()), as_json=options.json)
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


_EVENT_MARKS = {Added: "+", Updated: "~", Removed: "-"}


def _tell(event: Event, *, as_json: bool) -> None:
    if isinstance(event, Ignored):
        _note(event, {})
    elif as_json:
        # One document for each line, so that a reader can split the stream.
        print_json({"event": type(event).__name__.lower(), **to_json(event.announcement)}, indent=None)
    else:
        agent = event.announcement
        say(f"{_EVENT_MARKS[type(event)]}  {agent.agent_id or agent.instance}  {agent.manifest_url}  {agent.link}")


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


@frozen(kw_only=True)
class RegistryFindOptions:
    """The options of `asap registry find`."""

    location: str = required("LOCATION", str, "URL or file of the registry")
    skill: str | None = option("--skill SKILL", str, "show agents with this skill")
    id: str | None = option("--id URN", urn, "show the agent with this id")
    registry_cache: Path | None = registry_cache_option()
    json: bool = json_option()
    outbound: OutboundOptions = nested(OutboundOptions, "connections")
    backend: str = backend_option()


async def _registry_find(options: RegistryFindOptions) -> int:
    discovery = DiscoveryOptions(registry_cache=options.registry_cache)
    client = AgentClient(CLI_SENDER, discovery=discovery, **options.outbound.client_arguments())
    async with client:
        try:
            registry = await client.registry(options.location)
        except InvalidDocument as error:
            raise UserError(f"{options.location} is {error}") from None
    entries = registry.find(skill=options.skill, agent_id=options.id)
    for skipped in registry.skipped:
        complain(_skipped(skipped))
    if options.json:
        print_json([to_json(entry) for entry in entries])
    elif entries:
        rows = [(entry.name, entry.id, ",".join(entry.skills), asap_url(entry) or "?") for entry in entries]
        table(("NAME", "ID", "SKILLS", "ENDPOINT"), rows)
    else:
        complain("no entry matches")
    return 0 if entries else 1


# The path of a problem begins with that of its entry, `$.agents[0]`: two steps.
_TO_AN_ENTRY: Final = 2


def _skipped(skipped: Skipped) -> str:
    """Describe an unreadable entry; entries are counted from 1, as people do."""
    problem = skipped.problems[0]
    inside = evolve(problem, path=problem.path[_TO_AN_ENTRY:]).json_path.removeprefix("$").removeprefix(".")
    return f"entry {skipped.index + 1} is skipped: {inside and f'{inside}: '}expected {problem.expected}"


async def _registry_entry(options: UrlOptions) -> int:
    async with _client(options.outbound) as client:
        found = await client.look_up(options.url)
    base = options.url.rstrip("/")
    print_json(to_json(make_entry(found.manifest, {"http": base, "manifest": found.url})))
    return 0


# --- by URN ----------------------------------------------------------------------------------------------------------


def _version(text: str) -> str:
    if not is_version(text):
        raise ValueError("expected a version such as 2.1")
    return text


@frozen(kw_only=True)
class ResolveOptions:
    """The options of `asap resolve`."""

    urn: str = required("URN", urn, "id of the agent")
    registry: Sequence[str] = repeated(
        "--registry LOCATION", str, "ask this registry, a URL or a file; several are asked in the order given"
    )
    revocations: str | None = option(
        "--revocations LOCATION", str, "refuse agents on this revocation list, a URL or a file"
    )
    registry_cache: Path | None = registry_cache_option()
    wait: float = option("--wait SECONDS", seconds, "listen to the local network for this long", default=3.0)
    no_mdns: bool = flag("--no-mdns", "don't ask the local network")
    require_skill: str | None = option("--require-skill SKILL", str, "refuse agents without this skill")
    require_version: str | None = option(
        "--require-version VERSION", _version, "refuse agents that speak only earlier versions of ASAP"
    )
    explain: bool = flag("--explain", "show each source that was asked, and its result")
    json: bool = json_option()
    outbound: OutboundOptions = nested(OutboundOptions, "connections")
    backend: str = backend_option()


async def _resolve(options: ResolveOptions) -> int:
    discovery = DiscoveryOptions(
        registries=options.registry, revocations=options.revocations, registry_cache=options.registry_cache
    )
    client = AgentClient(CLI_SENDER, discovery=discovery, **options.outbound.client_arguments())
    async with client:
        end = await client.explain(
            options.urn,
            wait=0.0 if options.no_mdns else options.wait,
            require_skill=options.require_skill,
            require_version=options.require_version,
        )
    if options.json:
        _print_resolution(end, explain=options.explain)
    else:
        _show_resolution(end, explain=options.explain)
    return 0 if isinstance(end, Resolved) else 1


def _print_resolution(end: Resolved | Unresolved, *, explain: bool) -> None:
    found = (
        {"url": end.url, "source": end.source, "manifest": to_json(end.manifest)} if isinstance(end, Resolved) else {}
    )
    asked = [{"where": one.where, "verdict": one.verdict.value, "why": one.why} for one in end.trace]
    print_json({"found": isinstance(end, Resolved), **found, **({"asked": asked} if explain else {})})


_VERDICT_MARKS = {
    TraceVerdict.TAKEN: "+",
    TraceVerdict.REFUSED: "-",
    TraceVerdict.ABSENT: " ",
    TraceVerdict.FAILED: "!",
}


def _show_resolution(end: Resolved | Unresolved, *, explain: bool) -> None:
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


def _line(one: TraceEntry) -> str:
    return f"{_VERDICT_MARKS[one.verdict]} {one}"


COMMANDS: Final = (
    command("discover", DiscoverOptions, in_event_loop(_discover), "fetch an agent's manifest and show it"),
    command("health", UrlOptions, in_event_loop(_health), "ask an agent for its health (exit code 1 if unhealthy)"),
    command("browse", BrowseOptions, in_event_loop(_browse), "list the agents announced on the local network (mDNS)"),
    command(
        "registry find",
        RegistryFindOptions,
        in_event_loop(_registry_find),
        "search a registry (exit code 1 if no entry matches)",
    ),
    command(
        "registry entry", UrlOptions, in_event_loop(_registry_entry), "print the registry entry of a running agent"
    ),
    command(
        "resolve",
        ResolveOptions,
        in_event_loop(_resolve),
        "find an agent by its URN (exit code 1 if it isn't found)",
        description=(
            "Find the agent with this URN: ask the registries in the order given, then the local network. The agent "
            "found must state this id itself, and have what is required."
        ),
    ),
)
