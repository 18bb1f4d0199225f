"""The command line's vocabulary: a parser that says what's wrong in one line, and the options that commands share."""

import argparse
import ssl
from typing import Any, Final, NoReturn

from asap_adapters.cli.output import visible
from asap_core.auth.bearer import is_token
from asap_core.net.addresses import read_network
from asap_core.net.urls import origin_of
from asap_core.wire.rules import URN

EXIT_USAGE: Final = 2
# 128 + SIGINT, as shells report it.
EXIT_INTERRUPTED: Final = 130
CLI_SENDER: Final = "urn:asap:agent:asap-cli"
_MAX_PORT: Final = 65_535
# Whoever watches for longer than a day means --watch.
_LONGEST_WAIT: Final = 86_400.0


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line; abbreviations of options, which break with new ones, are off."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})  # type: ignore[arg-type]

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Refuse unknown arguments here, in the parser of the command: the root would name its own help."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        """Say what's wrong and where to read on, and exit with 2."""
        self.exit(EXIT_USAGE, f"asap: {visible(message)} (see {self.prog} --help)\n")


def urn(text: str) -> str:
    """Read an agent's URN."""
    if not URN.fits(text):
        raise argparse.ArgumentTypeError(f"expected {URN.expected}")
    return text


def token(text: str) -> str:
    """Read a bearer token; it isn't repeated in the error."""
    if not is_token(text):
        raise argparse.ArgumentTypeError("expected visible ASCII characters")
    return text


def origin(text: str) -> str:
    """Read an origin."""
    found = origin_of(text)
    if found is None:
        raise argparse.ArgumentTypeError("expected an origin such as https://agent.example")
    return found


def port(text: str) -> int:
    """Read a port to bind; 0 is any free one."""
    return whole_number(text, 0, _MAX_PORT, "expected a port from 0 to 65535")


def web_port(text: str) -> int:
    """Read a port to connect to."""
    return whole_number(text, 1, _MAX_PORT, "expected a port from 1 to 65535")


def network(text: str) -> str:
    """Read a network."""
    try:
        return str(read_network(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def body_size(text: str) -> int:
    """Read a number of bytes."""
    return whole_number(text, 1, 2**31 - 1, "expected a number of bytes, 1 to 2147483647")


def redis_url(text: str) -> str:
    """Read the URL of a Redis server; its password isn't repeated in the error."""
    scheme, separator, rest = text.partition("://")
    if scheme not in ("redis", "rediss", "unix") or not separator or not rest:
        raise argparse.ArgumentTypeError("expected a URL such as redis://localhost:6379/0, rediss://… or unix:///path")
    return text


def whole_number(text: str, least: int, most: int, expected: str) -> int:
    """Read a number from `least` to `most`."""
    # isdecimal alone takes the digits of every script, and int() underscores.
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(expected)
    return int(text)


def seconds(text: str) -> float:
    """Read how long to wait."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= _LONGEST_WAIT:
        raise argparse.ArgumentTypeError("expected a number of seconds above 0, at most a day")
    return value


def reach(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the shared options say of where a client may go: arguments of `AgentClient`."""
    return {
        "allow_http": arguments.allow_http,
        "allow_networks": arguments.allow_network,
        "allow_ports": arguments.allow_port,
        "verify": arguments.ca_file,
    }


def add_client_options(command: argparse.ArgumentParser) -> None:
    """Add the options of every command that calls agents."""
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "--allow-http", metavar="HOST", action="append", default=[], help="allow plain http to this host (repeatable)"
    )
    command.add_argument(
        "--allow-network",
        metavar="CIDR",
        type=network,
        action="append",
        default=[],
        help="allow hosts in this network, such as 10.0.0.0/8, beside those on the internet (repeatable)",
    )
    command.add_argument(
        "--allow-port",
        metavar="PORT",
        type=web_port,
        action="append",
        default=[],
        help="allow this port below 1024 beside 80 and 443 (repeatable)",
    )
    command.add_argument(
        "--ca-file", metavar="FILE", type=_trusted, default=True, help="trust these authorities (PEM), and no others"
    )
    add_backend(command)


def _trusted(text: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=text)
    except OSError as error:  # ssl.SSLError is one
        raise argparse.ArgumentTypeError(f"expected certificates in PEM: {error.strerror or error}") from None


def add_backend(command: argparse.ArgumentParser) -> None:
    """Add the choice of event loop."""
    command.add_argument("--backend", choices=("trio", "asyncio"), default="trio", help="event loop (default: trio)")
