"""Announcing and reading link by link: a link's own addresses and no others, and zones that are the reader's."""

import pytest
from hypothesis import given, strategies as st

from asap_core.mdns.announcing import Offer, SrvTarget, Unannounced, offer_on
from asap_core.mdns.dnssd import (
    Added,
    AnnouncedAgents,
    Announcement,
    Ignored,
    Removed,
    UnusableRecord,
    Updated,
    read_announcement,
)
from asap_core.net.addresses import is_link_local_ipv6, read_without_zone
from asap_core.net.interfaces import Link

LO = Link(name="lo", index=1, addresses=("127.0.0.1", "::1"), loopback=True)
ETH = Link(name="eth0", index=2, addresses=("192.0.2.1", "2001:db8::1", "fe80::1"))
WLAN = Link(name="wlan0", index=3, addresses=("198.51.100.7", "fe80::2"))
SIX = Link(name="six0", index=4, addresses=("fe80::3",))
PATH = "/.well-known/asap/manifest.json"


def offered(link, host, url_host=None):
    shown = host if url_host is None else url_host
    shown = f"[{shown}]" if ":" in shown else shown
    return offer_on(link, bind_host=host, manifest_url=f"http://{shown}:8000{PATH}")


class TestOffers:
    def test_a_wildcard_is_announced_on_each_link_with_the_addresses_of_the_link(self) -> None:
        offers = [offered(link, "*") for link in (ETH, WLAN, SIX)]
        assert [offer.manifest_url for offer in offers] == [
            f"http://192.0.2.1:8000{PATH}",
            f"http://198.51.100.7:8000{PATH}",
            f"http://[fe80::3]:8000{PATH}",
        ]
        assert [offer.target.addresses for offer in offers] == [
            ("192.0.2.1", "2001:db8::1", "fe80::1"),
            ("198.51.100.7", "fe80::2"),
            ("fe80::3",),
        ]
        assert len({offer.target.name for offer in offers}) == 3
        assert all(offer.target.name.endswith(".local.") for offer in offers)

    def test_a_wildcard_url_without_a_port_is_announced_without_a_port(self) -> None:
        offer = offer_on(ETH, bind_host="0.0.0.0", manifest_url="https://0.0.0.0/m")
        assert isinstance(offer, Offer)
        assert offer.manifest_url == "https://192.0.2.1/m"

    def test_a_wildcard_of_one_family_announces_no_address_of_the_other(self) -> None:
        assert offered(ETH, "0.0.0.0").target.addresses == ("192.0.2.1",)
        assert isinstance(offered(SIX, "0.0.0.0"), Unannounced)
        assert offered(ETH, "::").target.addresses == ("2001:db8::1", "fe80::1")
        assert offered(ETH, "::").manifest_url == f"http://[2001:db8::1]:8000{PATH}"

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "*"])
    def test_a_wildcard_is_not_announced_on_loopback(self, host) -> None:
        assert isinstance(offered(LO, host), Unannounced)
        # Not even where a router keeps an address of its own there.
        assert isinstance(
            offered(Link(name="lo", index=1, addresses=("203.0.113.1",), loopback=True), host), Unannounced
        )

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
    def test_loopback_is_announced_on_loopback_only(self, host) -> None:
        assert isinstance(offered(LO, host), Offer)
        assert isinstance(offered(ETH, host), Unannounced)

    def test_a_single_address_is_announced_on_its_link_only(self) -> None:
        assert offered(ETH, "192.0.2.1").target.addresses == ("192.0.2.1",)
        assert "isn't here" in offered(WLAN, "192.0.2.1").reason

    def test_a_link_local_address_is_announced_on_its_link_without_its_zone(self) -> None:
        offer = offered(ETH, "fe80::1%eth0")
        assert (offer.manifest_url, offer.target.addresses) == (f"http://[fe80::1]:8000{PATH}", ("fe80::1",))
        # Two links may have the same: of a bridge's VLANs each has.
        twin = Link(name="eth0.5", index=5, addresses=("fe80::1",))
        assert isinstance(offered(twin, "fe80::1%eth0"), Unannounced)
        assert isinstance(offered(ETH, "fe80::1%2", "fe80::1%252"), Offer)

    def test_a_url_at_another_address_is_announced_on_the_link_of_that_address(self) -> None:
        assert isinstance(offered(ETH, "0.0.0.0", "192.0.2.1"), Offer)
        assert "a manifest URL at an announced address (198.51.100.7)" in offered(WLAN, "0.0.0.0", "192.0.2.1").reason
        assert isinstance(offered(ETH, "0.0.0.0", "agent.example"), Unannounced)
        assert isinstance(offer_on(ETH, bind_host="0.0.0.0", manifest_url="?"), Unannounced)

    def test_a_local_name_is_announced_on_every_link_without_addresses(self) -> None:
        assert [offered(link, "*", "box.local").target for link in (ETH, WLAN)] == [SrvTarget("box.local.", ())] * 2

    def test_a_public_host_name_is_not_announced(self) -> None:
        assert isinstance(offered(ETH, "a.example"), Unannounced)

    ADDRESSES = st.lists(
        st.ip_addresses().map(str) | st.sampled_from(["127.0.0.1", "fe80::1", "192.0.2.1"]), max_size=5
    )
    HOSTS = st.sampled_from(["0.0.0.0", "::", "*", "127.0.0.1", "fe80::1%eth0", "192.0.2.1", "localhost", "box.local"])

    @given(ADDRESSES, HOSTS | st.text(), HOSTS | st.text(), st.booleans())
    def test_an_offer_has_addresses_of_its_link_and_is_accepted_by_readers(
        self, addresses, host, url_host, loopback
    ) -> None:
        link = Link(name="eth0", index=2, addresses=tuple(addresses), loopback=loopback)
        offer = offered(link, host, url_host)
        if isinstance(offer, Unannounced):
            assert (offer.link, bool(offer.reason)) == (link, True)
            return
        own = {str(read_without_zone(text)) for text in addresses} | ({"127.0.0.1"} if loopback else set())
        assert set(offer.target.addresses) <= own
        assert all(read_without_zone(text).is_loopback is loopback for text in offer.target.addresses)  # type: ignore[union-attr]
        read = read_announcement(
            instance="A",
            server=offer.target.name,
            port=8000,
            addresses=offer.target.addresses,
            txt={b"manifest_url": offer.manifest_url.encode()},
            link=Link(name="their0", index=9, addresses=()),
        )
        assert isinstance(read, Announcement)


