"""`asap serve`: binds, prints where it listens, serves until a signal, and finishes running requests."""

import logging
import mmap
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

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
from asap_adapters.cli.caller_tokens import read_tokens
from asap_adapters.cli.command import command
from asap_adapters.cli.echo_agent import ECHO_ID, echo, echo_manifest
from asap_adapters.cli.failures import EXIT_INTERRUPTED, UserError, exit_code
from asap_adapters.cli.listening import ListenPlace, at_address, at_path, inherited
from asap_adapters.cli.options import redis_url
from asap_adapters.cli.output import complain, say
from asap_adapters.cli.serve_options import DEFAULT_HOST, DEFAULT_PORT, SERVE_RULES, ServeOptions
from asap_adapters.server.handlers import Handlers
from asap_adapters.server.listener import Bound, listen_on, serve, url_of
from asap_adapters.server.startup import freeze_what_is_loaded
from asap_adapters.server.storage import Redis, StateFile, Storage
from asap_adapters.server.tls import TLS, CertificateFiles
from asap_adapters.system import new_secret
from asap_core.admission.policy import NoncePolicy, Policy
from asap_core.auth.principal import TokenTable
from asap_core.net.urls import is_loopback, without_zone
from asap_core.server.agent import Agent
from asap_core.server.metrics import Counters, counters_size
from asap_core.wire.manifest import MANIFEST_PATH, Manifest

if TYPE_CHECKING:
    from asap_adapters.cli.workers import WorkerPlace
    from asap_adapters.mdns.local_network import Advertiser

_WILDCARDS: Final = frozenset({"", "*", "0.0.0.0", "::", "0"})  # noqa: S104 - named to be refused


@frozen(kw_only=True)
class _Worker:
    """What a worker process has from its parent. `counters` are shared by all workers; each has a row of them."""

    place: "WorkerPlace"
    nonce_secret: bytes
    counters: memoryview | None


@frozen(kw_only=True)
class _Secrets:
    """What the files of secrets say: the table of tokens, and the certificate."""

    tokens: TokenTable
    tls: CertificateFiles | None


@frozen(kw_only=True)
class _Location:
    """Where the server listens, and the base URL that its manifest says."""

    bound: Bound
    base_url: str
    is_public: bool


def _serve(options: ServeOptions) -> int:
    place = _place(options)
    secrets = _read_secrets(options)
    _check(options, place, secrets.tokens)
    with place.listening() as sockets:
        if options.workers == 1:
            return _serve_here(options, place, sockets, secrets, None)
        return _serve_with_workers(options, place, sockets)


def _serve_here(
    options: ServeOptions,
    place: ListenPlace,
    sockets: Sequence[socket.socket],
    secrets: _Secrets,
    worker: _Worker | None,
) -> int:
    main = partial(_listen_and_serve, options, place, sockets, secrets, worker)
    anyio.run(main, backend=options.backend, backend_options={"use_uvloop": True} if options.uvloop else {})
    return 0


def _serve_with_workers(options: ServeOptions, place: ListenPlace, sockets: list[socket.socket]) -> int:
    from asap_adapters.cli.workers import supervise  # noqa: PLC0415 - most servers have one process

    # Made before the workers start: a DPoP nonce that one of them issues must be valid at all.
    nonce_secret = new_secret()
    # Shared memory outlives each worker: what a worker counted isn't lost when it dies.
    counters = memoryview(mmap.mmap(-1, counters_size(options.workers))) if options.metrics else None

    def run(worker_place: "WorkerPlace") -> int:
        worker = _Worker(place=worker_place, nonce_secret=nonce_secret, counters=counters)
        # The files may have changed since the first workers read them.
        return exit_code(lambda: _serve_here(options, place, worker_place.sockets, _read_secrets(options), worker))

    def started() -> None:
        name, tls = sockets[0].getsockname(), options.tls_cert is not None
        url = f"unix:{name}" if place.host is None else url_of(place.host, int(name[1]), tls=tls)
        shown = f"{url}, reached by {options.public_url}" if options.public_url else url
        say(f"{options.workers} workers listen on {shown}")

    return supervise(sockets, options.workers, run, started, reloads=options.tls_cert is not None)


async def _listen_and_serve(
    options: ServeOptions,
    place: ListenPlace,
    sockets: Sequence[socket.socket],
    secrets: _Secrets,
    worker: _Worker | None,
) -> None:
    imported = None if options.agent is None else import_agent(options.agent)
    _set_up_logging(options, worker)
    bound = await listen_on(sockets, place.host or "", tls=secrets.tls is not None)
    async with bound.listener:
        # Other machines read the manifest's URL: an IPv6 zone, this machine's name for an interface, is left out.
        base_url = options.public_url or without_zone(bound.url)
        location = _Location(bound=bound, base_url=base_url, is_public=options.public_url is not None)
        loaded = _loaded(options, location, imported, auth=_authenticates(options, secrets.tokens))
        _warn(loaded.agent.policy)
        nonce_secret = None if worker is None else worker.nonce_secret
        async with _authenticator(options, secrets.tokens, nonce_secret) as authenticate:
            await _run(options, worker, loaded, location, authenticate=authenticate, tls=secrets.tls)


