"""Zones of link-local addresses: in text and in URLs."""

import pytest
from hypothesis import given, strategies as st

from asap_core.net.addresses import is_link_local_ipv6, read_without_zone, zone_of
from asap_core.net.ipv6_zones import (
    canonical,
    in_zone,
    in_zone_of,
    without_zone,
)


class TestZones:
    @pytest.mark.parametrize(
        ("url", "zone", "zoned"),
        [
            ("http://[fe80::1]:8000/m", "eth0", "http://[fe80::1%eth0]:8000/m"),
            ("http://[fe80::1%25wlan0]:8000/m", "eth0", "http://[fe80::1%eth0]:8000/m"),
            ("http://[fe80::1%wlan0]/?%25", "eth0", "http://[fe80::1%eth0]/?%25"),
            ("http://[fe80::1%25]/", "", "http://[fe80::1]/"),
            ("http://[fe80::1%252]/", "", "http://[fe80::1]/"),
            ("https://[FE80::1]", "2", "https://[FE80::1%2]"),
            ("http://[2001:db8::1]/", "eth0", "http://[2001:db8::1]/"),
            ("http://192.0.2.1/", "eth0", "http://192.0.2.1/"),
            ("http://169.254.1.1/", "eth0", "http://169.254.1.1/"),
            ("http://a.local/[fe80::1]", "eth0", "http://a.local/[fe80::1]"),
            ("http://[fe80::1", "eth0", "http://[fe80::1"),
            ("http://[:]/", "eth0", "http://[:]/"),
        ],
    )
    def test_a_url_on_the_link_is_put_into_its_zone(self, url, zone, zoned) -> None:
        assert in_zone(url, zone) == zoned
        assert canonical(zoned) == zoned

    def test_both_spellings_are_one(self) -> None:
        assert canonical("http://[fe80::1%25eth0]:8000/m") == "http://[fe80::1%eth0]:8000/m"
        assert canonical("http://[fe80::1]/%25") == "http://[fe80::1]/%25"
        assert canonical("http://[2001:db8::1%25eth0]/") == "http://[2001:db8::1%25eth0]/"
        assert canonical("?") == "?"

    @given(st.text(), st.text())
    def test_any_text_is_a_decision(self, url, zone) -> None:
        assert in_zone(url, zone) == url or "[" in url
        assert without_zone(without_zone(url)) == without_zone(url)

    @given(st.ip_addresses(v=6), st.sampled_from(["eth0", "2", "br-1"]), st.sampled_from(["%", "%25"]))
    def test_what_is_put_in_comes_out(self, address, zone, mark) -> None:
        plain = f"http://[{address}]:1/m"
        assert without_zone(in_zone(plain, zone)) == plain
        if address.is_link_local:
            assert in_zone(plain.replace("]", f"{mark}{zone}]"), zone) == f"http://[{address}%{zone}]:1/m"

    def test_a_document_means_addresses_in_the_zone_it_came_from(self) -> None:
        assert in_zone_of("http://[fe80::1]/asap", "http://[fe80::1%eth0]:1") == "http://[fe80::1%eth0]/asap"
        assert in_zone_of("http://[fe80::1%lan]/asap", "http://[fe80::1%eth0]:1") == "http://[fe80::1%eth0]/asap"
        for source in ("http://[fe80::1]:1", "http://[2001:db8::1%eth0]", "http://192.0.2.1", ""):
            assert in_zone_of("http://[fe80::1]/asap", source) == "http://[fe80::1]/asap"
        assert in_zone_of("https://a.example/asap", "http://[fe80::1%eth0]:1") == "https://a.example/asap"

    def test_what_an_address_is(self) -> None:
        assert str(read_without_zone("fe80::1%eth0")) == "fe80::1"
        assert str(read_without_zone("::ffff:192.0.2.1")) == "192.0.2.1"
        assert read_without_zone("a") is None
        assert zone_of("fe80::1%eth0") == "eth0"
        assert [is_link_local_ipv6(text) for text in ("fe80::1", "169.254.0.1", "::1", "a")] == [
            True,
            False,
            False,
            False,
        ]
