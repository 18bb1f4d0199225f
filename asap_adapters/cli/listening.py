"""The sockets that `asap serve` listens on: bound to an address or a path, or inherited from systemd."""

import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from attrs import define, field, frozen

from asap_adapters.cli.failures import UserError

# anyio's backlog; the kernel reduces it to its own limit (net.core.somaxconn).
_BACKLOG: Final = 65_536
# sd_listen_fds(3): the first inherited socket; 0 to 2 are the standard streams.
_FIRST_INHERITED: Final = 3
# A UNIX socket may be used by its user and its group: a proxy is put into that group.
_NOT_FOR_OTHERS: Final = 0o117


@frozen
class ListenPlace:
    """Where to listen.

    host: the address; None for a UNIX socket.
    named: the place in words, for errors.
    """

    host: str | None
    named: str
    _bind: Callable[["_Sockets"], None] = field(repr=False)

    @contextmanager
    def listening(self) -> Iterator[list[socket.socket]]:
        """A block with the listening sockets, closed at its end. Raises UserError."""
        with ExitStack() as stack:
            sockets = _Sockets(stack)
            try:
                self._bind(sockets)
            except OSError as error:
                raise UserError(f"can't listen on {self.named}: {error.strerror or error}") from None
            yield sockets.all


@define
class _Sockets:
    """Sockets that listen, and what is to be done when they're no longer needed."""

    stack: ExitStack
    all: list[socket.socket] = field(factory=list)

    def add(self, each: socket.socket) -> socket.socket:
        self.stack.callback(each.close)
        self.all.append(each)
        return each

    def listen(self, each: socket.socket) -> None:
        each.listen(_BACKLOG)
        each.setblocking(False)  # noqa: FBT003 - the standard library's


def at_address(host: str, port: int) -> ListenPlace:
    """Every address of `host`, on one port (0: any free one)."""

    def bind(sockets: _Sockets) -> None:
        # "*" is all addresses of both families, as for anyio.
        name = None if host == "*" else host
        # ADDRCONFIG: where IPv6 is off, localhost is its IPv4 address alone.
        flags = socket.AI_PASSIVE | socket.AI_ADDRCONFIG
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=flags)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            # With port 0 the first socket takes any free port, and the others the same.
            wanted = (address[0], sockets.all[0].getsockname()[1] if sockets.all else port, *address[2:])
            one = sockets.add(socket.socket(family, kind, protocol))
            if sys.platform != "win32":  # there it would let another process take the port as well
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(wanted)
            sockets.listen(one)

    return ListenPlace(host, f"{host}, port {port}", bind)


def at_path(path: Path) -> ListenPlace:
    """A UNIX socket, for its user and group alone. It's removed at the end, and if a dead server left one behind."""

    def bind(sockets: _Sockets) -> None:
        one = sockets.add(socket.socket(socket.AF_UNIX))
        before = os.umask(_NOT_FOR_OTHERS)  # chmod later would leave a moment for others
        try:
            if _is_left_behind(path):
                path.unlink()
            one.bind(str(path))
        finally:
            os.umask(before)
        sockets.stack.callback(_remove, path, path.lstat())
        sockets.listen(one)

    return ListenPlace(None, str(path), bind)


def inherited(environment: Mapping[str, str]) -> ListenPlace | None:
    """The sockets that systemd, or what does as it does, opened for this process (sd_listen_fds(3)); None without any.

    Raises UserError if they aren't listening stream sockets.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()) or not environment.get("LISTEN_FDS", "").isdecimal():
        return None
    numbers = range(_FIRST_INHERITED, _FIRST_INHERITED + int(environment["LISTEN_FDS"]))
    if not numbers:
        return None
    opened = [_opened(number) for number in numbers]
    named = opened[0].getsockname()

    def bind(sockets: _Sockets) -> None:
        for each in opened:
            sockets.add(each).setblocking(False)  # noqa: FBT003 - the standard library's

    return ListenPlace(None if isinstance(named, str | bytes) else str(named[0]), "the inherited sockets", bind)


def _opened(number: int) -> socket.socket:
    with suppress(OSError):
        os.set_inheritable(number, False)  # noqa: FBT003 - the standard library's
        one = socket.socket(fileno=number)
        if one.type == socket.SOCK_STREAM and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return one
        one.detach()
    raise UserError(f"LISTEN_FDS: expected descriptor {number} to be a listening stream socket (ListenStream=)")


def _is_left_behind(path: Path) -> bool:
    """Whether there's a socket at `path` that nobody listens on."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False


def _remove(path: Path, made: os.stat_result) -> None:
    with suppress(OSError):
        now = path.lstat()
        if (now.st_dev, now.st_ino) == (made.st_dev, made.st_ino):  # not that of a server that came after
            path.unlink()
