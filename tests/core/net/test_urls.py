"""Reading URLs: their origins, what is shown of them, and which hosts are this machine."""

import pytest
from hypothesis import given, strategies as st

from asap_core.net.outbound import Allowed, UrlRefused, judge_url
from asap_core.net.urls import is_loopback, origin_of, without_credentials


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
    def test_allowed_urls(self, url, origin) -> None:
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
    def test_refused_urls(self, url) -> None:
        judged = judge_url(url)
        assert isinstance(judged, UrlRefused)
        assert str(judged.remedy)
        assert "u:p" not in judged.shown

    def test_what_is_shown_has_no_port_that_nobody_wrote(self) -> None:
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
    def test_hosts_that_are_this_machine(self, host, loopback) -> None:
        assert is_loopback(host) is loopback
