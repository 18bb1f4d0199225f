"""`asap serve`: binds, says where, serves until a signal, finishes what is in flight."""

import argparse
import logging
import mmap
import os
import signal
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import anyio.abc
from attrs import evolve, frozen

from asap_adapters.auth.authenticator import Authenticator
from asap_adapters.cli.agent_loading import (
    LoadedAgent,
    adapt_agent,
    import_agent,
    manifest_of_file,
    reachable_at,
    with_auth,
)
from asap_adapters.cli.caller_tokens import add_oidc, authenticator, policy_of
from asap_adapters.cli.echo_agent import ECHO_ID, echo, echo_manifest
from asap_adapters.cli.introspect import add_introspect
from asap_adapters.cli.options import EXIT_INTERRUPTED, add_backend, body_size, port, redis_url, urn, whole_number
from asap_adapters.cli.output import UserError, complain, say
from asap_adapters.cli.tokens import read_tokens
from asap_adapters.cli.workers import WorkerPlace, supervise
from asap_adapters.entropy import new_secret
from asap_adapters.server.handlers import Handlers
from asap_adapters.server.listener import Bound, listen, listen_on, serve, url_of
from asap_adapters.server.storage import Redis, StateFile, Storage
from asap_adapters.server.tls import TLS
from asap_core.admission.policy import NoncePolicy, Policy
from asap_core.admission.ratelimit import Limit, parse_limits
from asap_core.auth.principal import TokenTable
from asap_core.http.pages import read_hosts, read_origins
from asap_core.http.proxies import read_networks
from asap_core.net.ipv6_zones import without_zone
from asap_core.net.urls import is_loopback, origin_of
from asap_core.server.agent import Agent
from asap_core.server.metrics import Counters, counters_size
from asap_core.server.wellknown import MANIFEST_PATH
from asap_core.wire.manifest import Manifest

_DESCRIPTION: Final = (
    "Serve an agent until SIGINT or SIGTERM; what is in flight is finished first, and a second signal doesn't wait. "
    "Without an argument it's an echo agent. `pkg.module:agent` names an Agent; the mapping `handlers` in the same "
    "module has its functions by skill, and `on`, if there, those for other payload types. Options overrule the "
    "agent's policy; its endpoint becomes --public-url, or, if it's on this machine, where the server listens."
)
# Of machines that have more processors, each would rather have an agent of its own.
_MOST_WORKERS: Final = 256
_WILDCARDS: Final = frozenset({"", "*", "0.0.0.0", "::", "0"})  # noqa: S104 - named to be refused


def add_commands(commands: Any) -> None:
    """Add the command of this module."""
    command = commands.add_parser("serve", help="serve an agent", description=_DESCRIPTION)
    add = command.add_argument
    add("agent", metavar="pkg.module:agent", nargs="?", help="an Agent, with `handlers` beside it")
    add("--host", default="127.0.0.1", help="address to bind (default: 127.0.0.1)")
    add("--port", type=port, default=8000, help="port to bind, 0 for a free one (default: 8000)")
    add("--public-url", metavar="URL", type=_public_url, help="what others reach it by; needed for wildcard binds")
    add("--id", metavar="URN", type=urn, help=f"the agent's id (default: {ECHO_ID})")
    add("--manifest", metavar="FILE", type=Path, help="serve this manifest, every skill an echo")
    add("--profile", choices=("strict", "reference"), help="what is let in (default: strict)")
    add("--nonce", choices=tuple(each.value for each in NoncePolicy), help="what stands for uniqueness")
    add("--token", metavar="TOKEN=URN", action="append", default=[], help="let this token in as URN (repeatable)")
    add("--token-file", metavar="FILE", type=Path, help="TOKEN=URN lines; not seen in process lists as --token is")
    add_oidc(add)
    add_introspect(add)
    add("--rate-limit", metavar="LIMITS", type=_limits, help='such as "10/second;100/minute" (the default), or off')
    add(
        "--trusted-proxy",
        metavar="NET",
        type=_network,
        action="append",
        help="a proxy that names the peer (repeatable)",
    )
    add("--forwarded-header", choices=("x-forwarded-for", "forwarded"), help="where it does (default: x-forwarded-for)")
    add("--allow-origin", metavar="URL", type=_page, action="append", help="let web pages of it call (repeatable)")
    add("--allow-host", metavar="NAME", type=_host, action="append", help="a name that pages may call by (repeatable)")
    add("--max-body", metavar="BYTES", type=body_size, help="largest body, inflated (default: 10485760)")
    add("--tls-cert", metavar="FILE", type=Path, help="serve https with this certificate chain (PEM)")
    add("--tls-key", metavar="FILE", type=Path, help="the certificate's key, where it's a file of its own")
    add("--mdns", action=argparse.BooleanOptionalAction, default=False, help="announce it on the local network")
    add(
        "--mdns-interface", metavar="NAME", action="append", help="on this interface only (repeatable; name or address)"
    )
    add("--state", metavar="FILE", type=Path, help="carry what was admitted over restarts and crashes in this file")
    add("--redis", metavar="URL", type=redis_url, help="remember in Redis or Valkey, with all who serve this agent")
    add("--redis-file", metavar="FILE", type=Path, help="its URL in a file; not seen in process lists as --redis is")
    add("--workers", metavar="N", type=_workers, default=1, help="processes that serve; more than one need --redis")
    add("--principal-limit", metavar="LIMITS", type=_limits, help="of each authenticated agent (default: off)")
    add("--metrics", action="store_true", help="show counters of what was decided at /asap/metrics, to anyone")
    add("--verbose", "-v", action="count", default=0, help="log what is refused; twice: what is let in as well")
    add_backend(command)
    command.set_defaults(run=_serve, worker=None, nonce_secret=None, counters=None)


