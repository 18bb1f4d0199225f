"""The outbound policy: URLs by their text, names by their addresses, and which source may name which URL."""

from typing import Any

import pytest
from hypothesis import given, strategies as st

from asap_core.net.addresses import Proximity, obstacle, proximity_of, read_address
from asap_core.net.outbound import AddressRefused, Allowed, Dial, OutboundPolicy, Resolve, UrlRefused
from asap_core.net.urls import authority_of, host_in, meant_base, normal, origin_of, without_credentials

PLAIN = OutboundPolicy()
EVERYWHERE = OutboundPolicy(allow_networks=["0.0.0.0/0", "::/0"])


def refusal(judged):
    assert isinstance(judged, UrlRefused | AddressRefused)
    return f"{judged.reason}; {judged.remedy}"


def allowed(judged):
    assert isinstance(judged, Allowed), judged
    return judged


class TestUrls:
    @pytest.mark.parametrize(
        ("given", "base"),
        [
            ("https://a.example/asap", "https://a.example"),
            ("https://a.example/x/asap/", "https://a.example/x"),
            ("https://a.example/asap/stream", "https://a.example"),
            ("https://a.example:8443/.well-known/asap/manifest.json", "https://a.example:8443"),
            ("https://a.example/.well-known", "https://a.example"),
            ("https://u:p@a.example/asap", "https://a.example"),
            ("https://a.example/health", "https://a.example"),
            ("https://a.example", None),
            ("https://a.example/asapx", None),
            ("https://a.example/asap/x/y", None),
            ("nonsense", None),
        ],
    )
    def test_the_base_url_is_found_in_a_manifest_url(self, given, base) -> None:
        assert meant_base(f"{given}/.well-known/asap/manifest.json") == base
        assert meant_base("https://a.example/asap") is None

    @pytest.mark.parametrize(
        ("url", "one"),
        [
            ("HTTPS://A.Example:443", "https://a.example/"),
            ("https://a.example:8443/X?Y#z", "https://a.example:8443/X?Y"),
            ("http://[FE80::1%Eth0]:80/", "http://[fe80::1%Eth0]/"),
            ("http://A@b", "http://A@b"),
            ("ftp://A.example", "ftp://a.example/"),
            ("nonsense", "nonsense"),
        ],
    )
    def test_urls_that_differ_in_spelling_are_equal(self, url, one) -> None:
        assert normal(url) == normal(normal(url)) == one
        assert origin_of(normal(url)) == origin_of(url)

    @given(st.text(max_size=40) | st.text(max_size=20).map(lambda text: f"https://{text}"))
    def test_any_url_has_one_normal_form(self, url) -> None:
        assert normal(normal(url)) == normal(url)
        assert origin_of(normal(url)) == origin_of(url)
        assert type(PLAIN.judge(normal(url))) is type(PLAIN.judge(url))

    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("https://10.0.0.5/", "it is private (RFC 1918); allow it with allow_networks=['10.0.0.0/8']"),
            (
                "https://169.254.169.254/latest",
                "link-local (RFC 3927); allow it with allow_networks=['169.254.0.0/16']",
            ),
            ("https://[fd00::5]/", "unique local (RFC 4193); allow it with allow_networks=['fc00::/7']"),
            ("https://[::ffff:10.0.0.5]/", "private (RFC 1918)"),
            ("https://[::ffff:127.0.0.1]/", "this machine (RFC 1122 §3.2.1.3); name this machine localhost, or allow"),
            ("https://[64:ff9b::7f00:1]/", "this machine (RFC 1122 §3.2.1.3)"),
            ("https://[fec0::1]/", "site-local, deprecated (RFC 3879)"),
            ("https://100.64.0.1/", "shared behind a carrier's NAT (RFC 6598)"),
            ("https://0.0.0.0/", "nothing allows it"),
            ("https://[ff02::1]/", "multicast (RFC 4291 §2.7); nothing allows it"),
            ("https://a.example:25/", "port 25 is another service's; allow it with allow_ports=[25]"),
            # Where it is comes before how: https to there changes nothing.
            ("http://169.254.169.254/", "it is link-local (RFC 3927); allow it with allow_networks"),
            ("http://224.0.0.1/", "multicast (RFC 5771); nothing allows it"),
            ("127.0.0.1:18000", "its scheme is missing; expected http://127.0.0.1:18000, if this is intended"),
            (
                "localhost:8000/asap?k=s3cret",
                "its scheme is missing; expected http://localhost:8000, if this is intended",
            ),
            ("u:p@Agent.example/x", "its scheme is missing; expected https://Agent.example, if this is intended"),
            ("[::1]:8000", "its scheme is missing; expected http://[::1]:8000, if this is intended"),
            (
                "file:///etc/registry.json",
                "it's a file's; expected https or http; where a file will do, its path without",
            ),
            ("FILE://host/x", "it's a file's"),
            ("http:/a.example", "it can't be read as a URL; expected one such as https://agent.example"),
            ("urn:asap:agent:a", "it can't be read as a URL; expected one such as https://agent.example"),
            ("", "it can't be read as a URL; expected one such as https://agent.example"),
            ("http://a.example/", "use https, or allow it with allow_http=['a.example']"),
        ],
    )
    def test_a_refusal_says_why_and_which_option_allows_the_url(self, url, says) -> None:
        assert says in refusal(PLAIN.judge(url))

    @pytest.mark.parametrize(
        "host",
        ["127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.0.0.1.", "1.2.3", "a.0x", "256.1.1.1"],
    )
    def test_an_address_in_another_spelling_is_no_host(self, host) -> None:
        assert "can't be read as a URL" in refusal(EVERYWHERE.judge(f"https://{host}/"))

    @pytest.mark.parametrize(
        "url",
        [
            "https://8.8.8.8", "https://[2606:4700::1]", "https://a.example:8443", "http://127.0.0.1:9",
            "http://LOCALHOST.:80", "http://a.b.localhost", "http://[::1]:25",
        ],
    )  # fmt: skip
    def test_public_https_urls_and_this_machine_need_no_permission(self, url) -> None:
        judged = allowed(PLAIN.judge(url))
        assert judged.host
        assert judged.host in judged.origin

    @pytest.mark.parametrize(
        "url",
        [
            "https://a.example/x y", "https://a.example/x\\y", "https://a.example/" + "x" * 8_000, "https://[1:2]/",
            "https://[:::]/", "https://[1.2.3.4]:443x/",
        ],
    )  # fmt: skip
    def test_an_ambiguous_url_is_refused(self, url) -> None:
        assert "can't be read as a URL" in refusal(EVERYWHERE.judge(url))

    def test_a_url_of_8000_characters_is_accepted(self) -> None:
        allowed(PLAIN.judge("https://a.example/" + "x" * 7_982))
        assert "can't be read" in refusal(PLAIN.judge("https://a.example/" + "x" * 7_983))

    @pytest.mark.parametrize(("port", "goes"), [(1, False), (79, False), (80, True), (443, True), (1023, False),
                                                (1024, True), (65_535, True)])  # fmt: skip
    def test_ports_of_other_services_are_refused(self, port, goes) -> None:
        assert isinstance(PLAIN.judge(f"https://a.example:{port}"), Allowed) is goes
        allowed(OutboundPolicy(allow_ports=[1, 65_535, port]).judge(f"https://a.example:{port}"))
        assert "private" in refusal(PLAIN.judge(f"https://10.0.0.1:{port}"))

    def test_each_option_allows_exactly_its_own_entries(self) -> None:
        policy = OutboundPolicy(allow_http=["A.lan"], allow_networks=["10.0.0.0/8", "::1"], allow_ports=[81])
        for url in ("http://a.lan:81", "https://10.0.0.5", "https://a.example:81"):
            allowed(policy.judge(url))
        for url in ("http://b.lan", "https://192.168.0.1", "https://a.example:82"):
            refusal(policy.judge(url))

    @pytest.mark.parametrize(
        "options",
        [
            {"allow_http": "a.example"}, {"allow_http": ["a.lan", ""]}, {"allow_networks": "10.0.0.0/8"},
            {"allow_networks": ["10.0.0.1/8"]},
            {"allow_ports": [0]}, {"allow_ports": [65_536]}, {"allow_endpoints": ["a.example"]}, {"redirects": 3},
            {"redirects": -1},
        ],
    )  # fmt: skip
    def test_an_invalid_option_is_an_error(self, options) -> None:
        with pytest.raises(ValueError, match="expected"):
            OutboundPolicy(**options)

    def test_a_url_announced_on_the_link_needs_no_tls_and_no_allowed_network(self) -> None:
        there = ("192.168.1.9",)
        found = allowed(PLAIN.judge("http://192.168.1.9:8000/", reach=Proximity.INTERNET, announced=there))
        assert (found.encrypted, found.addresses) == (False, there)
        assert "credentials" in refusal(PLAIN.judge("http://u:p@192.168.1.9:8000/", announced=there))
        assert allowed(PLAIN.judge("https://a.example/")).addresses == ()

    @pytest.mark.parametrize(
        ("url", "near", "goes"),
        [
            ("http://localhost:9", Proximity.MACHINE, True), ("http://localhost:9", Proximity.NETWORK, False),
            ("http://127.0.0.1:9", Proximity.INTERNET, False), ("https://10.0.0.1", Proximity.NETWORK, True),
            ("https://10.0.0.1", Proximity.INTERNET, False), ("https://8.8.8.8", Proximity.INTERNET, True),
            ("https://a.example", Proximity.INTERNET, True),
        ],
    )  # fmt: skip
    def test_a_url_leads_no_nearer_than_its_source(self, url, near, goes) -> None:
        judged = EVERYWHERE.judge(url, reach=near)
        assert isinstance(judged, Allowed) is goes
        if not goes:
            assert "allow_endpoints" in refusal(judged)
            assert refusal(judged).startswith("it is ")

    @given(st.text(), st.sampled_from(Proximity))
    def test_any_text_is_judged(self, text, near) -> None:
        assert isinstance(PLAIN.judge(text, reach=near), Allowed | UrlRefused)
        assert isinstance(PLAIN.judge(f"https://{text}/", reach=near), Allowed | UrlRefused)
        assert isinstance(host_in(authority_of(text) or ""), str)

    @given(
        st.sampled_from(["ftp", "http", "https"]),
        st.sampled_from(["a.example", "10.0.0.1", "[::1]", "x y", "127.1"]),
        st.integers(0, 70_000),
        st.sampled_from(["", "/p", "//p"]),
    )
    def test_no_refusal_shows_credentials(self, scheme, host, port, path) -> None:
        judged = PLAIN.judge(f"{scheme}://hunter2:hunter3@{host}:{port}{path}?hunter4=1#hunter5")
        assert isinstance(judged, UrlRefused)
        assert "hunter" not in str(judged)

    @pytest.mark.parametrize("redirects", [0, 1, 2])
    def test_at_most_two_redirects_are_followed(self, redirects) -> None:
        assert OutboundPolicy(redirects=redirects).redirects == redirects


