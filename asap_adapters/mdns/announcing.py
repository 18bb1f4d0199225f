"""Announces one agent by zeroconf on every link where it's reachable. All of it runs in the engine's thread."""

import asyncio
import itertools
from collections.abc import Awaitable, Sequence

import zeroconf
from attrs import define, evolve, field, frozen
from zeroconf._dns import DNSPointer

from asap_adapters.mdns.multicast import CLASS_IN, ENGINE_ERRORS, ENGINE_SECONDS, TYPE_PTR, Engine, Station, log
from asap_core.errors import MdnsUnavailable
from asap_core.mdns.announcing import Announced, Offer, Txt, Unannounced, offer_on, txt_record
from asap_core.mdns.dnssd import SERVICE_TYPE, fold, instance_of
from asap_core.net.interfaces import Link


@frozen(kw_only=True)
class Service:
    """The facts to announce of an agent. The TXT record may differ between links, since the URL may."""

    agent_id: str
    label: str
    version: str
    skills: Sequence[str]
    manifest_url: str
    host: str
    port: int

    def txt(self, manifest_url: str) -> Txt:
        """Make the TXT record for this URL. Raises ValueError if a required value is too long."""
        return txt_record(
            agent_id=self.agent_id, manifest_url=manifest_url, version=self.version, skills=tuple(self.skills)
        )


@define(eq=False)
class AnnouncingEngine(Engine):
    """An engine that announces one service on each of its links."""

    service: Service
    announced: tuple[Announced, ...] = field(default=(), init=False)
    _infos: dict[str, zeroconf.ServiceInfo] = field(factory=dict, init=False)
    # zeroconf repeats an announcement in a task, which must be cancelled when the announcement changes.
    _repeats: dict[str, asyncio.Future[object]] = field(factory=dict, init=False)

    def change(self, version: str, skills: Sequence[str]) -> None:
        """Announce another version and skills under the same names. Raises `MdnsUnavailable` if the engine has died."""
        try:
            self.call(self._change(version, skills)).result(ENGINE_SECONDS)
        except (TimeoutError, *ENGINE_ERRORS) as error:
            raise MdnsUnavailable("the change can't be announced: mDNS isn't running") from error

    # --- in the engine's loop ----------------------------------------------------------------------------------------

    def unfit(self, link: Link) -> str | None:
        """Return why nothing can be announced on this link, or None."""
        offer = self._offer(link)
        return offer.reason if isinstance(offer, Unannounced) else None

    async def joined(self, station: Station) -> None:
        """Find a free name on this link and announce the service; zeroconf repeats the announcement."""
        offer, service = self._offer(station.link), self.service
        if isinstance(offer, Unannounced):
            raise MdnsUnavailable(offer.reason)
        info = self._info(f"{self.service.label}.{SERVICE_TYPE}", offer)
        await _find_free_name(station.engine, info)
        # `cooperating_responders` skips zeroconf's own check of the name, which was just made.
        repeats = await station.engine.async_register_service(info, cooperating_responders=True)
        self._keep(offer, info, repeats)
        log.info(
            "mDNS: announced as %s on %s (%s), which reaches the local network only",
            info.name.removesuffix(f".{SERVICE_TYPE}"),
            station.link.name,
            ", ".join(offer.target.addresses),
        )
        if self.service is not service:  # it was changed meanwhile
            await self._renew(station)

    async def moved(self, station: Station, before: Link) -> None:
        """Announce the new addresses under the same name."""
        del before
        await self._renew(station)

    def parted(self, link: Link) -> None:
        """Forget the announcement on this link."""
        self._infos.pop(link.name, None)
        self._stop_repeating(link)
        before, self.announced = self.announced, tuple(one for one in self.announced if one.link != link.name)
        if before and not self.announced:
            log.warning("mDNS: %s was announced on %s, and now nowhere", self.service.label, link.name)

    async def _change(self, version: str, skills: Sequence[str]) -> None:
        self.service = evolve(self.service, version=version, skills=tuple(skills))
        for station in tuple(self._stations.values()):
            await self._renew(station)

    async def _renew(self, station: Station) -> None:
        offer, old = self._offer(station.link), self._infos.get(station.link.name)
        if isinstance(offer, Unannounced) or old is None:
            return  # the link is being joined, or about to be left
        info = self._info(old.name, offer)
        if (info.dns_text(), info.dns_service(), info.dns_addresses()) == (
            old.dns_text(),
            old.dns_service(),
            old.dns_addresses(),
        ):
            return
        self._stop_repeating(station.link)
        self._keep(offer, info, await station.engine.async_update_service(info))

    def _offer(self, link: Link) -> Offer | Unannounced:
        offer = offer_on(link, bind_host=self.service.host, manifest_url=self.service.manifest_url)
        if isinstance(offer, Offer):
            try:
                self.service.txt(offer.manifest_url)
            except ValueError as error:
                return Unannounced(link, str(error))
        return offer

    def _info(self, name: str, offer: Offer) -> zeroconf.ServiceInfo:
        return zeroconf.ServiceInfo(
            SERVICE_TYPE,
            name,
            parsed_addresses=list(offer.target.addresses),
            port=self.service.port,
            properties=dict(self.service.txt(offer.manifest_url).strings),
            server=offer.target.name,
        )

    def _keep(self, offer: Offer, info: zeroconf.ServiceInfo, repeats: Awaitable[object]) -> None:
        link = offer.link.name
        self._infos[link], self._repeats[link] = info, asyncio.ensure_future(repeats)
        announced = Announced(
            link=link,
            instance=info.name.removesuffix(f".{SERVICE_TYPE}"),
            manifest_url=offer.manifest_url,
            addresses=offer.target.addresses,
        )
        others = (one for one in self.announced if one.link != link)
        self.announced = tuple(sorted((*others, announced), key=lambda one: one.link))

    def _stop_repeating(self, link: Link) -> None:
        repeats = self._repeats.pop(link.name, None)
        if repeats is not None:
            repeats.cancel()


async def _find_free_name(engine: zeroconf.Zeroconf, info: zeroconf.ServiceInfo) -> None:
    """Find a name that nobody on the link has, ignoring case (RFC 6762 §16): zeroconf compares names exactly."""
    label = instance_of(info.name)
    for number in itertools.count(2):
        await engine.async_check_service(info, allow_name_change=True)
        pointers = engine.cache.get_all_by_details(SERVICE_TYPE, TYPE_PTR, CLASS_IN)
        if not any(fold(one.alias) == fold(info.name) for one in pointers if isinstance(one, DNSPointer)):
            return
        info.name = f"{label}-{number}.{SERVICE_TYPE}"
