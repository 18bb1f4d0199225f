"""Remembers which agent was first seen at each URL, to detect a URL that changes to another agent."""

from typing import Final

from asap_core.errors import AgentChanged
from asap_core.lru import Lru
from asap_core.net.urls import without_credentials

# Some 300 bytes each, ten times as many as cached manifests. The least recently seen is forgotten first.
_MAX_URLS: Final = 10_000


class FirstSeen:
    """The agents at one client's URLs, remembered for as long as the client lives: longer than their manifests."""

    def __init__(self, *, max_urls: int = _MAX_URLS) -> None:
        self._agents: Lru[str, str] = Lru(max_urls)

    def __len__(self) -> int:
        """Return how many URLs are remembered."""
        return len(self._agents)

    def check(self, url: str, agent_id: str) -> AgentChanged | None:
        """Note that `agent_id` is at `url` now.

        Returns the error to raise if another agent was there before. That agent stays the expected one. Returns None if
        it's the same, or the first.
        """
        before = self._agents.peek(url) or agent_id
        self._agents.put(url, before)
        return None if before == agent_id else AgentChanged(without_credentials(url), before, agent_id)

    def forget(self, url: str) -> None:
        """Accept whichever agent answers at `url` next."""
        self._agents.pop(url)

    def clear(self) -> None:
        """Forget all URLs."""
        self._agents.clear()
