"""Where an agent's admission is remembered: in its process, in a state file, or in a server that processes share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from attrs import field, frozen

from asap_adapters.server.driver import Driver
from asap_core.arguments import expect_kind
from asap_core.server.agent import Agent
from asap_core.server.serving import Scope


@frozen(kw_only=True)
class Memory:
    """`state` is a file, `redis` a URL such as `redis://localhost:6379/0`; with neither, each process has its own.

    With Redis the shares of principals are kept there as well; those of peers only with `share_peer_limits`, since that
    costs every request a fifth of a millisecond before anything is known of it.
    """

    state: Path | None = None
    redis: str | None = field(default=None, repr=False)
    share_peer_limits: bool = False

    def __attrs_post_init__(self) -> None:
        if self.state is not None and self.redis is not None:
            raise ValueError("expected a state file or Redis, not both: one place decides")
        if self.share_peer_limits and self.redis is None:
            raise ValueError("expected Redis for limits to be shared in")

    @classmethod
    def of(cls, state: str | Path | None, redis: str | None, *, share_peer_limits: bool) -> "Memory":
        """Make it of what a user gave. Raises ValueError."""
        expect_kind("state", state, str | Path | None, '"agent.state"')
        expect_kind("redis", redis, str | None, '"redis://localhost:6379/0"')
        return cls(state=None if state is None else Path(state), redis=redis, share_peer_limits=share_peer_limits)

    @property
    def shared_admission(self) -> bool:
        """Whether the agent is to be bound so that its driver asks for it."""
        return self.state is not None or self.redis is not None

    def shared_limits(self, agent: Agent) -> tuple[Scope, ...]:
        """Whose shares the agent's driver asks for: of those that policy limits at all."""
        if self.redis is None:
            return ()
        peers: tuple[Scope, ...] = ("peer",) if self.share_peer_limits and agent.policy.peer_limits else ()
        return (*peers, "principal")

    @asynccontextmanager
    async def opened(self, driver: Driver) -> AsyncIterator[None]:
        """Give the driver of a bound agent its store for as long as this is open.

        Raises what the store's `open` raises: `BadState`, `BadStore`, OSError, ValueError.
        """
        if self.redis is not None:
            try:
                from asap_adapters.stores.redis import RedisStore  # noqa: PLC0415 - an extra of its own
            except ModuleNotFoundError:
                missing = "a store in Redis needs coredis, which comes with: pip install 'asap-sansio[redis]'"
                raise ModuleNotFoundError(missing, name="coredis") from None

            async with RedisStore.open(self.redis, driver.agent) as shared:
                driver.store = driver.shares = shared
                yield
        elif self.state is not None:
            from asap_adapters.stores.file import FileStore  # noqa: PLC0415 - POSIX systems only

            store = await FileStore.open(self.state, driver.agent)
            driver.store = store
            try:
                yield
            finally:
                await store.aclose()
        else:
            yield
