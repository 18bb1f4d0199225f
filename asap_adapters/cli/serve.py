"""`asap serve`: an echo agent, the agent of a manifest, or one's own `package.module:agent`, from one command."""

import argparse
import importlib
import logging
import signal
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import anyio
from attrs import evolve, frozen

from asap_adapters.cli.output import UserError, add_backend, complain
from asap_adapters.handlers import Context, Handler
from asap_adapters.serve import Bound, listen, serve
from asap_core.client.outbound import is_loopback, origin_of
from asap_core.codec import read_manifest
from asap_core.model.manifest import AuthScheme, Capabilities, Endpoints, Manifest, Skill
from asap_core.model.payloads import TaskRequest
from asap_core.model.rules import URN
from asap_core.server.agent import Agent
from asap_core.server.identity import TokenTable
from asap_core.server.policy import NoncePolicy, Policy
from asap_core.server.ratelimit import parse_limits
from asap_core.server.wellknown import MANIFEST_PATH

__all__ = ["ECHO_ID", "add_commands", "echo", "echo_manifest"]

ECHO_ID: Final = "urn:asap:agent:echo-agent"
_MAX_PORT: Final = 65_535


@frozen
class _Served:
    agent: Agent
    handlers: Mapping[str, Handler]
    on: Mapping[str, Handler]


def add_commands(commands: Any) -> None:
    """Add the command of this module."""
    command = commands.add_parser("serve", help="serve an agent", allow_abbrev=False, description=_DESCRIPTION)
    command.add_argument("agent", metavar="pkg.module:agent", nargs="?", help="an Agent, with `handlers` beside it")
    command.add_argument("--host", default="127.0.0.1", help="address to bind (default: 127.0.0.1)")
    command.add_argument("--port", type=_port, default=8000, help="port to bind, 0 for a free one (default: 8000)")
    command.add_argument("--id", metavar="URN", help=f"the agent's id (default: {ECHO_ID})")
    command.add_argument("--manifest", metavar="FILE", type=Path, help="serve this manifest, every skill an echo")
    command.add_argument("--public-url", metavar="URL", help="what others reach this server by; needed for wildcards")
    command.add_argument("--profile", choices=("strict", "reference"), default="strict", help="what is let in")
    command.add_argument("--nonce", choices=("required", "or-id", "off"), help="what stands for uniqueness")
    command.add_argument("--token", metavar="TOKEN=URN", action="append", default=[], help="let this token in as URN")
    command.add_argument("--token-file", metavar="FILE", type=Path, help="TOKEN=URN lines; not seen in process lists")
    command.add_argument("--rate-limit", metavar="LIMITS", help='such as "10/second;100/minute" (the default), or off')
    command.add_argument("--max-body", metavar="BYTES", type=_positive, help="largest body, inflated (default: 10 MiB)")
    command.add_argument("--tls-cert", metavar="FILE", type=Path, help="serve https with this certificate chain")
    command.add_argument("--tls-key", metavar="FILE", type=Path, help="the certificate's key")
    command.add_argument(
        "--mdns", action=argparse.BooleanOptionalAction, default=False, help="announce it on the local network"
    )
    add_backend(command)
    command.set_defaults(run=_serve)


_DESCRIPTION: Final = (
    "Serve an agent until SIGINT or SIGTERM; what is in flight is finished first. Without an argument it's an echo "
    "agent. `pkg.module:agent` names an Agent; the mapping `handlers` in the same module has its functions by skill, "
    "and `on`, if there, those for other payload types."
)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text[:9]) > _MAX_PORT:
        raise argparse.ArgumentTypeError("expected a port from 0 to 65535")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text[:18]):
        raise argparse.ArgumentTypeError("expected a number above 0")
    return int(text[:18])


async def echo(request: TaskRequest, _context: Context) -> dict[str, Any]:
    """Answer with what was asked."""
    return {"echoed": request.input}


def echo_manifest(agent_id: str, base_url: str, *, auth: bool = False) -> Manifest:
    """The manifest of the built-in echo agent."""
    return Manifest(
        id=agent_id,
        name="Echo Agent",
        version="1.0.0",
        description="Echoes task input",
        capabilities=Capabilities(skills=(Skill(id="echo", description="Echo back the input"),)),
        endpoints=Endpoints(asap=f"{base_url}/asap"),
        auth=AuthScheme(schemes=("bearer",)) if auth else None,
    )


async def _serve(arguments: argparse.Namespace) -> int:
    tokens = _tokens(arguments)
    _check(arguments, tokens)
    logging.basicConfig(level=logging.WARNING, format="asap: %(message)s", stream=sys.stderr)
    bound = await _listen(arguments)
    async with bound.listener:
        base_url = (arguments.public_url or bound.url).rstrip("/")
        served = _served(arguments, base_url, auth=bool(tokens))
        _warn(served.agent.policy)
        stop = anyio.Event()
        async with AsyncExitStack() as stack, anyio.create_task_group() as group:
            await group.start(_stop_on_signals, stop)
            if arguments.mdns:
                await stack.enter_async_context(_advertiser(served.agent.manifest, bound, base_url))
            async with anyio.create_task_group() as servers:
                await servers.start(_run, arguments, served, tokens, bound, stop)
                print(f"{served.agent.manifest.id} listens on {base_url}", flush=True)
            group.cancel_scope.cancel()
    return 0


