"""How a blocking client makes requests: the core's options, and those of connections."""

from typing import Final

import httpx
from attrs import field, frozen

from asap_adapters.blocking.connecting import BlockingResolver
from asap_adapters.net.http_requests import ConnectionOptions
from asap_core.arguments import ArgumentRule, has_methods, is_instance, is_or_none

_TRANSPORT: Final = ArgumentRule("an httpx.BaseTransport, or None", is_or_none(is_instance(httpx.BaseTransport)))
_RESOLVER: Final = ArgumentRule(
    "an object with a method resolve(host, port), or None", is_or_none(has_methods("resolve"))
)


@frozen(kw_only=True)
class BlockingHttpOptions(ConnectionOptions):
    """How a `BlockingClient` makes requests. Raises ValueError if an option is invalid."""

    transport: httpx.BaseTransport | None = field(default=None, validator=_TRANSPORT)
    """An httpx transport to use instead of the client's own, such as a mock. Several threads may use it at once. It
    gets only URLs that the policy allows. Addresses aren't checked. A call's time limit is checked at each piece of the
    body. Until a piece arrives, only the transport's own limits hold: it's told `timeout` for each connect, read and
    write. In the main thread, a signal may interrupt it anywhere."""
    resolver: BlockingResolver | None = field(default=None, validator=_RESOLVER)
    """Looks up names instead of the operating system. It's called in a thread of its own, several at once; a
    look-up that isn't waited for any longer goes on there."""