class TestManifestsEndpoints:
    def test_an_endpoint_is_on_the_origin_of_its_manifest_or_an_allowed_one(self) -> None:
        endpoint = allowed(PLAIN.judge("https://a.example/asap"))
        assert PLAIN.judge_endpoint(endpoint, came_from="https://a.example:443") is None
        assert "allow_endpoints=['https://a.example:443']" in refusal(
            PLAIN.judge_endpoint(endpoint, came_from="https://b.example:443")
        )
        policy = OutboundPolicy(allow_endpoints=["https://a.example"])
        assert policy.judge_endpoint(endpoint, came_from="https://b.example:443") is None


class TestRedirects:
    ASKED = allowed(PLAIN.judge("https://a.example/x?token=hunter2"))
    TWO = OutboundPolicy(redirects=2)

    def test_redirects_are_not_followed_unless_allowed(self) -> None:
        says = refusal(PLAIN.judge_redirect(self.ASKED, "/y?token=hunter2", followed=0))
        assert says == (
            "it redirects to https://a.example:443/y, and redirects aren't followed; allow it with redirects=2"
        )

    @pytest.mark.parametrize("location", ["/y", "y", "https://a.example/y", "https://a.example:443/y", "//a.example/y"])
    def test_redirects_within_their_origin_are_followed_if_allowed(self, location) -> None:
        assert allowed(self.TWO.judge_redirect(self.ASKED, location, followed=1)).url.endswith("/y")
        assert "no more than 2" in refusal(self.TWO.judge_redirect(self.ASKED, location, followed=2))
        assert "by a POST" in refusal(self.TWO.judge_redirect(self.ASKED, location, followed=0, method="POST"))

    @pytest.mark.parametrize(
        ("location", "where"),
        [
            ("http://a.example/y", "http://a.example:80/y"),
            ("https://a.example:8443/y", "https://a.example:8443/y"),
            ("https://u:hunter2@b.example/y?hunter2", "https://b.example:443/y"),
            ("http://169.254.169.254/latest", "http://169.254.169.254:80/latest"),
            ("file:///etc/passwd", "what isn't a web URL"),
            ("https://[::1", "what isn't a web URL"),
            ("javascript:hunter2", "what isn't a web URL"),
        ],
    )
    def test_redirects_to_another_origin_are_never_followed_and_the_error_names_it(self, location, where) -> None:
        says = refusal(self.TWO.judge_redirect(self.ASKED, location, followed=0))
        assert f"it redirects to {where}; redirects aren't followed to another origin" in says
        assert "hunter2" not in says

    def test_a_redirect_keeps_the_announced_addresses(self) -> None:
        near = allowed(self.TWO.judge("http://192.168.1.9:8000/x", announced=("192.168.1.9",)))
        after = allowed(self.TWO.judge_redirect(near, "/y", followed=0))
        assert (after.url, after.addresses) == ("http://192.168.1.9:8000/y", ("192.168.1.9",))

    def test_redirects_with_credentials_are_not_followed(self) -> None:
        says = refusal(self.TWO.judge_redirect(self.ASKED, "https://u:hunter2@a.example/", followed=0))
        assert "it carries credentials" in says
        assert "hunter2" not in says

    def test_a_long_redirect_target_is_shown_in_part(self) -> None:
        judged = PLAIN.judge_redirect(self.ASKED, "/" + "y" * 5000, followed=0)
        assert len(refusal(judged)) < 400

    @given(st.text())
    def test_any_location_is_judged(self, location) -> None:
        judged = self.TWO.judge_redirect(self.ASKED, location, followed=0)
        assert isinstance(judged, UrlRefused) or judged.origin == self.ASKED.origin


