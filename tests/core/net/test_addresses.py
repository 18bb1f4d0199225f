"""Where addresses lead, against the IANA's registries as data and a naive reading of them."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, strategies as st

from asap_core.net import addresses as reach
from asap_core.net.addresses import (
    SPECIAL_RANGES,
    Obstacle,
    ObstacleKind,
    Proximity,
    obstacle,
    on_link,
    proximity_of,
    read_address,
    read_network,
    special_of,
)

# The IANA's special-purpose address registries as of 2025: block, whether it's globally reachable ("-": not said).
IANA = """
0.0.0.0/8 no, 0.0.0.0/32 no, 10.0.0.0/8 no, 100.64.0.0/10 no, 127.0.0.0/8 no, 169.254.0.0/16 no, 172.16.0.0/12 no,
192.0.0.0/24 no, 192.0.0.0/29 no, 192.0.0.8/32 no, 192.0.0.9/32 yes, 192.0.0.10/32 yes, 192.0.0.170/32 no,
192.0.0.171/32 no, 192.0.2.0/24 no, 192.31.196.0/24 yes, 192.52.193.0/24 yes, 192.88.99.0/24 -, 192.88.99.2/32 no,
192.168.0.0/16 no, 192.175.48.0/24 yes, 198.18.0.0/15 no, 198.51.100.0/24 no, 203.0.113.0/24 no, 240.0.0.0/4 no,
255.255.255.255/32 no,
::1/128 no, ::/128 no, ::ffff:0:0/96 no, 64:ff9b::/96 yes, 64:ff9b:1::/48 no, 100::/64 no, 100:0:0:1::/64 no,
2001::/23 no, 2001::/32 -, 2001:1::1/128 yes, 2001:1::2/128 yes, 2001:1::3/128 yes, 2001:2::/48 no, 2001:3::/32 yes,
2001:4:112::/48 yes, 2001:10::/28 -, 2001:20::/28 yes, 2001:30::/28 yes, 2001:db8::/32 no, 2002::/16 -,
2620:4f:8000::/48 yes, 3fff::/20 no, 5f00::/16 no, fc00::/7 no, fe80::/10 no
"""
# What other documents set apart: multicast, IPv4-compatible, site-local.
OTHERS = "224.0.0.0/4 no, ff00::/8 no, ::/96 no, fec0::/10 no"
ROWS: Any = [
    (ip_network(row.split()[0]), row.split()[1]) for text in (IANA, OTHERS) for row in text.split(",") if row.strip()
]
# Globally reachable by the registry, and refused here: services of protocols, and identities that aren't hosts.
NOT_FOR_AGENTS = [ip_network(text) for text in ("192.0.0.0/24", "2001::/23")]
NOBODY = [ip_network(text) for text in ("0.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32", "::/128", "ff00::/8")]
MACHINE = [ip_network(text) for text in ("127.0.0.0/8", "::1/128")]


def is_in(address, networks) -> bool:
    return any(address in network for network in networks)


def naive_zone(address):
    """How near an address is by the registries alone, or "nobody"; what's inside it is left out."""
    if is_in(address, NOBODY):
        return "nobody"
    if is_in(address, MACHINE):
        return Proximity.MACHINE
    if is_in(address, NOT_FOR_AGENTS):
        return Proximity.NETWORK
    holding = [row for row in ROWS if address in row[0]]
    if holding:
        closest = max(holding, key=lambda row: row[0].prefixlen)
        return Proximity.INTERNET if closest[1] == "yes" else Proximity.NETWORK
    outside = address.version == 6 and address not in ip_network("2000::/3")
    return Proximity.NETWORK if outside else Proximity.INTERNET


def our_zone(address):
    special = special_of(address)
    return Proximity.INTERNET if special is None else "nobody" if special.proximity is None else special.proximity


def around(network):
    """The first and last address of a network, and their neighbours outside."""
    kind = IPv4Address if network.version == 4 else IPv6Address
    first, last = int(network[0]), int(network[-1])
    top = 2**32 - 1 if network.version == 4 else 2**128 - 1
    return [kind(number) for number in (first - 1, first, last, last + 1) if 0 <= number <= top]


