"""Two hosts with a cable between them, on one machine: network namespaces and veth, by Debian's iproute2."""

import functools
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

SECONDS = 60.0
HERE = Path(__file__).parent
ROOT = HERE.parent.parent

numbers = count()


def ip(*arguments, check=True):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=check, timeout=SECONDS)


@functools.cache
def why_not():
    """Why this machine can't have such hosts, or None."""
    if not sys.platform.startswith("linux") or shutil.which("ip") is None:
        return "iproute2 isn't installed (apt-get install iproute2)"
    name = f"asap-{os.getpid()}-probe"
    made = ip("netns", "add", name, check=False)
    if made.returncode != 0:
        return "network namespaces aren't permitted here (they take CAP_SYS_ADMIN)"
    cable = ip("-n", name, "link", "add", "one0", "type", "veth", "peer", "name", "other0", check=False)
    ip("netns", "delete", name)
    return None if cable.returncode == 0 else "veth cables aren't permitted here (they take CAP_NET_ADMIN)"


def need_hosts() -> None:
    """Skip the test, by name, where there can't be any."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


@define
class Process:
    """A program on a host; what it prints is read as it comes."""

    popen: Any
    ends_by_eof: Any = False
    lines: Any = field(factory=queue.Queue)
    said: list[str] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.popen.stdout:
            self.lines.put(line)

    def tell(self, command) -> None:
        self.popen.stdin.write(json.dumps(command) + "\n")
        self.popen.stdin.flush()

    def line(self, fits: Callable[[str], Any], seconds=SECONDS):
        """Call `fits` with each line; return its first result that isn't false."""
        until = time.monotonic() + seconds
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"waited {seconds} s; it said {self.said}") from None
            self.said.append(line)
            found = fits(line)
            if found:
                return found

    def all_said(self):
        while not self.lines.empty():
            self.said.append(self.lines.get())
        return self.said

    def document(self, **fields):
        """The first JSON line with these fields."""

        def fits(line):
            if not line.startswith("{"):
                return None
            document = json.loads(line)
            return document if fields.items() <= document.items() else None

        return self.line(fits)

    def end(self, signal=15):
        self.popen.stdin.close()
        if self.popen.poll() is None and not self.ends_by_eof:
            self.popen.send_signal(signal)
        try:
            code = self.popen.wait(SECONDS)
        finally:
            self.popen.kill()
            self.popen.stdout.close()
        return code


@define
class Host:
    """A network namespace."""

    name: str
    running: list[Process] = field(factory=list)

    def ip(self, *arguments):
        return ip("-n", self.name, *arguments).stdout

    def set(self, path, value) -> None:
        self.run("sh", "-c", f"echo {value} > /proc/sys/net/{path}")

    def run(self, *command):
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *map(str, command)],
            capture_output=True, text=True, check=False, timeout=SECONDS, cwd=ROOT,
        )  # fmt: skip

    def start(self, *command, ends_by_eof=False) -> Process:
        popen = subprocess.Popen(
            ["ip", "netns", "exec", self.name, *map(str, command)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1, cwd=ROOT,
        )  # fmt: skip
        self.running.append(Process(popen, ends_by_eof))
        return self.running[-1]

    def asap(self, *arguments) -> Process:
        return self.start(sys.executable, "-u", "-m", "asap_adapters.cli", *arguments)

    def link_local(self, interface):
        shown = self.ip("-j", "-6", "address", "show", "dev", interface, "scope", "link")
        # Where others were filtered out, an empty object each is left.
        return next(one["local"] for entry in json.loads(shown) for one in entry.get("addr_info", ()) if one)


@define
class Hosts:
    """Two of them. Interfaces are called `ours0`, `ours1` on the one, `theirs0`, `theirs1` on the other."""

    one: Host
    other: Host

    def cable(self, number=0, family="dual") -> None:
        """Lay a cable: 10.77.N.1 at the one, 10.77.N.2 at the other; `family` is ipv4, ipv6 (link-local) or dual."""
        ours, theirs = f"ours{number}", f"theirs{number}"
        ip(
            "link",
            "add",
            ours,
            "netns",
            self.one.name,
            "type",
            "veth",
            "peer",
            "name",
            theirs,
            "netns",
            self.other.name,
        )
        for place, (host, interface) in enumerate(((self.one, ours), (self.other, theirs)), 1):
            if family == "ipv4":
                host.ip("link", "set", interface, "addrgenmode", "none")
            else:
                # Else an address is on trial for its first second or two.
                host.set(f"ipv6/conf/{interface}/accept_dad", 0)
            if family != "ipv6":
                host.ip("address", "add", f"10.77.{number}.{place}/24", "dev", interface)
        for host, interface in ((self.one, ours), (self.other, theirs)):
            host.ip("link", "set", interface, "up")
        if family != "ipv4":
            for host, interface in ((self.one, ours), (self.other, theirs)):
                until = time.monotonic() + SECONDS
                while "fe80" not in host.ip("-6", "address", "show", "dev", interface, "-tentative"):
                    assert time.monotonic() < until
                    time.sleep(0.05)  # the kernel has nothing to wait on here but netlink


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    number = next(numbers)
    hosts = Hosts(*(Host(f"asap-{os.getpid()}-{number}-{which}") for which in ("one", "other")))
    try:
        for host in (hosts.one, hosts.other):
            ip("netns", "add", host.name)
            host.ip("link", "set", "lo", "up")
        yield hosts
    finally:
        for host in (hosts.one, hosts.other):
            for process in host.running:
                process.end()
            ip("netns", "delete", host.name, check=False)