def _public_url(text: str) -> str:
    parts = urlsplit(text) if origin_of(text) is not None else None
    if parts is None or parts.username is not None or parts.query or parts.fragment:
        raise argparse.ArgumentTypeError("expected a URL such as https://agent.example, without user, query, fragment")
    return text.rstrip("/")


def _workers(text: str) -> int:
    return whole_number(text, 1, _MOST_WORKERS, f"expected a number of processes, 1 to {_MOST_WORKERS}")


def _network(text: str) -> str:
    try:
        return read_networks([text])[0]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _page(text: str) -> str:
    try:
        return read_origins([text])[0]
    except ValueError:
        raise argparse.ArgumentTypeError("expected an origin such as https://app.example, without path") from None


def _host(text: str) -> str:
    try:
        return read_hosts([text])[0]
    except ValueError:
        raise argparse.ArgumentTypeError("expected a name such as agent.example, without scheme and port") from None


def _limits(text: str) -> tuple[Limit, ...]:
    if text == "off":
        return ()
    try:
        limits = parse_limits(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, or off") from None
    if not limits:
        raise argparse.ArgumentTypeError("expected limits such as 10/second;100/minute, or off")
    return limits


@frozen(kw_only=True)
class _Reach:
    """Where it listens, and where others reach it."""

    bound: Bound
    base_url: str
    public: bool


async def _serve(arguments: argparse.Namespace) -> int:
    tokens = read_tokens(arguments.token, arguments.token_file)
    _check(arguments, tokens)
    imported = None if arguments.agent is None else import_agent(arguments.agent)
    logging.basicConfig(level=logging.WARNING, format="asap: %(message)s", stream=sys.stderr)
    logging.getLogger("asap").setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(arguments.verbose, 2)])
    if arguments.worker is not None and arguments.worker.number > 0:
        logging.getLogger("asap.serve").setLevel(logging.ERROR)  # the first of them has said it
    logging.getLogger("zeroconf").setLevel(logging.CRITICAL)  # what's wrong there, asap.mdns says in one line
    logging.getLogger("coredis").setLevel(logging.CRITICAL)  # what's wrong there, asap.redis says in one line
    bound = await _listen(arguments)
    async with bound.listener:
        public = arguments.public_url is not None
        # What goes into the manifest means the same to everyone: an address without this machine's name for its link.
        reach = _Reach(bound=bound, base_url=arguments.public_url or without_zone(bound.url), public=public)
        served = _made(arguments, reach, imported, auth=len(tokens) > 0 or policy_of(arguments) is not None)
        _warn(served.agent.policy)
        async with authenticator(arguments, tokens) as authenticate:
            await _run(arguments, served, authenticate, reach)
    return 0