EDGES = [address for row in ROWS for address in around(row[0])] + [
    address for special in SPECIAL_RANGES for address in around(special.network)
]


@st.composite
def addresses(draw):
    """Any address, those in special ranges more often."""
    network = draw(st.sampled_from([row[0] for row in ROWS] + [ip_network("0.0.0.0/0"), ip_network("2000::/3")]))
    return network[draw(st.integers(0, network.num_addresses - 1))]


def disagreements():
    special_of.cache_clear()
    # An IPv4-mapped address is never looked up: it's read as IPv4.
    return [one for one in EDGES if one not in ip_network("::ffff:0:0/96") and our_zone(one) != naive_zone(one)]


@pytest.fixture
def planted(monkeypatch):
    """Change the table for one test."""
    yield lambda name, value: monkeypatch.setattr(reach, name, value)
    monkeypatch.undo()
    special_of.cache_clear()


class TestTheTable:
    def test_the_table_agrees_with_the_registries_at_every_edge(self) -> None:
        assert disagreements() == []

    @given(addresses())
    def test_the_table_agrees_with_the_registries_for_every_address(self, address) -> None:
        address = read_address(str(address))
        assert our_zone(address) == naive_zone(address)

    @pytest.mark.planted
    @pytest.mark.parametrize(
        "special",
        # The others lie within a wider one of the same effect, and say only what it is.
        [one for one in SPECIAL_RANGES if one.what.split(",")[0] not in ("Teredo", "an ORCHID", "a drone's identity")
         and str(one.network) not in ("2001:2::/48", "fec0::/10", "fe80::/10", "fc00::/7", "5f00::/16", "100::/64",
                                      "100:0:0:1::/64", "64:ff9b:1::/48", "::/96")],
        ids=lambda one: str(one.network),
    )  # fmt: skip
    def test_a_missing_row_is_noticed(self, special, planted) -> None:
        planted("SPECIAL_RANGES", tuple(one for one in SPECIAL_RANGES if one is not special))
        assert disagreements() != []

    @pytest.mark.planted
    def test_a_missing_range_of_the_internet_is_noticed(self, planted) -> None:
        planted("_UNICAST", ip_network("::/0"))
        assert disagreements() != []

    def test_each_row_names_its_source(self) -> None:
        assert all(special.source.startswith("RFC ") for special in SPECIAL_RANGES)
        assert str(special_of(ip_address("10.1.2.3"))) == "private (RFC 1918)"
        assert str(special_of(ip_address("4000::1"))) == "not of the internet's range 2000::/3 (RFC 4291 §2.4)"

    @given(addresses())
    def test_no_address_that_python_calls_private_is_allowed(self, address) -> None:
        address = read_address(str(address))
        if obstacle(address) is None:
            assert not any((address.is_private, address.is_multicast, address.is_link_local, address.is_loopback))


def nat64(inner):
    return IPv6Address(int(IPv6Address("64:ff9b::")) | int(inner))


def local_nat64(inner):
    return IPv6Address(int(IPv6Address("64:ff9b:1::")) | int(inner))


def compatible(inner):
    return IPv6Address(int(inner))


def six_to_four(inner):
    return IPv6Address(int(IPv6Address("2002::")) | int(inner) << 80 | 1)


def teredo_server(inner):
    return IPv6Address(int(IPv6Address("2001::")) | int(inner) << 64 | ~int(IPv4Address("8.8.8.8")) & 0xFFFFFFFF)


def teredo_client(inner):
    return IPv6Address(int(IPv6Address("2001::")) | int(IPv4Address("8.8.8.8")) << 64 | ~int(inner) & 0xFFFFFFFF)


WRAPPERS = [nat64, local_nat64, compatible, six_to_four, teredo_server, teredo_client]
inner_addresses = addresses().filter(lambda address: address.version == 4 and int(address) > 1)


