"""Carries out a law's effects over blocking sockets: exact bytes, absolute time limits, bounded traffic.

Each request has a connection of its own. It's made to the addresses that were looked up and judged once, so a name that
later resolves elsewhere leads nowhere else. Redirects aren't followed.
"""

import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, assert_never

from attrs import define, field, frozen

from asap_adapters.conform.hooks import MoveClock, Restart
from asap_core.net.addresses import Proximity, proximity_of, read_address
from asap_core.testing.laws.effects import (
    AdvanceClock,
    AnswersToBytes,
    Conversations,
    ConverseTogether,
    LawEffect,
    LawOutcome,
    Passed,
    Pause,
    ResetTarget,
    SendBytes,
    SendRequest,
    SendTogether,
    Together,
)
from asap_core.testing.laws.http_messages import Answer, HttpRequest, read_answers
from asap_core.testing.laws.verdicts import LawNotTried, Need

_CHUNK: Final = 65_536
# An answer to a law's request is small; an echo of the largest body is some 10 MB.
_MOST_RECEIVED: Final = 16 * 1024 * 1024
# Of all that a run sends and receives together: some 150 laws with one or two large bodies among them.
_MOST_TRAFFIC: Final = 512 * 1024 * 1024
# Seconds in which an agent accepts connections after a start.
_LONGEST_START: Final = 30.0

# Pauses in seconds between attempts, before an agent counts as gone.
_PATIENCE: Final = (0.2, 0.8)
# Seconds for each attempt, as for a law's request. If the agent's process has ended and another one holds its socket,
# the system goes on accepting connections, on which nobody answers.
_LONGEST_SILENCE: Final = 10.0
AGENT_GONE: Final = "the agent has answered nothing"
"""What is said if an agent has stopped."""


class TooMuchTraffic(LawNotTried):
    """The run has sent and received as much as a run may."""


class NotThisMachine(Exception):
    """The agent isn't on this machine, and nobody said that it may be tested."""


@frozen
class DialledHost:
    """Where connections are made: addresses that were looked up once.

    name: the host of the URL, for `Host` and for TLS.
    addresses: as `socket.connect` takes them, each with its family.
    """

    name: str
    port: int
    addresses: tuple[tuple[socket.AddressFamily, tuple[str, int]], ...]


def look_up(name: str, port: int, *, anywhere: bool) -> DialledHost:
    """Look up the addresses of a host.

    anywhere: whether other machines may be tested.

    Raises: OSError if the name doesn't resolve. NotThisMachine if an address isn't a loopback one and may not be used.
    """
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    addresses = tuple(dict.fromkeys((family, (str(place[0]), port)) for family, _, _, _, place in found))
    for _, (text, _) in addresses:
        address = read_address(text)
        here = address is not None and proximity_of(address) is Proximity.MACHINE
        if not here and not anywhere:
            at = name if name == text else f"{name}, at {text},"
            raise NotThisMachine(f"{at} isn't this machine")
    return DialledHost(name, port, addresses)


