"""zeroconf's engine and what is asked of it: everything here runs in worker threads, or in the engine's own.

Rule: the engine lives in its own thread with its own loop, beside whatever loop the caller has; a `Link` opens it,
gives it coroutines, and closes it, each from any thread. Importing this takes 80 ms, so `asap_adapters.mdns` does it in
a worker thread.
"""

import asyncio
import contextlib
import ipaddress
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

import ifaddr
import zeroconf
from attrs import define, field
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo

from asap_adapters.mdns import MdnsUnavailable
from asap_core.dnssd import (
    SERVICE_TYPE,
    Announcement,
    Neighbourhood,
    Target,
    Unusable,
    advertised_addresses,
    read_announcement,
    service_target,
)

__all__ = ["AnnouncingLink", "Link", "WatchingLink"]

T = TypeVar("T")

# zeroconf's own default for resolving a service: three questions.
_RESOLVE_MS: Final = 3_000
# How long the engine's thread may take to answer; it does in milliseconds, so what takes this long is dead.
_ENGINE_SECONDS: Final = 5.0
# Services asked about at once. Announcements come whole, so there are few; each costs three questions on the link, and
# a flood of half-announced ones mustn't make us flood it in turn.
_MAX_RESOLVING: Final = 200


@define(eq=False)
class Link:
    """The engine, while it runs. `open` and `close` may each be called in any thread, in any order, and twice."""

    interfaces: Sequence[str] | None
    _engine: zeroconf.Zeroconf | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)
    # One opens while another already gives up: whoever comes second waits, and sees what the first has left.
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def open(self) -> None:
        """Start the engine. Raises `MdnsUnavailable`. Does nothing where it was closed before."""
        with self._lock:
            if self._closed:
                return
            self._engine = _start_engine(self.interfaces)
            self._call(_check_senders(self._engine)).result(_ENGINE_SECONDS)

    def close(self) -> None:
        """Take leave, stop the engine and join its thread."""
        with self._lock:
            self._closed = True
            engine = self._engine
            if engine is None:
                return
            with contextlib.suppress(TimeoutError, OSError, zeroconf.Error):
                self._call(self._leave(engine)).result(_ENGINE_SECONDS)
            self._engine = None
            engine.close()

    async def _leave(self, engine: zeroconf.Zeroconf) -> None:
        """What is to be done in the engine's loop before it ends."""

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        if self._engine is None or self._engine.loop is None:
            coroutine.close()
            raise RuntimeError("the engine isn't running")
        return asyncio.run_coroutine_threadsafe(coroutine, self._engine.loop)


def _start_engine(interfaces: Sequence[str] | None) -> zeroconf.Zeroconf:
    _check_interfaces(interfaces)
    try:
        if interfaces is None:
            return zeroconf.Zeroconf(interfaces=zeroconf.InterfaceChoice.All, use_asyncio=False)
        return zeroconf.Zeroconf(interfaces=list(interfaces), use_asyncio=False)
    except OSError as error:
        raise MdnsUnavailable(f"mDNS needs multicast on UDP port 5353: {error.strerror or error}") from error


def _check_interfaces(interfaces: Sequence[str] | None) -> None:
    # zeroconf passes over an address that isn't there, and then announces to nobody.
    machine = _machine_addresses()
    known = set(filter(None, map(_plain, machine)))
    if not known or any(_plain(address) not in known for address in interfaces or ()):
        have = ", ".join(sorted(machine)) or "none that is up"
        raise MdnsUnavailable(f"expected interfaces by addresses that this machine has; it has {have}")


