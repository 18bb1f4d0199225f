"""The client's address of a request that came through proxies: the nearest address that isn't a trusted proxy's.

Rule: a proxy appends the address that it saw. What precedes it came from the caller, who may write anything. So the
list is read from its right end, and only as far as the addresses are of proxies that policy trusts.
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
"""The header that the proxies write. Only this one is read: they forward the other as the caller wrote it."""

UNIX: Final = "unix:"
"""In a list of proxies: a connection without an address, as over a UNIX socket. nginx writes it so too."""

# Proxies in a row. A longer list was made up by the caller.
_MAX_HOPS: Final = 20
# RFC 7239 §6, and addresses as gateways write them into either header: bare, an IPv6 address in brackets, with a port.
# A zone is a name on the gateway's machine and has no meaning here.
_PORT: Final = r"(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?"
_IPV6: Final = r"[0-9A-Fa-f:.]+"
_NODE: Final = re.compile(rf"\[({_IPV6})(?:%[^\]]+)?\]{_PORT}|([0-9.]+){_PORT}|({_IPV6})(?:%.+)?", re.DOTALL)


def read_networks(texts: Iterable[str]) -> tuple[str, ...]:
    """Check networks such as `10.0.0.0/8`, addresses such as `::1`, and `unix:`; return them. Raises ValueError."""
    checked = expect_texts("trusted_proxies", texts, '["10.0.0.0/8"]')
    for text in checked:
        if text != UNIX:
            try:
                read_network(text)
            except ValueError as error:
                raise ValueError(f"{error}; or unix:") from None
    return checked


def is_trusted(peer: str, trusted: Sequence[str]) -> bool:
    """Whether `peer` is a trusted proxy. It's empty if the connection has no address, as on a UNIX socket."""
    if not peer:
        return UNIX in trusted
    address = _address(peer)
    return address is not None and any(address in network for network in _networks(tuple(trusted)))


def caller_of(peer: str, headers: Headers, *, trusted: Sequence[str], header: ForwardedHeader) -> tuple[str, bool]:
    """Return the client's address of a request, and whether it's the client's own. Never raises.

    It isn't if a proxy hides it: then it's that proxy's address, for all clients of the proxy.

    `peer`: the address that connected; empty if it has none.
    `trusted`: the proxies' networks, as `read_networks` returns them.
    """
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
    """Iterate over who connected to each proxy, the nearest first; empty if it isn't named or not well-formed."""
    # Each line by itself, so that an unclosed quote ends with its line.
    for value in reversed(values):
        text = value.decode("latin-1")
        yield from _nodes_as_listed(text) if header == "x-forwarded-for" else _nodes_of_forwarded(text)


def _nodes_as_listed(text: str) -> Iterator[str]:
    # The header has no grammar. A comma inside quotes separates as well: otherwise an unclosed quote of the caller's
    # could hide the entries that proxies append.
    for member in reversed(text.split(",")):
        node = member.strip(" \t")
        yield node[1:-1] if node[:1] == node[-1:] == '"' else node


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
    return tuple(read_network(text) for text in texts if text != UNIX)