async def _run(
    arguments: argparse.Namespace, served: LoadedAgent, authenticate: Authenticator | None, reach: _Reach
) -> None:
    stop = anyio.Event()

    async def server(*, task_status: anyio.abc.TaskStatus[str]) -> None:
        await serve(
            served.agent,
            Handlers(served.handlers, on=served.on),
            at=reach.bound,
            tls=None if arguments.tls_cert is None else TLS(arguments.tls_cert, arguments.tls_key),
            authenticate=authenticate,
            storage=_storage(arguments),
            metrics=_counters(arguments),
            stop=stop,
            task_status=task_status,
        )

    place = arguments.worker
    async with anyio.create_task_group() as signals:
        await signals.start(_stop_on_signals, stop)
        if place is not None:
            signals.start_soon(_stop_with_parent, stop, place)
        async with anyio.create_task_group() as servers:
            if arguments.mdns and (place is None or place.number == 0):
                await servers.start(_announce, _advertiser(arguments, served.agent.manifest, reach), stop)
            await servers.start(server)
            if place is None:
                shown = f"{reach.bound.url}, reached by {reach.base_url}" if reach.public else reach.bound.url
                say(f"{served.agent.manifest.id} listens on {shown}")
            else:
                place.ready()
        signals.cancel_scope.cancel()


def with_workers(arguments: argparse.Namespace, run: Callable[[argparse.Namespace], int]) -> int:
    """Serve with several processes."""
    _check(arguments, read_tokens(arguments.token, arguments.token_file))
    # Made before they are: a nonce that one gave out is good with all.
    arguments.nonce_secret = new_secret()
    if arguments.metrics:
        # All of them see it, and it outlives each: what one has counted isn't lost with it.
        arguments.counters = memoryview(mmap.mmap(-1, counters_size(arguments.workers)))

    def started(port: int) -> None:
        url = url_of(arguments.host, port, tls=arguments.tls_cert is not None)
        shown = f"{url}, reached by {arguments.public_url}" if arguments.public_url else url
        say(f"{arguments.workers} workers listen on {shown}")

    return supervise(arguments, run, started)


def _counters(arguments: argparse.Namespace) -> bool | Counters:
    if arguments.counters is None:
        return bool(arguments.metrics)
    return Counters(arguments.counters, row=arguments.worker.number)


