"""A real server whose memory is read, an honest client beside it, and raw connections from any address of here."""

import contextlib
import http.client
import json
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import count, islice
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

__all__ = ["AGENT", "Peer", "Report", "Server", "envelope_of", "measured", "post", "raise_file_limit", "served"]

AGENT = "urn:asap:agent:echo-agent"
ATTACKER = "127.0.0.2"
PATIENCE = 60.0
"""How long anybody waits for an answer before it counts as none: these machines are slow and noisy."""

SETTLING = 5
"""Seconds in which what's no longer needed must be given back."""
SETTLED = 1_000_000
"""As few bytes less after a second."""

MODULE = """
from asap_adapters.cli.echo_agent import echo, echo_manifest
from asap_core import Agent, Policy, StartPolicy
agent = Agent(echo_manifest({agent!r}, "http://127.0.0.1:1"), policy=Policy(peer_limits={limits!r}, **{policy!r}))
handlers = {{"echo": echo}}
"""


@frozen
class Report:
    """What came of one case. `growth`, `bound` and `left` (after a few seconds) are bytes, `worst` is seconds."""

    case: str
    backend: str
    requests: int
    answers: Counter[str]
    growth: int
    bound: int
    served: int
    told_to_wait: int
    failed: tuple[str, ...]
    worst: float
    seconds: float
    left: int

    @property
    def answered(self) -> int:
        """How many of the requests got an answer, whichever."""
        return sum(self.answers.values()) - self.answers["cut off"]


@define
class Server:
    """A server in a process of its own."""

    pid: int
    port: int

    def resident(self) -> int:
        """Bytes of memory in use now."""
        return self._status("VmRSS")

    def peak(self) -> int:
        """The most bytes that were in use since `forget_peak`."""
        return self._status("VmHWM")

    def settled(self) -> int:
        """Bytes in use once they're no longer getting less; a few seconds at most."""
        least = self.resident()
        for _ in range(SETTLING):
            time.sleep(1)
            last, least = least, min(least, self.resident())
            if last - least < SETTLED:
                break
        return least

    def forget_peak(self) -> None:
        """Let the peak begin at what's in use now, where the system lets us (proc(5), clear_refs)."""
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.pid}/clear_refs").write_text("5", "ascii")

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@contextlib.contextmanager
def served(*options: str, backend: str, limits: str = "", **policy: Any) -> Iterator[Server]:
    """`asap serve` of an echo agent with this policy, on a free port."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "abused.py").write_text(MODULE.format(agent=AGENT, limits=limits, policy=policy), "utf-8")
        process = subprocess.Popen(
            [sys.executable, "-m", "asap_adapters.cli", "serve", "abused:agent", "--port", "0", "--backend", backend,
             *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=folder,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            found = re.search(r":(\d+)\s*$", process.stdout.readline())
            assert found is not None, "the server didn't start"
            yield Server(process.pid, int(found[1]))
        finally:
            process.kill()
            process.communicate()


# --- what is sent ----------------------------------------------------------------------------------------------------

_numbers = count()


def stamp() -> str:
    """The time as envelopes carry it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def envelope_of(
    *, sender: str = "urn:asap:agent:stranger", nonce: str | None = None, given: str = "{}", now: str | None = None
) -> bytes:
    """One call as JSON, with `given` as the text of its input."""
    number = next(_numbers)
    return (
        f'{{"jsonrpc":"2.0","method":"asap.send","id":{number},"params":{{"envelope":{{"id":"e{number}",'
        f'"asap_version":"0.1","timestamp":"{now or stamp()}","sender":"{sender}","recipient":"{AGENT}",'
        f'"payload_type":"task.request","payload":{{"conversation_id":"c","skill_id":"echo","input":{given}}},'
        f'"extensions":{{"nonce":"{nonce or f"n{number}"}"}}}}}}}}'
    ).encode()