ANSWERS = st.sampled_from(
    ["8.8.8.8", "2606:4700::1", "64:ff9b::808:808", "10.0.0.5", "127.0.0.1", "::1", "fe80::1%eth0", "fd00::1",
     "0.0.0.0", "::ffff:10.0.0.5", "::ffff:8.8.8.8", "100.64.0.1", "not an address"]
)  # fmt: skip


class TestAddresses:
    @pytest.mark.parametrize("host", ["localhost", "LocalHost.", "a.b.localhost"])
    def test_names_of_this_machine_are_not_resolved(self, host) -> None:
        assert PLAIN.destination(host) == Dial(("127.0.0.1", "::1"))
        assert PLAIN.choose(host, ("127.0.0.1", "::1"), port=80) == Dial(("127.0.0.1", "::1"))

    def test_address_literals_are_not_resolved(self) -> None:
        assert PLAIN.destination("8.8.8.8") == Dial(("8.8.8.8",))
        assert PLAIN.destination("a.example") == Resolve("a.example")

    @pytest.mark.parametrize(
        ("answers", "says"),
        [
            (["10.0.0.5"], "a.example resolves to 10.0.0.5, which is private (RFC 1918); allow it with allow_networks"),
            (["8.8.8.8", "10.0.0.5"], "a.example resolves to 10.0.0.5, which is private"),
            (["127.0.0.1"], "which is this machine (RFC 1122 §3.2.1.3); name this machine localhost, or allow it with"),
            (["::1"], "resolves to ::1, which is this machine (RFC 4291 §2.5.3)"),
            (["::ffff:169.254.169.254"], "resolves to 169.254.169.254, which is link-local"),
            (["64:ff9b::a00:5"], "resolves to 64:ff9b::a00:5, which is private"),
            (["hunter2"], "resolves to what isn't an address"),
        ],
    )
    def test_one_refused_address_refuses_the_name(self, answers, says) -> None:
        refused = refusal(PLAIN.choose("a.example", answers, port=443))
        assert says in refused
        assert "hunter2" not in refused

    @given(st.lists(ANSWERS), st.sampled_from(["a.example", "localhost"]), st.sampled_from(Proximity),
           st.sampled_from([PLAIN, EVERYWHERE, OutboundPolicy(allow_networks=["10.0.0.0/8"])]))  # fmt: skip
    def test_only_answered_and_allowed_addresses_are_dialed(self, answers, host, near, policy) -> None:
        match policy.choose(host, answers, port=443, reach=near):
            case Dial(addresses):
                read: Any = [read_address(address) for address in addresses]
                assert set(read) <= {read_address(answer) for answer in answers}
                assert all(proximity_of(address) <= near for address in read)
                options: Any = {"allowed": policy.allow_networks, "this_machine": host == "localhost"}
                assert all(obstacle(address, **options) is None for address in read)
                assert len(addresses) == len(set(addresses)) == len(set(map(read_address, answers)))
            case AddressRefused(reason, remedy):
                assert reason
                assert str(remedy)

    def test_at_most_eight_addresses_are_tried_and_all_are_judged(self) -> None:
        many = [f"8.8.8.{number}" for number in range(20)]
        chosen = PLAIN.choose("a.example", many, port=443)
        assert isinstance(chosen, Dial)
        assert len(chosen.addresses) == 8
        assert "10.0.0.1" in refusal(PLAIN.choose("a.example", [*many, "10.0.0.1"], port=443))

    def test_a_name_from_a_registry_does_not_lead_into_an_allowed_network(self) -> None:
        policy = OutboundPolicy(allow_networks=["10.0.0.0/8"])
        assert policy.choose("a.example", ["10.0.0.5"], port=443) == Dial(("10.0.0.5",))
        says = refusal(policy.choose("a.example", ["10.0.0.5"], port=443, reach=Proximity.INTERNET))
        assert (
            "a document from a more distant network may not name it; allow it with allow_endpoints=['https://a.example:443']"
            in says
        )

    def test_the_remedy_names_the_origin_of_the_url(self) -> None:
        policy = OutboundPolicy(allow_networks=["10.0.0.0/8"])
        says = refusal(policy.choose("a.lan", ["10.0.0.5"], port=80, reach=Proximity.INTERNET, scheme="http"))
        assert "allow it with allow_endpoints=['http://a.lan:80']" in says

    def test_the_remedy_for_an_address_literal_names_its_origin(self) -> None:
        says = refusal(PLAIN.choose("fd00::1", ["fd00::1"], port=8443, reach=Proximity.INTERNET))
        assert "allow_endpoints=['https://[fd00::1]:8443']" in says


def test_a_shown_url_has_no_credentials_and_no_query() -> None:
    assert without_credentials("https://u:p@a.example/x?y#z") == "https://a.example:443/x"
