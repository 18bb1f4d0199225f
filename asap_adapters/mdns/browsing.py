"""The agents on every link, watched by zeroconf; all of it in the engine's thread but for what `lock` guards."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import Final

import zeroconf
from attrs import define, field
from zeroconf._dns import DNSPointer
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo

from asap_adapters.mdns.multicast import CLASS_IN, TYPE_PTR, Engine, Station, log
from asap_core.mdns.dnssd import (
    MAX_AGENTS,
    SERVICE_TYPE,
    AnnouncedAgents,
    Announcement,
    UnusableRecord,
    fold,
    instance_of,
    read_announcement,
)
from asap_core.net.interfaces import Link

# zeroconf's own default for resolving a service: three questions.
_RESOLVE_MS: Final = 3_000
# Services asked about at once. Announcements come whole, so there are few; each costs three questions on the link, and
# a flood of half-announced ones mustn't make us flood it in turn.
_MAX_RESOLVING: Final = 200
# A host's records live two minutes, a service's name 75 (RFC 6762 §10): without a look at the former an agent that
# died without a goodbye would be there for an hour.
_ALIVE_SECONDS: Final = 15
# Who is on a link that was joined anew has answered twice by then (RFC 6762 §5.2: at once, and a second later).
_DOUBT_SECONDS: Final = 5.0


@define(eq=False)
class WatchingEngine(Engine):
    """An engine that watches: what is seen goes into `neighbourhood`, under `lock`, then `on_news` is called.

    Whoever takes from the neighbourhood in another thread holds the lock meanwhile.
    """

    neighbourhood: AnnouncedAgents
    lock: threading.Lock
    on_news: Callable[[], None]
    _resolving: dict[tuple[str, str], asyncio.Task[None]] = field(factory=dict, init=False)
    # Those that didn't answer. zeroconf says nothing when one is back before its old records were cleared away.
    _silent: dict[tuple[str, str], None] = field(factory=dict, init=False)
    _doubts: dict[str, asyncio.TimerHandle] = field(factory=dict, init=False)
    _looks: int = field(default=0, init=False)

    async def joined(self, station: Station) -> None:
        """Watch this link."""

        def changed(
            zeroconf: zeroconf.Zeroconf, service_type: str, name: str, state_change: zeroconf.ServiceStateChange
        ) -> None:
            del zeroconf, service_type  # called by the engine, in its loop, with these keywords
            self._changed(station, name, gone=state_change.name == "Removed")

        station.browser = _Browser(station.engine, SERVICE_TYPE, handlers=[changed])
        # What came in before it is shown those alone whose case is ours.
        for pointer in station.engine.cache.get_all_by_details(SERVICE_TYPE, TYPE_PTR, CLASS_IN):
            if isinstance(pointer, DNSPointer) and (instance := instance_of(pointer.alias)) is not None:
                self._changed(station, _full_name(instance), gone=False)
        log.info("mDNS: watching %s (%s), the local network only", station.link.name, ", ".join(station.link.addresses))

    async def rejoined(self, station: Station) -> None:
        """Watch it anew: who isn't heard of soon has gone meanwhile."""
        with self.lock:
            self.neighbourhood.doubt(station.link.name)
        self._stop_asking(station.link)
        await self.joined(station)
        link = station.link.name
        self._doubts[link] = asyncio.get_running_loop().call_later(
            _DOUBT_SECONDS, lambda: self._report(lambda: self.neighbourhood.drop_doubted(link))
        )

    def parted(self, link: Link) -> None:
        """Everyone there is gone, as far as we can tell."""
        self._stop_asking(link)
        self._report(lambda: self.neighbourhood.lost(link.name))

    def _stop_asking(self, link: Link) -> None:
        """What was asked by a zeroconf that's gone won't be answered; and doubts begin anew."""
        for key in [key for key in self._resolving if key[0] == link.name]:
            self._resolving.pop(key).cancel()
        for key in [key for key in self._silent if key[0] == link.name]:
            del self._silent[key]
        doubts = self._doubts.pop(link.name, None)
        if doubts is not None:
            doubts.cancel()

    def looked(self) -> None:
        """Now and then ask about those whose hosts haven't been heard of for too long, and see who is back."""
        self._looks += 1
        if self._looks % _ALIVE_SECONDS:
            return
        for station in self._stations.values():
            link = station.link.name
            with self.lock:
                agents = self.neighbourhood.agents_on(link)
            for instance in agents:
                name = _full_name(instance)
                if (link, fold(name)) not in self._resolving:
                    self._resolve(station, name)
            for _, name in [key for key in self._silent if key[0] == link]:
                info = AsyncServiceInfo(SERVICE_TYPE, name)
                if info.load_from_cache(station.engine):
                    self._found(station, info)

    def _changed(self, station: Station, name: str, *, gone: bool) -> None:
        """A service came, changed or went."""
        link = station.link.name
        self._silent.pop((link, fold(name)), None)
        stale = self._resolving.pop((link, fold(name)), None)
        if stale is not None:
            stale.cancel()
        if gone:
            self._report(lambda: self.neighbourhood.gone(_instance(name), link))
        elif self.neighbourhood.has_room_for(_instance(name), link):
            self._resolve(station, name)

    def _resolve(self, station: Station, name: str) -> None:
        try:
            info = AsyncServiceInfo(SERVICE_TYPE, name)
        except zeroconf.BadTypeInNameException:
            return
        if info.load_from_cache(station.engine):
            self._found(station, info)
        elif len(self._resolving) < _MAX_RESOLVING:
            self._resolving[station.link.name, fold(name)] = asyncio.ensure_future(self._ask(station, info, name))

    async def _ask(self, station: Station, info: AsyncServiceInfo, name: str) -> None:
        answered, link, instance = False, station.link.name, _instance(name)
        with contextlib.suppress(OSError, zeroconf.Error):
            answered = await info.async_request(station.engine, _RESOLVE_MS)
        self._resolving.pop((link, fold(name)), None)
        if answered:
            self._found(station, info)
            return
        if len(self._silent) < MAX_AGENTS:
            self._silent[link, fold(name)] = None
        if self.neighbourhood.is_agent(instance, link):
            self._report(lambda: self.neighbourhood.gone(instance, link))
        else:
            self._see(UnusableRecord(instance, "expected an answer that says its address, port and manifest_url", link))

    def _found(self, station: Station, info: AsyncServiceInfo) -> None:
        self._silent.pop((station.link.name, fold(info.name)), None)
        self._see(
            read_announcement(
                instance=_instance(info.name),
                server=info.server,
                port=info.port,
                addresses=info.parsed_scoped_addresses(),
                txt=info.properties,
                link=station.link,
            )
        )

    def _see(self, found: Announcement | UnusableRecord) -> None:
        self._report(lambda: self.neighbourhood.seen(found))

    def _report(self, report: Callable[[], bool]) -> None:
        with self.lock:
            news = report()
        if news:
            self.on_news()


class _Browser(AsyncServiceBrowser):
    """zeroconf's, which knows a type only in the case that it asked for: it's shown all names in that case."""

    def async_update_records(self, zc: zeroconf.Zeroconf, now: float, records: list[zeroconf.RecordUpdate]) -> None:
        """Records have come or run out."""
        super().async_update_records(zc, now, [_in_our_case(update) for update in records])

    def _names_matching_types(self, names: Iterable[str]) -> list[tuple[str, str]]:
        return [(SERVICE_TYPE, _full_name(instance)) for name in names if (instance := instance_of(name)) is not None]


def _in_our_case(update: zeroconf.RecordUpdate) -> zeroconf.RecordUpdate:
    record = update.new
    if not isinstance(record, DNSPointer) or fold(record.name) != SERVICE_TYPE:
        return update
    instance = instance_of(record.alias)
    alias = record.alias if instance is None else _full_name(instance)
    ours = DNSPointer(SERVICE_TYPE, record.type, record.class_, record.ttl, alias, record.created)
    return zeroconf.RecordUpdate(ours, update.old)


def _full_name(instance: str) -> str:
    return f"{instance}.{SERVICE_TYPE}"


def _instance(name: str) -> str:
    return instance_of(name) or name