def post(body: bytes, *headers: str) -> bytes:
    """An HTTP request with this body."""
    lines = ["POST /asap HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode("ascii") + body


class Peer:
    """Raw connections from one address: requests of so many calls go out in bunches, and their answers are counted."""

    def __init__(self, server: Server, address: str = ATTACKER, *, calls: int = 1) -> None:
        self.server = server
        self.address = address
        self.calls = calls
        self.answers: Counter[str] = Counter()

    def connect(self, *, window: int | None = None) -> socket.socket:
        """Open a connection, which buffers so many bytes that aren't read."""
        opened = socket.socket()
        opened.settimeout(PATIENCE)
        if window is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        opened.bind((self.address, 0))
        opened.connect(("127.0.0.1", self.server.port))
        return opened

    def send_all(
        self, requests: Iterable[bytes], *, bunch: int = 32, told: Callable[[int], None] = lambda _: None
    ) -> int:
        """Send these, on one connection as long as it stays open; returns how many."""
        sent, waiting = 0, iter(requests)
        connection = self.connect()
        try:
            while group := list(islice(waiting, bunch)):
                sent += len(group)
                if not self._exchange(connection, group):
                    connection.close()
                    connection = self.connect()
                told(sent)
        finally:
            connection.close()
        return sent

    def _exchange(self, connection: socket.socket, group: list[bytes]) -> bool:
        """Whether the connection is still open after all have been answered."""
        try:
            connection.sendall(b"".join(group))
            return self.read_answers(connection, len(group)) == len(group)
        except (BrokenPipeError, ConnectionResetError):
            # Refused before all was sent, and the answer was lost to the reset.
            self.answers["cut off"] += self.calls
            return False

    def read_answers(self, connection: socket.socket, most: int) -> int:
        """Read so many answers, or to the end of the connection."""
        text, seen, closes = b"", 0, False
        while seen < most:
            data = connection.recv(1 << 20)
            if not data:
                return -1
            text += data
            while (end := text.find(b"\r\n\r\n")) >= 0:
                head = text[:end].lower()
                length = re.search(rb"content-length: (\d+)", head)
                whole = end + 4 + (int(length[1]) if length else 0)
                if len(text) < whole:
                    break
                closes = closes or b"connection: close" in head
                self._count(head, text[end + 4 : whole])
                text, seen = text[whole:], seen + 1
        return -1 if closes else seen

    def _count(self, head: bytes, body: bytes) -> None:
        status = head[9:12].decode("ascii")
        if status != "200":
            self.answers[status] += self.calls
            return
        # A batch holds many answers.
        self.answers += Counter(
            {"served": body.count(b'"result":{"envelope"'), "refused": body.count(b'"error":{"code"')}
        )


# --- the honest client -----------------------------------------------------------------------------------------------


@define
class Honest:
    """Sends a request now and then, each on a connection of its own, and minds how it's answered."""

    port: int
    pause: float
    headers: dict[str, str]
    served: int = 0
    told_to_wait: int = 0
    failed: list[str] = field(factory=list)
    worst: float = 0.0
    _over: threading.Event = field(factory=threading.Event)

    def run(self) -> None:
        """Until told to stop; once more after that, so that what the attack left behind is seen."""
        while True:
            last = self._over.is_set()
            self.ask()
            if last:
                return
            self._over.wait(self.pause)

    def ask(self) -> None:
        """One request."""
        began = time.monotonic()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
            body = envelope_of(sender="urn:asap:agent:honest")
            connection.request("POST", "/asap", body, {"Content-Type": "application/json", **self.headers})
            answer = connection.getresponse()
            document = json.loads(answer.read())
            connection.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.failed.append(repr(error))
            return
        self.worst = max(self.worst, time.monotonic() - began)
        if "result" in document:
            self.served += 1
        elif answer.status in (429, 503):
            self.told_to_wait += 1
        else:
            self.failed.append(json.dumps(document)[:500])

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """In a thread of its own, for as long as this is open."""
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()


Attack = Callable[[Server], tuple[int, Counter[str]]]


def measured(
    case: str,
    server: Server,
    attack: Attack,
    *,
    backend: str,
    bound: int,
    pause: float = 0.05,
    headers: dict[str, str] | None = None,
) -> Report:
    """Attack a server with an honest client beside it, and say what came of it."""
    honest = Honest(server.port, pause, headers or {})
    for _ in range(2):  # what is made once, at the first requests, isn't what this is about
        honest.ask()
        time.sleep(pause)
    honest.served, honest.worst = 0, 0.0
    server.forget_peak()
    before, began = server.resident(), time.monotonic()
    with honest.at_work():
        requests, answers = attack(server)
    seconds, growth = time.monotonic() - began, max(server.peak() - before, 0)
    return Report(
        case=case,
        backend=backend,
        requests=requests,
        answers=answers,
        growth=growth,
        bound=bound,
        served=honest.served,
        told_to_wait=honest.told_to_wait,
        failed=tuple(honest.failed),
        worst=honest.worst,
        seconds=seconds,
        left=server.settled() - before,
    )


def raise_file_limit(wanted: int) -> int:
    """Let this process, and those it starts, have so many open files, or as many as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(soft, wanted)