async def _announce(advertiser: Any, stop: anyio.Event, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    """Announce the agent until it's to stop: nobody should come while what is in flight is finished."""
    async with advertiser:
        for one in advertiser.announced:
            where = f"{one.link} ({', '.join(one.addresses) or one.manifest_url})"
            complain(f"mDNS: announced as {one.instance} on {where}; this reaches the local network only")
        task_status.started()
        await stop.wait()


async def _stop_with_parent(stop: anyio.Event, place: WorkerPlace) -> None:
    await place.parent_gone()
    complain("the process that started this worker is gone")
    stop.set()


async def _stop_on_signals(stop: anyio.Event, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            if stop.is_set():
                # Asked twice: not waiting for what is in flight. Neither a thread nor work under an idempotency key
                # can be cancelled, so there's no gentler way.
                os._exit(EXIT_INTERRUPTED)
            stop.set()


# --- from the command line to what is served -------------------------------------------------------------------------


def _check(arguments: argparse.Namespace, tokens: TokenTable) -> None:
    if arguments.agent is not None and (arguments.manifest or arguments.id):
        raise UserError("expected either pkg.module:agent, or --manifest and --id", usage=True)
    if arguments.redis is not None and arguments.redis_file is not None:
        raise UserError("expected --redis or --redis-file, not both", usage=True)
    if arguments.state is not None and (arguments.redis or arguments.redis_file):
        raise UserError("expected --state or --redis, not both: one place decides", usage=True)
    if arguments.workers > 1 and not (arguments.redis or arguments.redis_file):
        message = "--workers needs --redis: processes that don't remember together would each accept an envelope once"
        raise UserError(message, usage=True)
    if arguments.tls_key is not None and arguments.tls_cert is None:
        raise UserError("--tls-key goes with --tls-cert", usage=True)
    if arguments.tls_cert is not None:
        _check_tls(arguments.tls_cert, arguments.tls_key)
    if arguments.host in _WILDCARDS and arguments.public_url is None:
        raise UserError("a wildcard bind needs --public-url, so that the manifest can say where to call", usage=True)
    authenticates = len(tokens) > 0 or policy_of(arguments) is not None
    if not authenticates and not is_loopback(arguments.host) and arguments.public_url is None:
        message = "without --token anyone who reaches this address may call the agent; say --public-url if that's meant"
        raise UserError(message, usage=True)


def _check_tls(cert: Path, key: Path | None) -> None:
    for path in (cert, key):
        if path is not None:
            path.open("rb").close()  # says which of the two isn't there; ssl doesn't
    try:
        # An empty pass phrase instead of a prompt: a server starts by itself.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except ssl.SSLError:
        files = f"{cert}" if key is None else f"{cert} and {key}"
        raise UserError(f"{files}: expected a certificate chain and its key in PEM, without a pass phrase") from None


def _storage(arguments: argparse.Namespace) -> Storage:
    if arguments.state is not None:
        return StateFile(arguments.state)
    url = _redis_url(arguments)
    return None if url is None else Redis(url)


def _redis_url(arguments: argparse.Namespace) -> str | None:
    if arguments.redis_file is None:
        return arguments.redis  # type: ignore[no-any-return]
    lines = arguments.redis_file.read_text("utf-8").split()
    try:
        (url,) = lines
        return redis_url(url)
    except (ValueError, argparse.ArgumentTypeError):
        raise UserError(f"{arguments.redis_file}: expected one URL such as redis://localhost:6379/0") from None


async def _listen(arguments: argparse.Namespace) -> Bound:
    if arguments.worker is not None:
        return await listen_on(arguments.worker.sockets, arguments.host, tls=arguments.tls_cert is not None)
    try:
        return await listen(arguments.host, arguments.port, tls=arguments.tls_cert is not None)
    except OSError as error:
        raise UserError(f"can't listen on {arguments.host}, port {arguments.port}: {error.strerror or error}") from None


def _made(arguments: argparse.Namespace, reach: _Reach, imported: LoadedAgent | None, *, auth: bool) -> LoadedAgent:
    if imported is not None:
        policy = _policy(arguments, imported.agent.policy)
        agent = adapt_agent(imported.agent, base_url=reach.base_url, public=reach.public, auth=auth, policy=policy)
        return evolve(imported, agent=_checked(agent, auth=auth))
    if arguments.manifest is None:
        manifest = echo_manifest(arguments.id or ECHO_ID, reach.base_url)
    else:
        manifest = manifest_of_file(arguments.manifest)
        manifest = reachable_at(evolve(manifest, id=arguments.id or manifest.id), reach.base_url)
    agent = Agent(with_auth(manifest) if auth else manifest, policy=_policy(arguments, Policy()))
    return LoadedAgent(_checked(agent, auth=auth), dict.fromkeys(manifest.skill_ids, echo), {})


def _checked(agent: Agent, *, auth: bool) -> Agent:
    if agent.authenticates and not auth:
        raise UserError(
            "the manifest asks callers to authenticate: expected --token, --token-file, --oidc or --introspect"
        )
    return agent


def _policy(arguments: argparse.Namespace, own: Policy) -> Policy:
    profiles = {None: own, "strict": Policy(), "reference": Policy.reference()}
    changes = {
        "nonce": None if arguments.nonce is None else NoncePolicy(arguments.nonce),
        "max_body": arguments.max_body,
        "peer_limits": arguments.rate_limit,
        "principal_limits": arguments.principal_limit,
        "trusted_proxies": arguments.trusted_proxy,
        "forwarded_header": arguments.forwarded_header,
        "origins": arguments.allow_origin,
        "hosts": arguments.allow_host,
    }
    policy = profiles[arguments.profile]
    if arguments.max_body is not None:
        changes["max_bodies"] = max(policy.max_bodies, arguments.max_body)
    return evolve(policy, **{key: value for key, value in changes.items() if value is not None})


def _warn(policy: Policy) -> None:
    if policy.profile == "reference":
        complain("profile reference: envelopes without id or timestamp, and for other agents, are accepted")
    if policy.nonce is NoncePolicy.OFF:
        complain("nonce off: replays are accepted")


def _advertiser(arguments: argparse.Namespace, manifest: Manifest, reach: _Reach) -> Any:
    from asap_adapters.mdns.local_network import Advertiser  # noqa: PLC0415 - zeroconf takes 80 ms to import

    advertiser = Advertiser(
        agent_id=manifest.id,
        name=manifest.name,
        version=manifest.version,
        skills=manifest.skill_ids,
        manifest_url=f"{reach.base_url}{MANIFEST_PATH}",
        host=reach.bound.host,
        port=reach.bound.port,
        interfaces=arguments.mdns_interface,
    )
    for key in advertiser.left_out:
        complain(f"mDNS: {key} is left out of the announcement, which has room for 255 bytes")
    return advertiser