@asynccontextmanager
async def _authenticator(
    options: ServeOptions, tokens: TokenTable, nonce_secret: bytes | None
) -> AsyncIterator[Authenticator | None]:
    if not options.callers.names_provider:
        yield tokens if len(tokens) else None
    else:
        from asap_adapters.cli.provider_tokens import table_and_provider  # noqa: PLC0415 - most servers have no provider

        async with table_and_provider(options.callers, tokens, nonce_secret) as both:
            yield both


async def _run(
    options: ServeOptions,
    worker: _Worker | None,
    loaded: LoadedAgent,
    location: _Location,
    *,
    authenticate: Authenticator | None,
    tls: CertificateFiles | None,
) -> None:
    stop = anyio.Event()

    async def server(*, task_status: anyio.abc.TaskStatus[str]) -> None:
        await serve(
            loaded.agent,
            Handlers(loaded.handlers, on=loaded.on),
            at=location.bound,
            tls=tls,
            authenticate=authenticate,
            storage=_storage(options),
            metrics=_counters(options, worker),
            stop=stop,
            task_status=task_status,
        )

    async with anyio.create_task_group() as signals:
        await signals.start(_stop_on_signals, stop)
        if tls is not None and hasattr(signal, "SIGHUP"):
            await signals.start(_reload_on_hangup, tls)
        if worker is not None:
            signals.start_soon(_stop_with_parent, stop, worker.place)
        signals.start_soon(freeze_what_is_loaded)
        async with anyio.create_task_group() as servers:
            if options.mdns and (worker is None or worker.place.number == 0):
                await servers.start(_announce, _advertiser(options, loaded.agent.manifest, location), stop)
            await servers.start(server)
            if worker is None:
                url = location.bound.url
                shown = f"{url}, reached by {location.base_url}" if location.is_public else url
                say(f"{loaded.agent.manifest.id} listens on {shown}")
            else:
                worker.place.ready()
        signals.cancel_scope.cancel()


def _counters(options: ServeOptions, worker: _Worker | None) -> bool | Counters:
    if worker is None or worker.counters is None:
        return options.metrics
    return Counters(worker.counters, row=worker.place.number)


async def _announce(advertiser: "Advertiser", stop: anyio.Event, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    """Announce the agent until `stop`, which comes before running requests are finished: no new callers, please."""
    async with advertiser:
        for one in advertiser.announced:
            where = f"{one.link} ({', '.join(one.addresses) or one.manifest_url})"
            complain(f"mDNS: announced as {one.instance} on {where}; this reaches the local network only")
        task_status.started()
        await stop.wait()


async def _stop_with_parent(stop: anyio.Event, place: "WorkerPlace") -> None:
    await place.parent_gone()
    complain("the parent process has ended; this worker stops")
    stop.set()


async def _stop_on_signals(stop: anyio.Event, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            if stop.is_set():
                # A second signal doesn't wait for running requests. Neither a thread nor work under an idempotency
                # key can be cancelled, so there's no gentler way.
                os._exit(EXIT_INTERRUPTED)
            stop.set()


async def _reload_on_hangup(tls: CertificateFiles, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGHUP) as signals:
        # A worker is started with it blocked: one that came before this is delivered now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
        task_status.started()
        async for _ in signals:
            try:
                tls.reload()
            except ValueError as error:
                complain(f"the certificate isn't replaced: {error}")
            else:
                complain("the certificate is read again, for connections from now on")


# --- before the port is bound ----------------------------------------------------------------------------------------


def _place(options: ServeOptions) -> ListenPlace:
    given = inherited(os.environ)
    if given is None:
        return at_address(options.host, options.port) if options.unix is None else at_path(options.unix)
    if options.unix is not None or (options.host, options.port) != (DEFAULT_HOST, DEFAULT_PORT):
        raise UserError(
            "expected --host and --port, or --unix, or the sockets of LISTEN_FDS, not several of them", usage=True
        )
    return given


def _read_secrets(options: ServeOptions) -> _Secrets:
    tokens = read_tokens(options.callers.token, options.callers.token_file)
    tls = None if options.tls_cert is None else TLS(options.tls_cert, options.tls_key, options.client_ca)
    return _Secrets(tokens=tokens, tls=None if tls is None else CertificateFiles(tls))


def _check(options: ServeOptions, place: ListenPlace, tokens: TokenTable) -> None:
    """Check what depends on the values of several options; rules for options as such are in SERVE_RULES."""
    if options.callers.names_provider:
        from asap_adapters.cli.provider_tokens import provider_policy  # noqa: PLC0415 - most servers have no provider

        provider_policy(options.callers)
    if options.uvloop and find_spec("uvloop") is None:
        raise UserError("--uvloop: pip install 'asap-sansio[uvloop]'")
    if options.uvloop and options.backend != "asyncio":
        raise UserError("--uvloop needs --backend asyncio", usage=True)
    host = "a UNIX socket" if place.host is None else f"--host {shlex.quote(place.host)}"
    if (place.host is None or place.host in _WILDCARDS) and options.public_url is None:
        raise UserError(f"{host} needs --public-url: the manifest must state one URL to call", usage=True)
    if not _authenticates(options, tokens) and not is_loopback(place.host or "") and options.public_url is None:
        message = (
            f"{host} needs --token, --token-file, --oidc or --introspect, else anyone who can connect may call "
            "the agent; if that is intended, give --public-url"
        )
        raise UserError(message, usage=True)


def _authenticates(options: ServeOptions, tokens: TokenTable) -> bool:
    return len(tokens) > 0 or options.callers.names_provider


def _set_up_logging(options: ServeOptions, worker: _Worker | None) -> None:
    logging.basicConfig(level=logging.WARNING, format="asap: %(message)s", stream=sys.stderr)
    logging.getLogger("asap").setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(options.verbose, 2)])
    access = logging.getLogger("asap.access")
    access.setLevel(logging.INFO if options.access_log else logging.WARNING)
    if options.access_log:
        lines = logging.StreamHandler(sys.stderr)
        lines.setFormatter(written := logging.Formatter("%(asctime)s.%(msecs)03dZ %(message)s", "%Y-%m-%dT%H:%M:%S"))
        written.converter = time.gmtime  # RFC 3339, in UTC
        access.addHandler(lines)
        access.propagate = False
    if worker is not None and worker.place.number > 0:
        logging.getLogger("asap.serve").setLevel(logging.ERROR)  # the first worker has logged its warnings
    for library in ("zeroconf", "coredis"):  # asap.mdns and asap.redis log their errors, in one line each
        logging.getLogger(library).setLevel(logging.CRITICAL)