async def _listen(arguments: argparse.Namespace) -> Bound:
    try:
        return await listen(arguments.host, arguments.port, tls=arguments.tls_cert is not None)
    except OSError as error:
        raise UserError(f"can't listen on {arguments.host}, port {arguments.port}: {error.strerror or error}") from None


async def _run(
    arguments: argparse.Namespace,
    served: _Served,
    tokens: TokenTable,
    bound: Bound,
    stop: anyio.Event,
    *,
    task_status: anyio.abc.TaskStatus[str],
) -> None:
    await serve(
        served.agent,
        served.handlers,
        on=served.on,
        authenticate=tokens.verify if len(tokens) else None,
        tls_cert=arguments.tls_cert,
        tls_key=arguments.tls_key,
        bound=bound,
        stop=stop,
        task_status=task_status,
    )


async def _stop_on_signals(stop: anyio.Event, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            if stop.is_set():
                raise KeyboardInterrupt  # asked twice: not waiting for what is in flight
            stop.set()


def _check(arguments: argparse.Namespace, tokens: TokenTable) -> None:
    if arguments.agent is not None and (arguments.manifest or arguments.id):
        raise UserError("expected either pkg.module:agent, or --manifest and --id", usage=True)
    if arguments.id is not None and not URN.fits(arguments.id):
        raise UserError(f"--id: expected {URN.expected}", usage=True)
    if arguments.tls_key is not None and arguments.tls_cert is None:
        raise UserError("--tls-key goes with --tls-cert", usage=True)
    if arguments.host in ("0.0.0.0", "::", "") and arguments.public_url is None:  # noqa: S104 - that's what is refused
        raise UserError("a wildcard bind needs --public-url, so that the manifest can say where to call", usage=True)
    if arguments.public_url is not None and origin_of(arguments.public_url) is None:
        raise UserError("--public-url: expected a URL such as https://agent.example", usage=True)
    if not len(tokens) and not is_loopback(arguments.host) and arguments.public_url is None:
        message = "without --token anyone who reaches this address may call the agent; say --public-url if that's meant"
        raise UserError(message, usage=True)


def _tokens(arguments: argparse.Namespace) -> TokenTable:
    lines = list(arguments.token)
    if arguments.token_file is not None:
        lines += [line.strip() for line in arguments.token_file.read_text("utf-8").splitlines() if line.strip()]
    pairs = [line.partition("=") for line in lines]
    if not all(separator for _, separator, _ in pairs):
        raise UserError("--token: expected TOKEN=URN", usage=True)
    try:
        return TokenTable({token: urn for token, _, urn in pairs})
    except ValueError as error:
        raise UserError(f"--token: {error}", usage=True) from None


def _policy(arguments: argparse.Namespace) -> Policy:
    policy = Policy.reference() if arguments.profile == "reference" else Policy()
    changes: dict[str, Any] = {}
    if arguments.nonce is not None:
        changes["nonce"] = NoncePolicy(arguments.nonce)
    if arguments.max_body is not None:
        changes["max_body"] = arguments.max_body
    if arguments.rate_limit is not None:
        try:
            changes["peer_limits"] = parse_limits("" if arguments.rate_limit == "off" else arguments.rate_limit)
        except ValueError as error:
            raise UserError(f"--rate-limit: {error}", usage=True) from None
    return evolve(policy, **changes)


def _served(arguments: argparse.Namespace, base_url: str, *, auth: bool) -> _Served:
    if arguments.agent is not None:
        return _import(arguments.agent)
    if arguments.manifest is None:
        manifest = echo_manifest(arguments.id or ECHO_ID, base_url, auth=auth)
    else:
        manifest = read_manifest(arguments.manifest.read_bytes())
        manifest = evolve(manifest, id=arguments.id or manifest.id, endpoints=Endpoints(asap=f"{base_url}/asap"))
        if auth:
            manifest = evolve(manifest, auth=AuthScheme(schemes=("bearer",)))
    return _Served(Agent(manifest, policy=_policy(arguments)), dict.fromkeys(manifest.skill_ids, echo), {})


def _import(name: str) -> _Served:
    module_name, separator, attribute = name.partition(":")
    if not separator:
        raise UserError("expected pkg.module:agent", usage=True)
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"can't import {module_name}: {error}") from None
    agent = getattr(module, attribute, None)
    if not isinstance(agent, Agent):
        raise UserError(f"expected {name} to be an asap_core.Agent")
    handlers = getattr(module, "handlers", None)
    if not isinstance(handlers, Mapping):
        raise UserError(f"expected in {module_name} the mapping `handlers`, from skill id to function")
    return _Served(agent, handlers, getattr(module, "on", {}))


def _warn(policy: Policy) -> None:
    if policy.profile == "reference":
        complain("profile reference: envelopes without id or timestamp, and for other agents, are accepted")
    if policy.nonce is NoncePolicy.OFF:
        complain("--nonce off: replays are accepted")


def _advertiser(manifest: Manifest, bound: Bound, base_url: str) -> Any:
    from asap_adapters.mdns import Advertiser  # noqa: PLC0415 - zeroconf takes 80 ms to import

    return Advertiser(
        agent_id=manifest.id,
        name=manifest.name,
        version=manifest.version,
        skills=manifest.skill_ids,
        manifest_url=f"{base_url}{MANIFEST_PATH}",
        host=bound.host,
        port=bound.port,
    )