class TestAddressesInsideOthers:
    @given(inner_addresses)
    def test_a_nat64_address_is_judged_as_the_address_inside(self, inner) -> None:
        # Where there's only IPv6 every IPv4 server is reached like that.
        assert obstacle(nat64(inner)) == obstacle(inner)

    @given(inner_addresses)
    def test_a_mapped_address_counts_as_the_address_inside(self, inner) -> None:
        assert read_address(f"::ffff:{inner}") == inner

    @given(inner_addresses, st.sampled_from(WRAPPERS[1:]))
    def test_other_wrapped_addresses_are_not_on_the_internet(self, inner, wrap) -> None:
        assert obstacle(wrap(inner)) is not None

    @given(inner_addresses, st.sampled_from(WRAPPERS))
    def test_allowing_a_wrapping_range_does_not_allow_the_address_inside(self, inner, wrap) -> None:
        found = obstacle(wrap(inner), allowed=[ip_network("::/0")])
        assert (found is None) is (obstacle(inner) is None)
        both = obstacle(wrap(inner), allowed=[ip_network("::/0"), ip_network("0.0.0.0/0")])
        assert (both is None) is (our_zone(inner) != "nobody")

    @given(inner_addresses, st.sampled_from(WRAPPERS))
    def test_a_wrapped_address_is_at_least_as_near_as_the_address_inside(self, inner, wrap) -> None:
        assert proximity_of(wrap(inner)) >= proximity_of(inner)

    def test_proximities_of_wrapped_addresses_are_as_documented(self) -> None:
        assert proximity_of(ip_address("2002:7f00:1::")) is Proximity.MACHINE
        assert proximity_of(ip_address("2002:808:808::")) is Proximity.NETWORK
        assert proximity_of(ip_address("64:ff9b::808:808")) is Proximity.INTERNET
        assert proximity_of(ip_address("224.0.0.1")) is Proximity.NETWORK

    def test_loopback_has_no_address_inside_and_the_next_address_has(self) -> None:
        everything = [ip_network("::/0"), ip_network("0.0.0.0/0")]
        assert obstacle(ip_address("::1"), allowed=everything) is None
        assert str(getattr(obstacle(ip_address("::2"), allowed=everything), "special", "")).startswith("this network")

    @pytest.mark.parametrize(
        ("text", "inside"),
        [
            ("64:ff9b::7f00:1", "127.0.0.0/8"), ("64:ff9b::a9fe:a9fe", "169.254.0.0/16"), ("64:ff9b::", "0.0.0.0/8"),
            ("2002:7f00:1::", "2002::/16"), ("2001:0:7f00:1::", "2001::/32"), ("::7f00:1", "::/96"), ("::2", "::/96"),
            ("::1", "::1/128"), ("::", "::/128"), ("64:ff9b:1::808:808", "64:ff9b:1::/48"),
        ],
    )  # fmt: skip
    def test_an_obstacle_names_its_range(self, text, inside) -> None:
        found = obstacle(ip_address(text))
        assert found is not None
        assert str(found.special.network) == inside


class TestPermissions:
    def test_a_network_is_allowed_by_its_own_entry_only(self) -> None:
        ten = [read_network("10.0.0.0/8")]
        assert obstacle(ip_address("10.9.9.9"), allowed=ten) is None
        assert obstacle(ip_address("172.16.0.1"), allowed=ten) == Obstacle(
            ObstacleKind.NOT_ALLOWED,
            special_of(ip_address("172.16.0.1")),  # type: ignore[arg-type] # it's one
        )

    @given(addresses(), st.sampled_from(Proximity))
    def test_no_permission_opens_an_address_nearer_than_its_source(self, address, near) -> None:
        address = read_address(str(address))
        everything = [ip_network("0.0.0.0/0"), ip_network("::/0")]
        found = obstacle(address, allowed=everything, reach=near, this_machine=True)
        if found is None:
            assert proximity_of(address) <= near
        elif found.kind is ObstacleKind.TOO_NEAR:
            assert proximity_of(address) > near
        else:
            assert found.kind is ObstacleKind.NOBODY

    def test_this_machine_allows_loopback_and_nothing_else(self) -> None:
        assert obstacle(ip_address("127.0.0.1"), this_machine=True) is None
        assert obstacle(ip_address("::1"), this_machine=True) is None
        assert obstacle(ip_address("10.0.0.1"), this_machine=True) is not None
        for near in (Proximity.INTERNET, Proximity.NETWORK):
            found = obstacle(ip_address("127.0.0.1"), this_machine=True, reach=near)
            assert found is not None
            assert found.kind is ObstacleKind.TOO_NEAR

    @pytest.mark.parametrize("text", ["0.0.0.0", "0.1.2.3", "224.0.0.251", "255.255.255.255", "::", "ff02::fb"])
    def test_no_permission_opens_an_address_that_no_host_can_have(self, text) -> None:
        found = obstacle(ip_address(text), allowed=[ip_network("0.0.0.0/0"), ip_network("::/0")], this_machine=True)
        assert found is not None
        assert found.kind is ObstacleKind.NOBODY


