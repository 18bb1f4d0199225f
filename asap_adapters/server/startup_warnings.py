"""Warnings when an agent starts: its URL leads elsewhere, or its callers have no address."""

import logging
import socket
from contextlib import suppress
from typing import Final

from asap_core.net.urls import is_loopback, leads_elsewhere, read_url
from asap_core.server.agent import Agent
from asap_core.server.exchange import ASAP_PATH

NO_ADDRESS: Final = (
    "callers whose address isn't known have one share together, and idempotency keys take authentication. AgentClient "
    "sends one with every message: have callers authenticate, or have a proxy tell their addresses "
    '(Policy.trusted_proxies; "unix:" is a proxy on a UNIX socket)'
)
"""What follows for callers without an address, for the log."""


_ELSEWHERE: Final = (
    "the manifest says %s, and this server listens on %s, port %d: callers don't reach it there, unless something "
    "passes them on"
)


def warn_if_elsewhere(
    agent: Agent, log: logging.Logger, *, host: str, port: int, scheme: str | None = None, mounted: bool = False
) -> None:
    """Warn if the agent's URL names this machine, and another port, scheme or path than it's served at.

    `host` and `port` are where the server listens. `scheme` is None, and `mounted` true, if something in front of the
    application may have its own.
    """
    path = None if mounted else ASAP_PATH
    parts = read_url(agent.url)
    named = "" if parts is None else parts.hostname or ""
    if leads_elsewhere(agent.url, port=port, scheme=scheme, path=path) and _is_here(named, host):
        log.warning(_ELSEWHERE, agent.url, f"[{host}]" if ":" in host else host, port)


def _is_here(named: str, host: str) -> bool:
    return named == host or is_loopback(named) or _is_own(named)


def _is_own(address: str) -> bool:
    """Whether an address is one of this machine's: only those can be bound. Names aren't asked of a resolver."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError, ValueError):
            socket.inet_pton(family, address)
            with socket.socket(family, socket.SOCK_DGRAM) as one:
                one.bind((address, 0))
                return True
    return False