def _storage(options: ServeOptions) -> Storage:
    if options.state is not None:
        return StateFile(options.state)
    url = _redis_url(options)
    return None if url is None else Redis(url)


def _redis_url(options: ServeOptions) -> str | None:
    if options.redis_file is None:
        return options.redis
    lines = options.redis_file.read_text("utf-8").split()
    try:
        (url,) = lines
        return redis_url(url)
    except ValueError:
        raise UserError(f"{options.redis_file}: expected one URL such as redis://localhost:6379/0") from None


# --- the agent with its options --------------------------------------------------------------------------------------


def _loaded(options: ServeOptions, location: _Location, imported: LoadedAgent | None, *, auth: bool) -> LoadedAgent:
    if imported is not None:
        policy = options.policy.applied_to(imported.agent.policy)
        agent = adapt_agent(
            imported.agent, base_url=location.base_url, public=location.is_public, auth=auth, policy=policy
        )
        return evolve(imported, agent=_checked(agent, auth=auth))
    if options.manifest is None:
        manifest = echo_manifest(options.id or ECHO_ID, location.base_url)
    else:
        manifest = manifest_of_file(options.manifest)
        manifest = reachable_at(evolve(manifest, id=options.id or manifest.id), location.base_url)
    agent = Agent(with_auth(manifest) if auth else manifest, policy=options.policy.applied_to(Policy()))
    return LoadedAgent(_checked(agent, auth=auth), dict.fromkeys(manifest.skill_ids, echo), {})


def _checked(agent: Agent, *, auth: bool) -> Agent:
    if agent.authenticates and not auth:
        raise UserError(
            "the manifest asks callers to authenticate: expected --token, --token-file, --oidc or --introspect"
        )
    return agent


def _warn(policy: Policy) -> None:
    if policy.profile == "reference":
        complain("profile reference: envelopes without id or timestamp, and for other agents, are accepted")
    if policy.nonce is NoncePolicy.OFF:
        complain("nonce off: replays are accepted")


def _advertiser(options: ServeOptions, manifest: Manifest, location: _Location) -> "Advertiser":
    from asap_adapters.mdns.local_network import Advertiser  # noqa: PLC0415 - zeroconf takes 80 ms to import

    advertiser = Advertiser(
        agent_id=manifest.id,
        name=manifest.name,
        version=manifest.version,
        skills=manifest.skill_ids,
        manifest_url=f"{location.base_url}{MANIFEST_PATH}",
        host=location.bound.host,
        port=location.bound.port,
        interfaces=options.mdns_interface or None,
    )
    for key in advertiser.left_out:
        complain(f"mDNS: {key} is left out of the announcement, which has room for 255 bytes")
    return advertiser


COMMANDS: Final = (
    command(
        "serve",
        ServeOptions,
        _serve,
        "serve an agent",
        description=(
            "Serve an agent until SIGINT or SIGTERM. Running requests are finished first; a second signal doesn't wait "
            "for them. pkg.module:agent names an asap_core.Agent; in the same module, the mapping `handlers` has its "
            "functions by skill, and the optional mapping `on` those for other payload types. Options override the "
            "agent's own policy. Its endpoint becomes --public-url, or, if the author's is on this machine, the bound "
            "address."
        ),
        rules=SERVE_RULES,
    ),
)
