"""Reading URLs: origins, zones, how they are shown, hosts of this machine, and published URLs."""

import pytest
from hypothesis import given, strategies as st

from asap_core.net.addresses import is_link_local_ipv6, read_without_zone, zone_of
from asap_core.net.outbound import Allowed, UrlRefused, judge_url
from asap_core.net.urls import (
    domain_of,
    in_zone,
    in_zone_of,
    is_loopback,
    leads_elsewhere,
    origin_of,
    with_plain_zone,
    without_credentials,
    without_zone,
)


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "origin"),
        [
            ("https://a.example", "https://a.example:443"),
            ("https://A.example:8443/x?y#z", "https://a.example:8443"),
            ("http://localhost:1/x", "http://localhost:1"),
            ("http://127.9.9.9", "http://127.9.9.9:80"),
            ("http://[::1]:5", "http://[::1]:5"),
            ("http://x.localhost", "http://x.localhost:80"),
            ("http://lan.example", "http://lan.example:80"),
        ],
    )
    def test_a_valid_url_is_allowed_and_has_an_origin(self, url, origin) -> None:
        judged = judge_url(url, allow_http=["lan.example"])
        assert isinstance(judged, Allowed)
        assert judged.origin == origin == origin_of(url)
        assert "#" not in judged.url

    @pytest.mark.parametrize(
        "url",
        [
            "http://a.example", "ftp://a", "a.example", "", "https://", "https://u:p@a", "https://u@a", "https://a:x",
            "https://a:0", "https://a:99999", "https://[::1", "https://a b", "https://a\n", "https://a\\b",
            "https://" + "a" * 9000, "http://127.0.0.1.example", "file:///etc/passwd", "javascript:x", "//a",
            "http://[::1]evil.example/", "https://[v1.x]/", "https://☃.example/", "https://１２７.0.0.1/", "https://a..b/",
            "https://.", "https://.a", "https://" + "a" * 64 + ".example", "https://-a.example",
            "https://::1/", "https://[]/",
        ],
    )  # fmt: skip
    def test_an_invalid_url_is_refused_with_a_remedy(self, url) -> None:
        judged = judge_url(url)
        assert isinstance(judged, UrlRefused)
        assert str(judged.remedy)
        assert "u:p" not in judged.shown

    def test_a_shown_url_has_only_the_port_of_its_scheme(self) -> None:
        assert without_credentials("ftp://u:p@x/y?z") == "ftp://x/y"
        assert without_credentials("https://x") == "https://x:443"

    @given(st.text())
    def test_any_text_is_judged(self, text) -> None:
        assert isinstance(judge_url(text), Allowed | UrlRefused)
        without_credentials(text)
        origin_of(text)

    def test_only_web_urls_have_an_origin(self) -> None:
        assert origin_of("ftp://a") is None
        assert origin_of("nonsense") is None

    @pytest.mark.parametrize(
        ("host", "loopback"),
        [("localhost", True), ("127.0.0.1", True), ("::1", True), ("10.0.0.1", False), ("x", False)],
    )
    def test_hosts_of_this_machine_are_recognised(self, host, loopback) -> None:
        assert is_loopback(host) is loopback

    @pytest.mark.parametrize(
        ("host", "domain"),
        [
            ("a.b.Agent.example.", "agent.example"),
            ("agent.example", "agent.example"),
            ("localhost", "localhost"),
            ("10.0.0.5", "0.5"),
        ],
    )
    def test_names_share_a_domain_by_their_last_two_labels(self, host, domain) -> None:
        assert domain_of(host) == domain


class TestPublishedUrls:
    @pytest.mark.parametrize(
        ("url", "place", "elsewhere"),
        [
            ("http://a:8000/asap", {"port": 8000}, False),
            ("http://a:8000/asap", {"port": 8001}, True),
            ("http://a/asap", {"port": 80}, False),
            ("https://a/asap", {"port": 443}, False),
            ("https://a/asap", {"port": 80}, True),
            ("https://a:8000/asap", {"port": 8000}, False),
            ("https://a:8000/asap", {"port": 8000, "scheme": "http"}, True),
            ("https://a:8000/asap", {"port": 8000, "scheme": "https"}, False),
            ("http://a:8000/asap/", {"port": 8000, "path": "/asap"}, False),
            ("http://a:8000/", {"port": 8000, "path": "/asap"}, True),
            ("http://a:8000/x/asap?y", {"port": 8000, "path": "/asap"}, True),
            ("http://a:8000/x/asap", {"port": 8000}, False),
        ],
    )
    def test_port_scheme_and_path_decide_if_a_url_leads_elsewhere(self, url, place, elsewhere) -> None:
        assert leads_elsewhere(url, **place) is elsewhere


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
    def test_a_link_local_url_gets_the_zone_of_its_link(self, url, zone, zoned) -> None:
        assert in_zone(url, zone) == zoned
        assert with_plain_zone(zoned) == zoned

    def test_both_spellings_of_a_zone_are_equal(self) -> None:
        assert with_plain_zone("http://[fe80::1%25eth0]:8000/m") == "http://[fe80::1%eth0]:8000/m"
        assert with_plain_zone("http://[fe80::1]/%25") == "http://[fe80::1]/%25"
        assert with_plain_zone("http://[2001:db8::1%25eth0]/") == "http://[2001:db8::1%25eth0]/"
        assert with_plain_zone("?") == "?"

    @given(st.text(), st.text())
    def test_any_text_gets_a_zone_or_stays_unchanged(self, url, zone) -> None:
        assert in_zone(url, zone) == url or "[" in url
        assert without_zone(without_zone(url)) == without_zone(url)

    @given(st.ip_addresses(v=6), st.sampled_from(["eth0", "2", "br-1"]), st.sampled_from(["%", "%25"]))
    def test_an_added_zone_can_be_removed(self, address, zone, mark) -> None:
        plain = f"http://[{address}]:1/m"
        assert without_zone(in_zone(plain, zone)) == plain
        if address.is_link_local:
            assert in_zone(plain.replace("]", f"{mark}{zone}]"), zone) == f"http://[{address}%{zone}]:1/m"

    def test_addresses_in_a_document_get_the_zone_of_its_source(self) -> None:
        assert in_zone_of("http://[fe80::1]/asap", "http://[fe80::1%eth0]:1") == "http://[fe80::1%eth0]/asap"
        assert in_zone_of("http://[fe80::1%lan]/asap", "http://[fe80::1%eth0]:1") == "http://[fe80::1%eth0]/asap"
        for source in ("http://[fe80::1]:1", "http://[2001:db8::1%eth0]", "http://192.0.2.1", ""):
            assert in_zone_of("http://[fe80::1]/asap", source) == "http://[fe80::1]/asap"
        assert in_zone_of("https://a.example/asap", "http://[fe80::1%eth0]:1") == "https://a.example/asap"

    def test_addresses_and_zones_are_read(self) -> None:
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
