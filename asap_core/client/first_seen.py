"""Which agent was last seen at each URL, so that a URL which becomes another agent's is noticed."""

from typing import Final

from asap_core.errors import AgentChanged
from asap_core.lru import Lru
from asap_core.net.urls import without_credentials

# Some 300 bytes each. Past it the one not seen for longest is forgotten: ten times as many as manifests are kept.
_MAX_URLS: Final = 10_000


class FirstSeen:
    """The agents of one client's URLs, for as long as it lives: longer than their manifests are kept."""

    def __init__(self, *, max_urls: int = _MAX_URLS) -> None:
        self._agents: Lru[str, str] = Lru(max_urls)

    def __len__(self) -> int:
        """How many URLs are known."""
        return len(self._agents)

    def check(self, url: str, agent_id: str) -> AgentChanged | None:
        """This agent is at `url` now. What is wrong where it was another one before: that one stays the incumbent."""
        before = self._agents.peek(url) or agent_id
        self._agents.put(url, before)
        return None if before == agent_id else AgentChanged(without_credentials(url), before, agent_id)

    def forget(self, url: str) -> None:
        """Whoever comes next at `url` is right."""
        self._agents.pop(url)

    def clear(self) -> None:
        """Forget all."""
        self._agents.clear()
