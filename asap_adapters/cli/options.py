"""What the options of several commands are made of: functions that read a value, and the options of a client.

A reader makes a value of its text, or raises ValueError; the message says what was expected.
"""

import ssl
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypedDict

from attrs import frozen

from asap_adapters.cli.command import choice, flag, option, repeated
from asap_core.auth.bearer import is_scope
from asap_core.net.addresses import read_network
from asap_core.net.urls import origin_of
from asap_core.wire.rules import URN

if TYPE_CHECKING:
    from asap_adapters.net.outbound_transport import HttpOptions
    from asap_core.net.outbound import OutboundPolicy

CLI_SENDER: Final = "urn:asap:agent:asap-cli"
_MAX_PORT: Final = 65_535
# To listen for longer than a day, there is --watch.
_MAX_WAIT: Final = 86_400.0


def urn(text: str) -> str:
    """Accept the URN of an agent, and return it unchanged."""
    if not URN.fits(text):
        raise ValueError(f"expected {URN.expected}")
    return text


def url(text: str) -> str:
    """Accept absolute http and https URLs only, and return them unchanged."""
    if origin_of(text) is None:
        raise ValueError("expected a URL such as https://id.example/token")
    return text


def origin(text: str) -> str:
    """Reduce a URL to its origin: scheme, host and port."""
    found = origin_of(text)
    if found is None:
        raise ValueError("expected an origin such as https://agent.example")
    return found


def scope(text: str) -> str:
    """Read one OAuth scope."""
    if not is_scope(text):
        raise ValueError(
            "expected one scope: visible ASCII characters, no quotes, no spaces; give --scope again for another"
        )
    return text


def port(text: str) -> int:
    """Accept 1 to 65535: nobody listens on port 0."""
    return whole_number(text, 1, _MAX_PORT, "expected a port from 1 to 65535")


def port_to_bind(text: str) -> int:
    """Read a port to bind; 0 is any free one."""
    return whole_number(text, 0, _MAX_PORT, "expected a port from 0 to 65535")


def network(text: str) -> str:
    """Read a network such as 10.0.0.0/8."""
    return str(read_network(text))


def redis_url(text: str) -> str:
    """Read the URL of a Redis server. The error doesn't repeat it, since it may hold a password."""
    scheme, separator, rest = text.partition("://")
    if scheme not in ("redis", "rediss", "unix") or not separator or not rest:
        raise ValueError("expected a URL such as redis://localhost:6379/0, rediss://… or unix:///path")
    return text


def whole_number(text: str, least: int, most: int, expected: str) -> int:
    """Read a whole number from `least` to `most`."""
    # isdecimal alone accepts the digits of every script, and int() underscores.
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and least <= int(text) <= most):
        raise ValueError(expected)
    return int(text)


def seconds(text: str) -> float:
    """Read a number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= _MAX_WAIT:
        raise ValueError("expected a number of seconds above 0, at most a day")
    return value


def _authorities(text: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=text)
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"expected certificates in PEM: {error.strerror or error}") from None


# --- options of several commands -------------------------------------------------------------------------------------


def backend_option() -> str:
    """Declare `--backend`, which every command has."""
    return choice("--backend", ("trio", "asyncio"), "run on this event loop", default="trio")


def json_option() -> bool:
    """Declare `--json`."""
    return flag("--json", "print JSON instead of text")


def registry_cache_option() -> Path | None:
    """Declare `--registry-cache`."""
    return option(
        "--registry-cache DIR",
        Path,
        "keep a copy of each registry in this directory, and read it for up to a week if the registry is down",
    )


class ClientArguments(TypedDict):
    """Arguments of `AgentClient` that say where it may connect to."""

    outbound: "OutboundPolicy"
    http: "HttpOptions"


@frozen(kw_only=True)
class OutboundOptions:
    """Where a command may connect to, beside https on the internet and this machine."""

    allow_http: Sequence[str] = repeated("--allow-http HOST", str, "allow plain http to this host")
    allow_network: Sequence[str] = repeated(
        "--allow-network CIDR", network, "allow hosts in this private network, such as 10.0.0.0/8"
    )
    allow_port: Sequence[int] = repeated(
        "--allow-port PORT", port, "allow this port below 1024; 80 and 443 are always allowed"
    )
    ca_file: ssl.SSLContext | None = option(
        "--ca-file FILE",
        _authorities,
        "trust the certificate authorities in this PEM file, and no others",
        shown_default="those of certifi",
    )

    @property
    def verify(self) -> ssl.SSLContext | Literal[True]:
        """What certificates are verified by; True is certifi."""
        return self.ca_file or True

    def policy(self, allow_endpoints: Collection[str] = ()) -> "OutboundPolicy":
        """Return the options as a policy for outgoing requests."""
        from asap_core.net.outbound import OutboundPolicy  # noqa: PLC0415 - a server makes no requests

        return OutboundPolicy(
            allow_http=self.allow_http,
            allow_networks=self.allow_network,
            allow_ports=self.allow_port,
            allow_endpoints=allow_endpoints,
        )

    def client_arguments(self, allow_endpoints: Collection[str] = ()) -> ClientArguments:
        """Return the options as arguments of `AgentClient`."""
        from asap_adapters.net.outbound_transport import HttpOptions  # noqa: PLC0415 - a server doesn't need httpx

        return {"outbound": self.policy(allow_endpoints), "http": HttpOptions(verify=self.verify)}