def _plain(address: str) -> str | None:
    try:
        return str(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return None


async def _check_senders(engine: zeroconf.Zeroconf) -> None:
    await engine.async_wait_for_start()
    if not engine.engine.senders:
        raise MdnsUnavailable(
            "mDNS needs multicast, and no interface here has it; a container may need host networking"
        )


def _machine_addresses() -> list[str]:
    return [ip.ip if isinstance(ip.ip, str) else ip.ip[0] for adapter in ifaddr.get_adapters() for ip in adapter.ips]


# --- announcing ------------------------------------------------------------------------------------------------------


@define(eq=False)
class AnnouncingLink(Link):
    """A link with one service on it."""

    _info: zeroconf.ServiceInfo | None = field(default=None, init=False)
    # zeroconf repeats an announcement, in a task: one that still ran after the goodbye would bring the service back.
    _repeats: asyncio.Future[Any] | None = field(default=None, init=False)

    def announce(self, *, label: str, host: str, port: int, txt: Mapping[str, str]) -> Future[str]:
        """Find a free name, announce it once and go on repeating; the future's result is the instance's name.

        Raises `MdnsUnavailable` where what the server is bound to can't be announced.
        """
        target = _target(host, port, txt)
        return self._call(self._announce(f"{label}.{SERVICE_TYPE}", port, target, txt))

    async def _announce(self, name: str, port: int, target: Target, txt: Mapping[str, str]) -> str:
        info = _info(name, port, target, txt)
        if self._engine is None:
            raise MdnsUnavailable("mDNS was stopped")
        try:
            self._repeats = asyncio.ensure_future(
                await self._engine.async_register_service(info, allow_name_change=True)
            )
        except (OSError, zeroconf.Error) as error:
            raise MdnsUnavailable(f"the announcement can't be made: {type(error).__name__}") from error
        self._info = info
        return _instance(info.name)

    def announce_change(self, txt: Mapping[str, str]) -> None:
        """Announce another TXT record under the same name. Raises `MdnsUnavailable` where it's no longer announced."""
        try:
            self._call(self._change(txt)).result(_ENGINE_SECONDS)
        except (RuntimeError, TimeoutError, OSError, zeroconf.Error) as error:
            raise MdnsUnavailable("the change can't be announced: mDNS isn't running") from error

    async def _change(self, txt: Mapping[str, str]) -> None:
        if self._info is None or self._engine is None or self._repeats is None:
            raise RuntimeError
        self._repeats.cancel()
        old = self._info
        target = Target(old.server or "", tuple(old.parsed_addresses()))
        self._info = _info(old.name, old.port or 0, target, txt)
        self._repeats = asyncio.ensure_future(await self._engine.async_update_service(self._info))

    async def _leave(self, engine: zeroconf.Zeroconf) -> None:
        if self._repeats is not None:
            self._repeats.cancel()
        await engine.async_unregister_all_services()  # the goodbyes: three, 125 ms apart


def _target(host: str, port: int, txt: Mapping[str, str]) -> Target:
    addresses = advertised_addresses(host, _machine_addresses())
    if not addresses:
        raise MdnsUnavailable("no address of this machine that others can reach belongs to what the server is bound to")
    target = service_target(txt["manifest_url"], addresses)
    as_read = read_announcement(
        instance="",
        server=target.name,
        port=port,
        addresses=addresses,
        txt={b"manifest_url": txt["manifest_url"].encode()},
    )
    if isinstance(as_read, Unusable):
        # Announced all the same it would be ignored by everyone, and nobody would know why.
        known = ", ".join(addresses)
        raise MdnsUnavailable(f"browsers take only a manifest URL at an announced address ({known}) or a .local name")
    return target


def _info(name: str, port: int, target: Target, txt: Mapping[str, str]) -> zeroconf.ServiceInfo:
    return zeroconf.ServiceInfo(
        SERVICE_TYPE,
        name,
        parsed_addresses=list(target.addresses),
        port=port,
        properties=dict(txt),
        server=target.name,
    )


def _instance(name: str) -> str:
    return name.removesuffix(f".{SERVICE_TYPE}")


# --- watching --------------------------------------------------------------------------------------------------------


@define(eq=False)
class WatchingLink(Link):
    """A link whose services are watched: what is seen goes into `neighbourhood`, then `on_news` is called.

    Both happen in the engine's thread, the first under `lock`: whoever takes from the neighbourhood holds it meanwhile.
    """

    neighbourhood: Neighbourhood
    lock: threading.Lock
    on_news: Callable[[], None]
    _browser: AsyncServiceBrowser | None = field(default=None, init=False)
    _resolving: dict[str, asyncio.Task[None]] = field(factory=dict, init=False)

    def watch(self) -> None:
        """Start watching."""
        self._call(self._watch()).result(_ENGINE_SECONDS)

    async def _watch(self) -> None:
        if self._engine is not None:
            self._browser = AsyncServiceBrowser(self._engine, SERVICE_TYPE, handlers=[self._changed])

    async def _leave(self, engine: zeroconf.Zeroconf) -> None:
        del engine
        if self._browser is not None:
            await self._browser.async_cancel()
        for task in self._resolving.values():
            task.cancel()

    def _changed(
        self, zeroconf: zeroconf.Zeroconf, service_type: str, name: str, state_change: zeroconf.ServiceStateChange
    ) -> None:
        """A service came, changed or went: called by the engine, in its loop, with these keywords."""
        del service_type
        stale = self._resolving.pop(name, None)
        if stale is not None:
            stale.cancel()
        if state_change.name == "Removed":
            self._report(lambda: self.neighbourhood.gone(_instance(name)))
        elif len(self._resolving) < _MAX_RESOLVING and self.neighbourhood.has_room_for(_instance(name)):
            self._resolve(zeroconf, name)

    def _resolve(self, engine: zeroconf.Zeroconf, name: str) -> None:
        try:
            info = AsyncServiceInfo(SERVICE_TYPE, name)
        except zeroconf.BadTypeInNameException:
            return
        if info.load_from_cache(engine):
            self._found(info)
        else:
            self._resolving[name] = asyncio.ensure_future(self._ask(engine, info, name))

    async def _ask(self, engine: zeroconf.Zeroconf, info: AsyncServiceInfo, name: str) -> None:
        answered = False
        with contextlib.suppress(OSError, zeroconf.Error):
            answered = await info.async_request(engine, _RESOLVE_MS)
        self._resolving.pop(name, None)
        if answered:
            self._found(info)
        else:
            instance = _instance(name)
            self._see(Unusable(instance, "expected an answer that says its address, port and manifest_url"))

    def _found(self, info: AsyncServiceInfo) -> None:
        self._see(
            read_announcement(
                instance=_instance(info.name),
                server=info.server,
                port=info.port,
                addresses=info.parsed_scoped_addresses(),
                txt=info.properties,
            )
        )

    def _see(self, found: Announcement | Unusable) -> None:
        self._report(lambda: self.neighbourhood.seen(found))

    def _report(self, report: Callable[[], bool]) -> None:
        with self.lock:
            news = report()
        if news:
            self.on_news()