@define
class SocketExecutor:
    """An executor over sockets.

    host: where to connect.
    tls: the context, if the URL is an https one.
    now: returns monotonic seconds.
    move_clock, restart: hooks of the agent's owner. None: there's none.
    """

    host: DialledHost
    tls: ssl.SSLContext | None = None
    now: Callable[[], float] = time.monotonic
    move_clock: MoveClock | None = None
    restart: Restart | None = None
    traffic: int = field(default=0, init=False)
    _moved: int = field(default=0, init=False)

    @property
    def offers(self) -> frozenset[Need]:
        """See `Executor`."""
        clock = set() if self.move_clock is None else {Need.CLOCK}
        return frozenset({Need.BYTES} | clock | (set() if self.restart is None else {Need.RESET}))

    def wall(self) -> float:
        """Return seconds since the Unix epoch by the agent's clock: this machine's, moved as the hook has moved it."""
        return time.time() + self._moved

    def is_alive(self) -> bool:
        """Return whether the agent answers a request, or ends its connection.

        It's tried three times, for 10 s each: the agent may be busy, or start again.
        """
        for pause in (*_PATIENCE, None):
            if self._is_heard():
                return True
            if pause is not None:
                time.sleep(pause)
        return False

    def _is_heard(self) -> bool:
        until = self.now() + _LONGEST_SILENCE
        request = HttpRequest("GET", "/", (("Host", f"{self.host.name}:{self.host.port}"), ("Connection", "close")))
        try:
            connection = self._connect(until)
        except OSError:
            return False
        with connection:
            conversation = _Conversation(connection, until, self.now, answers=1, methods=("GET",))
            conversation.run([request.to_bytes()])
        return conversation.ended or bool(conversation.received)

    def perform(self, effect: LawEffect) -> LawOutcome:
        """See `Executor`. Raises TooMuchTraffic past the bound of a run."""
        match effect:
            case SendRequest(request, seconds):
                return self._one_answer(request, seconds)
            case SendBytes():
                return self._converse(effect)
            case ConverseTogether(conversations):
                with ThreadPoolExecutor(len(conversations)) as threads:
                    return Conversations(tuple(threads.map(self._converse, conversations)))
            case SendTogether(requests, seconds):
                with ThreadPoolExecutor(len(requests)) as threads:
                    sent = [threads.submit(self._one_answer, each, seconds) for each in requests]
                    return Together(tuple(each.result() for each in sent))
            case Pause(seconds):
                time.sleep(seconds)
            case AdvanceClock(seconds, step_wall):
                self._move("advance", round(seconds))
                self._move("step", round(step_wall))
            case ResetTarget():
                self._start_again()
            case _:
                assert_never(effect)
        return Passed()

    def _move(self, how: str, seconds: int) -> None:
        if seconds and self.move_clock is not None:
            self.move_clock(how, seconds)
            self._moved += seconds

    def _start_again(self) -> None:
        """Start the agent again, and wait until it accepts connections."""
        if self.restart is None:
            return
        self.restart()
        until = self.now() + _LONGEST_START
        while True:
            try:
                self._connect(until).close()
            except OSError as error:
                if self.now() > until:
                    raise LawNotTried(f"the agent didn't come back: {error.strerror or error}") from None
                time.sleep(0.1)
            else:
                return

    def _converse(self, effect: SendBytes) -> AnswersToBytes:
        data, ended, _ = self._exchange(effect.pieces, effect.seconds, effect.answers, effect.methods)
        whole, rest = read_answers(data, effect.methods, closed=ended)
        return AnswersToBytes(tuple(whole), rest, ended, data)

    def _one_answer(self, request: HttpRequest, seconds: float) -> Answer:
        data, ended, problem = self._exchange([request.to_bytes()], seconds, 1, (request.method,))
        answers, _ = read_answers(data, (request.method,), closed=ended)
        return answers[0] if answers else Answer(raw=data, problem=problem or "the answer isn't whole")

    def _exchange(
        self, pieces: Sequence[bytes | float], seconds: float, answers: int, methods: Sequence[str]
    ) -> tuple[bytes, bool, str]:
        """Send the pieces and read. Returns what came, whether the peer ended it, and what went wrong."""
        until = self.now() + seconds
        try:
            connection = self._connect(until)
        except OSError as error:
            return b"", True, f"no connection: {error.strerror or error}"
        with connection:
            conversation = _Conversation(connection, until, self.now, answers, methods)
            try:
                conversation.run(pieces)
            finally:
                self.traffic += conversation.sent + len(conversation.received)
                if self.traffic > _MOST_TRAFFIC:
                    raise TooMuchTraffic(f"the run has moved more than {_MOST_TRAFFIC} bytes")
            return bytes(conversation.received), conversation.ended, conversation.problem

    def _connect(self, until: float) -> socket.socket:
        failure: OSError = OSError("the name has no address")
        for family, place in self.host.addresses:
            plain = socket.socket(family, socket.SOCK_STREAM)
            try:
                plain.settimeout(max(until - self.now(), 0.01))
                plain.connect(place)
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return plain if self.tls is None else self.tls.wrap_socket(plain, server_hostname=self.host.name)
            except OSError as error:
                plain.close()
                failure = error
        raise failure


@define
class _Conversation:
    """One connection: writes pieces and reads at once, since a peer may answer before it has read all."""

    connection: socket.socket
    until: float
    now: Callable[[], float]
    answers: int
    methods: Sequence[str]
    received: bytearray = field(factory=bytearray)
    sent: int = 0
    ended: bool = False
    problem: str = ""

    def run(self, pieces: Sequence[bytes | float]) -> None:
        try:
            for piece in pieces:
                if isinstance(piece, bytes):
                    self._write(piece)
                else:
                    self._read_until(min(self.now() + piece, self.until), stop_early=False)
            self._read_until(self.until, stop_early=True)
        except TimeoutError:
            self.problem = "the time was over"
        except OSError as error:
            self.ended, self.problem = True, f"the connection ended: {error.strerror or error}"

    def _write(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest and not self.ended:
            self._receive_what_is_there()
            self.connection.settimeout(self._left())
            try:
                count = self.connection.send(rest[:_CHUNK])
            except (BrokenPipeError, ConnectionResetError):
                return  # it has answered and left: what it said may still be read
            self.sent += count
            rest = rest[count:]

    def _receive_what_is_there(self) -> None:
        if not isinstance(self.connection, ssl.SSLSocket) and select.select([self.connection], [], [], 0)[0]:
            self._receive()

    def _read_until(self, until: float, *, stop_early: bool) -> None:
        while not self.ended and not (stop_early and self._is_whole()):
            left = until - self.now()
            self.connection.settimeout(max(left, 0.001))
            try:
                self._receive()
                if left <= 0:  # a peer that never pauses gets no more time
                    raise TimeoutError  # noqa: TRY301 - as the socket does, if nothing comes
            except TimeoutError:
                if stop_early:
                    raise
                return

    def _receive(self) -> None:
        data = self.connection.recv(_CHUNK)
        if not data:
            self.ended = True
            self.problem = self.problem or "the connection was closed"
        self.received += data
        if len(self.received) > _MOST_RECEIVED:
            raise OSError(f"the answer has more than {_MOST_RECEIVED} bytes")

    def _is_whole(self) -> bool:
        if not self.answers:
            return False
        return len(read_answers(bytes(self.received), self.methods, closed=False)[0]) >= self.answers

    def _left(self) -> float:
        left = self.until - self.now()
        if left <= 0:
            raise TimeoutError
        return left
