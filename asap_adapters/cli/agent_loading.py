"""Loads the agent that `asap serve` serves: from a manifest, or from the user's own module `package.module:agent`.

The options of the command line are applied to it: where it can be reached, and what it lets in.
"""

import importlib
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from attrs import evolve, frozen

from asap_adapters.cli.failures import UserError
from asap_adapters.server.handlers import Handler
from asap_core.admission.policy import Policy
from asap_core.errors import InvalidDocument
from asap_core.net.urls import is_loopback
from asap_core.server.agent import Agent
from asap_core.wire.codec import read_manifest
from asap_core.wire.manifest import AuthScheme, Manifest


@frozen
class LoadedAgent:
    """An agent and its handlers: `handlers` by skill, `on` by payload type."""

    agent: Agent
    handlers: Mapping[str, Handler]
    on: Mapping[str, Handler]


def with_auth(manifest: Manifest) -> Manifest:
    """Return the manifest with bearer tokens as its scheme, unless it names a scheme itself."""
    return manifest if manifest.auth is not None else evolve(manifest, auth=AuthScheme(schemes=("bearer",)))


def manifest_of_file(path: Path) -> Manifest:
    """Read a manifest from a file. Raises UserError that names it, or OSError."""
    try:
        return read_manifest(path.read_bytes())
    except InvalidDocument as error:
        raise UserError(f"{path} is {error}") from None


def reachable_at(manifest: Manifest, base_url: str) -> Manifest:
    """Return the manifest with its endpoint at `base_url`, without a signature that covers another endpoint."""
    endpoint = f"{base_url}/asap"
    if manifest.endpoints.asap == endpoint:
        return manifest
    return evolve(manifest, endpoints=evolve(manifest.endpoints, asap=endpoint), signature=None)


# --- package.module:agent --------------------------------------------------------------------------------------------


def import_agent(name: str) -> LoadedAgent:
    """Import an agent with its `handlers` and `on`. The current directory is importable.

    name: `package.module:agent`.

    Raises: UserError.
    """
    module_name, separator, attribute = name.partition(":")
    if not separator or not attribute.isidentifier() or not all(map(str.isidentifier, module_name.split("."))):
        raise UserError("expected pkg.module:agent", usage=True)
    if module_name.endswith(".py"):
        raise UserError(f"expected a module, not a file: {module_name.removesuffix('.py')}:{attribute}", usage=True)
    module = _import(module_name)
    agent = getattr(module, attribute, None)
    if not isinstance(agent, Agent):
        raise UserError(f"expected {name} to be an asap_core.Agent")
    handlers, on = getattr(module, "handlers", None), getattr(module, "on", {})
    if not isinstance(handlers, Mapping) or not all(map(callable, handlers.values())):
        raise UserError(f"expected in {module_name} the mapping `handlers`, from skill id to function")
    if not isinstance(on, Mapping) or not all(map(callable, on.values())):
        raise UserError(f"expected `on` in {module_name} to map payload types to functions")
    return LoadedAgent(agent, handlers, on)


def _import(module_name: str) -> object:
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - an import may raise anything, SystemExit too
        raise UserError(f"can't import {module_name}: {_what_and_where(error)}") from None


def _what_and_where(error: BaseException) -> str:
    """Describe an error in a user's module in one line: its type, its message, and where it was raised."""
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError):
        return what  # its message has the file and the line
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    return f"{what} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else what


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<frozen") or filename in {__file__, importlib.__file__}


def adapt_agent(agent: Agent, *, base_url: str, public: bool, auth: bool, policy: Policy) -> Agent:
    """Return an imported agent with the options of the command line.

    base_url: becomes the endpoint if `public`, or if the author's endpoint is on this machine; else the author's stays.
    public: whether `base_url` is --public-url.
    auth: whether callers must authenticate.
    policy: the agent's policy with the options of the command line.

    Raises: UserError if the agent must be changed, and can't be.
    """
    manifest = agent.manifest
    if public or _is_local(manifest.endpoints.asap):
        manifest = reachable_at(manifest, base_url)
    if auth:
        manifest = with_auth(manifest)
    if (manifest, policy) == (agent.manifest, agent.policy):
        return agent
    if agent.bound or type(agent) is not Agent:
        raise UserError("options can't change an agent that is bound already, or whose class isn't asap_core.Agent")
    return Agent(manifest, policy=policy, payload_types=agent.payload_types, aliases=agent.addresses)


def _is_local(url: str) -> bool:
    from asap_core.net.outbound import Allowed, judge_url  # noqa: PLC0415 - only for an agent of the user's own

    judged = judge_url(url)
    return isinstance(judged, Allowed) and is_loopback(judged.host)
