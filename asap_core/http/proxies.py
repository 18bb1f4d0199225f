"""Whose request it is when it comes through a proxy: the nearest address that no trusted proxy has.

A proxy appends the address that it saw; what stands left of that came from the caller, who may write anything. So the
list is read from its right end, as far as the addresses are of proxies that policy trusts, and not one step further.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Final, Literal

from asap_core.arguments import expect_texts
from asap_core.http.fields import last_members, parameters
from asap_core.http.messages import Headers, header_values
from asap_core.net.addresses import Address, Network, read_address, read_network

ForwardedHeader = Literal["x-forwarded-for", "forwarded"]
"""The one that the proxies write. Only that one is read: they pass the other on as the caller wrote it."""

# Proxies in a row; more addresses than this are somebody's invention.
_MAX_HOPS: Final = 20
# RFC 7239 §6, and addresses as gateways write them into either header: bare, an IPv6 one in brackets, with a port. A
# zone is a name on the gateway's machine and says nothing here.
_PORT: Final = r"(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?"
_IPV6: Final = r"[0-9A-Fa-f:.]+"
_NODE: Final = re.compile(rf"\[({_IPV6})(?:%[^\]]+)?\]{_PORT}|([0-9.]+){_PORT}|({_IPV6})(?:%.+)?", re.DOTALL)


def read_networks(texts: Iterable[str]) -> tuple[str, ...]:
    """Check networks such as `10.0.0.0/8` and addresses such as `::1`, and return them. Raises ValueError."""
    checked = expect_texts("trusted_proxies", texts, '["10.0.0.0/8"]')
    for text in checked:
        read_network(text)
    return checked


def is_trusted(peer: str, trusted: Sequence[str]) -> bool:
    """Whether `peer` is one of the trusted proxies."""
    address = _address(peer)
    return address is not None and any(address in network for network in _networks(tuple(trusted)))


def client_of(peer: str, headers: Headers, *, trusted: Sequence[str], header: ForwardedHeader) -> str:
    """The address that a request comes from, where `peer` connected and `trusted` are the proxies' networks.

    Never raises. Where a trusted proxy passes on what is no address, it's the proxy's own.
    """
    return caller_of(peer, headers, trusted=trusted, header=header)[0]


def caller_of(peer: str, headers: Headers, *, trusted: Sequence[str], header: ForwardedHeader) -> tuple[str, bool]:
    """The same, and whether it's the caller's: if not, all whose address a proxy doesn't tell have that proxy's."""
    if not is_trusted(peer, trusted):
        return peer, True
    nearest = peer
    nodes = _nodes(header_values(headers, header.encode("ascii")), header)
    for node in islice(nodes, _MAX_HOPS):
        address = _address(node)
        if address is None:
            return nearest, False
        nearest = str(address)
        if not is_trusted(nearest, trusted):
            return nearest, True
    return nearest, next(nodes, None) is None


def _nodes(values: Sequence[bytes], header: ForwardedHeader) -> Iterator[str]:
    """Who connected to each proxy, the nearest first; empty where that can't be read, or isn't told."""
    # Each line by itself: a quote that isn't closed ends with its line.
    for value in reversed(values):
        text = value.decode("latin-1")
        yield from _nodes_as_listed(text) if header == "x-forwarded-for" else _nodes_of_forwarded(text)


def _nodes_as_listed(text: str) -> Iterator[str]:
    # It has no grammar, and a quote in it hides no comma: else one of the caller's would hide the proxies' entries.
    for member in reversed(text.split(",")):
        node = member.strip(" \t")
        yield node[1:-1] if len(node) > 1 and node[0] == node[-1] == '"' else node


def _nodes_of_forwarded(text: str) -> Iterator[str]:
    for member in last_members(text):
        # RFC 9110 §5.6.1.2: empty members of a list are ignored.
        if member != "":
            yield ((parameters(member) if member else None) or {}).get("for", "")


def _address(text: str) -> Address | None:
    node = _NODE.fullmatch(text)
    return None if node is None else read_address(node[1] or node[2] or node[3])


@lru_cache(maxsize=16)
def _networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(map(read_network, texts))