class TestReading:
    @given(st.text())
    def test_any_text_is_an_address_or_refused(self, text) -> None:
        read_address(text)

    @pytest.mark.parametrize(
        "text", ["127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "1.2.3.4 ", "[::1]", "１.2.3.4"]
    )
    def test_other_spellings_are_not_addresses(self, text) -> None:
        assert read_address(text) is None

    def test_an_address_with_an_invalid_scope_is_refused(self) -> None:
        assert read_address("fe80::1%" + "e" * 92) is not None
        assert read_address("fe80::1%" + "e" * 93) is None

    def test_a_scope_is_kept(self) -> None:
        assert str(read_address("fe80::1%eth0")) == "fe80::1%eth0"

    @pytest.mark.parametrize("text", ["10.0.0.1/8", "ten", "", "10.0.0.0/33", "secret"])
    def test_an_invalid_network_is_an_error_that_does_not_repeat_it(self, text) -> None:
        with pytest.raises(ValueError, match=r"such as 10\.0\.0\.0/8") as caught:
            read_network(text)
        assert "secret" not in str(caught.value)


class TestTheLink:
    V4 = ["192.0.2.7/24"]
    V6 = ["fe80::7/64", "2001:db8:1::7/64"]

    @pytest.mark.parametrize(
        ("address", "networks", "scopes", "near"),
        [
            ("192.0.2.9", V4, [], True),
            ("192.0.3.9", V4, [], False),
            ("192.0.2.0", V4, [], False),
            ("192.0.2.255", V4, [], False),
            ("192.0.2.4", ["192.0.2.5/30"], [], False),
            ("192.0.2.6", ["192.0.2.7/31"], [], True),
            ("192.0.2.7", ["192.0.2.7/32"], [], True),
            # Routed, where the interface has no such address: a cloud's metadata service.
            ("169.254.169.254", V4, [], False),
            ("169.254.1.1", ["169.254.9.9/16"], [], True),
            ("fe80::9", V6, [], True),
            ("fe80::9%eth0", V6, ["eth0", "2"], True),
            ("fe80::9%2", V6, ["eth0", "2"], True),
            ("fe80::9%eth1", V6, ["eth0", "2"], False),
            ("fe80::9%eth0", V6, [], False),
            ("2001:db8:1::9", V6, [], True),
            ("2001:db8:1::", V6, [], True),
            ("2001:db8:2::9", V6, [], False),
            ("127.0.0.1", V4, [], False),
            ("127.0.0.1", ["127.0.0.1/8"], [], True),
            ("::1", ["::1/128"], [], True),
            ("::ffff:192.0.2.9", V4, [], True),
            ("224.0.0.251", ["0.0.0.0/0"], [], False),
            ("0.0.0.0", ["0.0.0.0/0"], [], False),
            ("ff02::fb", ["::/0"], [], False),
            ("printer.local", V4, [], False),
            ("", V4, [], False),
            ("192.0.2.9", [], [], False),
        ],
    )
    def test_an_address_on_the_link_is_recognised(self, address, networks, scopes, near) -> None:
        assert on_link(address, networks, scopes=scopes) is near

    @given(st.text())
    def test_any_text_is_judged(self, text) -> None:
        assert on_link(text, self.V4 + self.V6) in (True, False)

    @given(addresses(), st.integers(8, 30))
    def test_an_address_on_the_link_is_in_a_network_of_the_interface_or_link_local(self, address, length) -> None:
        networks = [f"192.0.2.7/{length}", "2001:db8:1::7/64"]
        if on_link(str(address), networks):
            inside = any(read_address(str(address)) in ip_network(network, strict=False) for network in networks)
            assert inside or address in ip_network("fe80::/10")
