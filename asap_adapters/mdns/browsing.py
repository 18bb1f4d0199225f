"""Watches the agents on every link by zeroconf. Runs in the engine's thread; `lock` guards what others read."""

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

# zeroconf's default for resolving a service: three queries.
_RESOLVE_MS: Final = 3_000
# The most services that are resolved at once. Usually an announcement has all records, so there are few. Each costs
# three queries on the link: a flood of incomplete announcements must not cause a flood of queries.
_MAX_RESOLVING: Final = 200
# Seconds between checks. A host's records live two minutes, a service's 75 (RFC 6762 §10): without checks of the
# host's, an agent that died without a goodbye would be listed for an hour.
_ALIVE_SECONDS: Final = 15
# An agent on a link that was joined again has been queried twice by then (RFC 6762 §5.2: at once, and a second later).
_DOUBT_SECONDS: Final = 5.0


@define(eq=False)
class WatchingEngine(Engine):
    """An engine that stores what it sees in `announced_agents` and then calls `on_news`.

    lock: held during each access to `announced_agents`, also by other threads.
    """

    announced_agents: AnnouncedAgents
    lock: threading.Lock
    on_news: Callable[[], None]
    _resolving: dict[tuple[str, str], asyncio.Task[None]] = field(factory=dict, init=False)
    # Instances that didn't answer. zeroconf doesn't report one that returns before its old records have expired.
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
        # zeroconf reports cached records only if they are in the case of SERVICE_TYPE: report the others too.
        for pointer in station.engine.cache.get_all_by_details(SERVICE_TYPE, TYPE_PTR, CLASS_IN):
            if isinstance(pointer, DNSPointer) and (instance := instance_of(pointer.alias)) is not None:
                self._changed(station, _full_name(instance), gone=False)
        log.info("mDNS: watching %s (%s), the local network only", station.link.name, ", ".join(station.link.addresses))

    async def rejoined(self, station: Station) -> None:
        """Watch this link again. Agents that aren't seen soon are removed."""
        with self.lock:
            self.announced_agents.doubt(station.link.name)
        self._stop_asking(station.link)
        await self.joined(station)
        link = station.link.name
        self._doubts[link] = asyncio.get_running_loop().call_later(
            _DOUBT_SECONDS, lambda: self._report(lambda: self.announced_agents.drop_doubted(link))
        )

    def parted(self, link: Link) -> None:
        """Remove all agents on this link."""
        self._stop_asking(link)
        self._report(lambda: self.announced_agents.lost(link.name))

    def _stop_asking(self, link: Link) -> None:
        """Cancel the queries of a zeroconf that was closed, and the pending removal of unseen agents."""
        for key in [key for key in self._resolving if key[0] == link.name]:
            self._resolving.pop(key).cancel()
        for key in [key for key in self._silent if key[0] == link.name]:
            del self._silent[key]
        doubts = self._doubts.pop(link.name, None)
        if doubts is not None:
            doubts.cancel()

    def looked(self) -> None:
        """Every `_ALIVE_SECONDS`, query agents whose hosts' records have expired, and find those that returned."""
        self._looks += 1
        if self._looks % _ALIVE_SECONDS:
            return
        for station in self._stations.values():
            link = station.link.name
            with self.lock:
                agents = self.announced_agents.agents_on(link)
            for instance in agents:
                name = _full_name(instance)
                if (link, fold(name)) not in self._resolving:
                    self._resolve(station, name)
            for _, name in [key for key in self._silent if key[0] == link]:
                info = AsyncServiceInfo(SERVICE_TYPE, name)
                if info.load_from_cache(station.engine):
                    self._found(station, info)

    def _changed(self, station: Station, name: str, *, gone: bool) -> None:
        """Handle a service that appeared, changed or disappeared."""
        link = station.link.name
        self._silent.pop((link, fold(name)), None)
        stale = self._resolving.pop((link, fold(name)), None)
        if stale is not None:
            stale.cancel()
        if gone:
            self._report(lambda: self.announced_agents.gone(_instance(name), link))
        elif self.announced_agents.has_room_for(_instance(name), link):
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
        if self.announced_agents.is_agent(instance, link):
            self._report(lambda: self.announced_agents.gone(instance, link))
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
        self._report(lambda: self.announced_agents.seen(found))

    def _report(self, report: Callable[[], bool]) -> None:
        with self.lock:
            news = report()
        if news:
            self.on_news()


class _Browser(AsyncServiceBrowser):
    """zeroconf's browser, which compares types exactly: it gets all names in the case of SERVICE_TYPE."""

    def async_update_records(self, zc: zeroconf.Zeroconf, now: float, records: list[zeroconf.RecordUpdate]) -> None:
        """Handle records that arrived or expired."""
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