class TestReading:
    def read(self, url, addresses, link=ETH):
        return read_announcement(
            instance="A", server="a.local.", port=1, addresses=addresses, txt={b"manifest_url": url}, link=link
        )

    def test_link_local_addresses_get_the_zone_of_the_reader(self) -> None:
        found = self.read(b"http://[fe80::9]:1/m", ["fe80::9", "2001:db8::9", "192.0.2.9"])
        assert found.link == "eth0"
        assert found.addresses == ("fe80::9%eth0", "2001:db8::9", "192.0.2.9")
        assert (found.manifest_url, found.host) == ("http://[fe80::9%eth0]:1/m", "fe80::9%eth0")

    @pytest.mark.parametrize("url", [b"http://[fe80::9%25their0]:1/m", b"http://[fe80::9%7]:1/m"])
    def test_a_zone_of_the_announcer_is_replaced(self, url) -> None:
        found = self.read(url, ["fe80::9%7"])
        assert found.manifest_url == "http://[fe80::9%eth0]:1/m"
        assert found.addresses == ("fe80::9%eth0",)

    def test_the_zone_of_a_link_without_a_plain_name_is_its_number(self) -> None:
        assert self.read(b"http://[fe80::9]/", ["fe80::9"], Link(name="ä", index=7, addresses=())).host == "fe80::9%7"

    def test_without_a_link_addresses_get_no_zone(self) -> None:
        found = self.read(b"http://[fe80::9]/", ["fe80::9"], None)
        assert (found.manifest_url, found.addresses, found.link) == ("http://[fe80::9]/", ("fe80::9",), "")

    def test_an_unusable_record_names_its_link(self) -> None:
        assert self.read(b"http://192.0.2.9/", []).link == "eth0"

    @given(st.binary(), st.lists(st.text() | st.ip_addresses().map(str), max_size=4))
    def test_any_record_is_read_with_the_zone_of_the_link_or_refused(self, url, addresses) -> None:
        found = self.read(url, addresses)
        assert isinstance(found, Announcement | UnusableRecord)
        if isinstance(found, Announcement):
            assert all(text.endswith("%eth0") for text in found.addresses if is_link_local_ipv6(text))


def announced(instance="A", link="eth0", version="1"):
    return Announcement(
        instance=instance, agent_id=None, version=version, skills=(), manifest_url="http://a/", host="a", port=1,
        addresses=(), link=link,
    )  # fmt: skip


class TestAnnouncedAgents:
    def test_the_same_name_on_two_links_counts_as_two_agents(self) -> None:
        known = AnnouncedAgents()
        here, there = announced(link="eth0"), announced(link="wlan0", version="2")
        known.seen(here)
        known.seen(there)
        assert known.take() == (Added(here), Added(there))
        known.gone("A", "eth0")
        assert known.take() == (Removed(here),)
        assert known.on("wlan0") == ("A",)

    def test_agents_on_a_lost_link_are_removed(self) -> None:
        known = AnnouncedAgents()
        for one in (announced("A"), announced("B"), announced("A", "wlan0")):
            known.seen(one)
        known.take()
        assert known.lost("eth0")
        assert known.take() == (Removed(announced("A")), Removed(announced("B")))
        assert not known.lost("eth0")

    def test_an_agent_seen_again_on_a_rejoined_link_is_not_removed(self) -> None:
        known = AnnouncedAgents()
        for instance in "ABCD":
            known.seen(announced(instance))
        known.seen(announced("A", "wlan0"))
        known.take()
        known.doubt("eth0")
        known.seen(announced("A"))
        known.seen(announced("B", version="2"))
        known.gone("C", "eth0")
        assert known.drop_doubted("eth0")
        assert known.take() == (Updated(announced("B", version="2")), Removed(announced("C")), Removed(announced("D")))
        assert not known.drop_doubted("eth0")
        assert known.on("wlan0") == ("A",)

    def test_agents_and_unusable_records_are_distinct(self) -> None:
        known = AnnouncedAgents()
        known.seen(announced("A"))
        known.seen(UnusableRecord("B", "why", "eth0"))
        assert known.take() == (Added(announced("A")), Ignored(UnusableRecord("B", "why", "eth0")))
        assert known.agents_on("eth0") == ("A",)
        assert [known.is_agent(name, "eth0") for name in "ABC"] == [True, False, False]
        assert not known.is_agent("A", "wlan0")
