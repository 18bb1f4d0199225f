"""Where an agent's admission is remembered: in its process, in a state file, or in a server that processes share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import assert_never

from attrs import field, frozen

from asap_adapters.server.driver import Driver
from asap_core.arguments import expect_kind
from asap_core.server.agent import Agent
from asap_core.server.serving import Scope


def _path(path: object) -> Path:
    expect_kind("path", path, str | Path, '"agent.state"')
    return Path(path)  # type: ignore[arg-type] # it is one of the two


@frozen
class StateFile:
    """Remember in this process, and in a file that carries it over restarts and crashes. Needs a POSIX system.

    path: the file, made if it's missing. One agent, and one process at a time, can use it.
    """

    path: Path = field(converter=_path)


@frozen
class Redis:
    """Remember in a Redis or Valkey server, with all processes and hosts that serve the agent. Needs the extra `redis`.

    url: such as `redis://localhost:6379/0`, `rediss://…` (TLS) or `unix://…`; it may hold a password, and isn't shown.
    share_peer_limits: keep the shares of peers there as well as those of principals. That costs every request a fifth
        of a millisecond before anything is known of it, so by default each process counts them for itself.
    """

    url: str = field(repr=False)
    share_peer_limits: bool = field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        expect_kind("url", self.url, str, '"redis://localhost:6379/0"')
        expect_kind("share_peer_limits", self.share_peer_limits, bool, "True")


Storage = StateFile | Redis | None
"""None is this process's memory: it's gone when the process ends."""


def expect_storage(storage: object) -> None:
    """Raise ValueError if it's none of the ways to remember."""
    expect_kind("storage", storage, Storage, 'StateFile("agent.state")')


def shared_limits(storage: Storage, agent: Agent) -> tuple[Scope, ...]:
    """Whose shares the agent's driver asks for, among those that the policy limits at all."""
    if not isinstance(storage, Redis):
        return ()
    peers: tuple[Scope, ...] = ("peer",) if storage.share_peer_limits and agent.policy.peer_limits else ()
    return (*peers, "principal")


@asynccontextmanager
async def opened(storage: Storage, driver: Driver) -> AsyncIterator[None]:
    """Give the driver of a bound agent its store for as long as this is open.

    Raises what the store's `open` raises: `BadState`, `BadStore`, OSError, ValueError.
    """
    match storage:
        case None:
            yield
        case StateFile(path):
            from asap_adapters.stores.file import FileStore  # noqa: PLC0415 - POSIX systems only

            store = await FileStore.open(path, driver.agent)
            driver.store = store
            try:
                yield
            finally:
                await store.aclose()
        case Redis(url):
            try:
                from asap_adapters.stores.redis import RedisStore  # noqa: PLC0415 - an extra of its own
            except ModuleNotFoundError:
                missing = "a store in Redis needs coredis, which comes with: pip install 'asap-sansio[redis]'"
                raise ModuleNotFoundError(missing, name="coredis") from None

            async with RedisStore.open(url, driver.agent) as shared:
                driver.store = driver.shares = shared
                yield
        case _:
            assert_never(storage)
