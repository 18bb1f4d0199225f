"""Which proxy is used: what names it, how its URL is read, and what each kind of entry in `no_proxy` names."""

import pytest

from asap_core.net.environment_proxies import Proxies, ProxyUrl, UnusableProxy
from asap_core.net.outbound import Dial

URL = "http://proxy.example:3128"
PROXY = ProxyUrl("all_proxy", "http", "proxy.example", 3128)


def read(text: str) -> ProxyUrl | UnusableProxy | None:
    return Proxies({"all": text}).proxy_for("https", "agent.example", 443)


@pytest.mark.parametrize(
    ("urls", "name"),
    [
        ({}, None),
        ({"ftp": URL}, None),
        ({"http": URL}, None),
        ({"https": "", "all": ""}, None),
        ({"all": URL}, "all"),
        ({"https": "", "all": URL}, "all"),
        ({"https": URL, "all": "nonsense://"}, "https"),
    ],
)
def test_the_proxy_of_the_scheme_goes_before_that_of_all(urls: dict[str, str], name: str | None) -> None:
    found = Proxies(urls).proxy_for("https", "agent.example", 443)
    assert found == (None if name is None else ProxyUrl(f"{name}_proxy", "http", "proxy.example", 3128))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "a.localhost"])
def test_this_machine_needs_no_proxy(host: str) -> None:
    assert Proxies({"all": URL}).proxy_for("http", host, 8000) is None


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port", "login"),
    [
        ("proxy.example", "http", "proxy.example", 80, None),
        ("proxy.example:3128", "http", "proxy.example", 3128, None),
        (" HTTP://Proxy.Example:3128/x?y#z ", "http", "proxy.example", 3128, None),
        ("https://proxy.example", "https", "proxy.example", 443, None),
        ("socks5://proxy.example", "socks5", "proxy.example", 1080, None),
        ("socks5h://proxy.example", "socks5h", "proxy.example", 1080, None),
        ("socks5h://proxy.example:1", "socks5h", "proxy.example", 1, None),
        ("http://[fd00::1]:3128", "http", "fd00::1", 3128, None),
        ("http://u:p@proxy.example", "http", "proxy.example", 80, ("u", "p")),
        ("http://us%40er:p%3A@proxy.example", "http", "proxy.example", 80, ("us@er", "p:")),
        (r"http://DOMAIN\user:p@x:y@proxy.example", "http", "proxy.example", 80, (r"DOMAIN\user", "p@x:y")),
        ("u@proxy.example", "http", "proxy.example", 80, ("u", "")),
    ],
)
def test_a_proxy_may_be_written_in_several_ways(
    text: str, scheme: str, host: str, port: int, login: tuple[str, str] | None
) -> None:
    found = read(text)
    assert found == ProxyUrl("all_proxy", scheme, host, port, login)
    assert isinstance(found, ProxyUrl)
    assert found.speaks_socks is scheme.startswith("socks")
    assert "p@x" not in repr(found)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ftp://u:hunter2@proxy.example", "its scheme isn't http, https or socks5"),
        ("socks4://u:hunter2@proxy.example", "its scheme isn't http, https or socks5"),
        *(
            (text, "it isn't a URL with a host and a valid port")
            for text in (
                "http://u:hunter2@proxy.example:99999", "http://u:hunter2@proxy.example:x", "http://hunter2.example:0",
                "http://u:hunter2@", "//hunter2", "http://[::1/hunter2", "http://xn--☃hunter2 :1", "http://hunter2:p w",
            )
        ),
    ],
)  # fmt: skip
def test_an_unusable_proxy_is_named_without_its_url(text: str, why: str) -> None:
    found = read(text)
    assert isinstance(found, UnusableProxy)
    assert found.reason == f"all_proxy names a proxy that can't be used: {why}"
    assert str(found.remedy).startswith("set it to a URL such as http://proxy.example:3128, or list this host in")
    assert "hunter2" not in repr(found)


@pytest.mark.parametrize(
    ("host", "name", "addresses"),
    [
        ("proxy.example", "proxy.example", ("10.0.0.5", "127.0.0.1")),
        ("localhost", None, ("127.0.0.1", "::1")),
        ("10.0.0.9", None, ("10.0.0.9",)),
    ],
)
def test_a_proxy_may_be_anywhere(host: str, name: str | None, addresses: tuple[str, ...]) -> None:
    found = read(host)
    assert isinstance(found, ProxyUrl)
    assert (found.name, found.choose(["10.0.0.5", "127.0.0.1"])) == (name, Dial(addresses))


def test_the_urls_of_proxies_are_not_shown() -> None:
    assert "hunter2" not in repr(Proxies({"all": "http://u:hunter2@proxy.example"}))


@pytest.mark.parametrize(
    ("host", "no_proxy", "exempt"),
    [
        ("agent.example", "", False),
        ("agent.example", "*", True),
        ("agent.example", "other.example, Agent.Example", True),
        ("agent.example", "agent.example:8443", True),
        ("agent.example", "agent.example:443", False),
        ("agent.example", "example", False),
        ("agent.example", "10.0.0.0/8", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.9/8", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("11.1.2.3", "10.0.0.0/8,192.168.0.0/16", False),
        ("fd00::1", "fd00::/8", True),
        ("fd00::1", "[fd00::1]:8443", True),
        ("fe80::1%eth0", "fe80::/10", True),
        ("10.1.2.3", "fd00::/8", False),
    ],
)
def test_an_entry_names_hosts_addresses_and_networks(host: str, no_proxy: str, exempt: bool) -> None:
    proxies = Proxies({"all": URL}, no_proxy)
    assert proxies.proxy_for("https", host, 8443) == (None if exempt else PROXY)


def test_the_system_is_asked_by_name_and_by_name_and_port() -> None:
    for bypassed in ("agent.example", "agent.example:8443"):
        proxies = Proxies({"all": URL}, bypasses=bypassed.__eq__)
        assert proxies.proxy_for("https", "agent.example", 8443) is None
        assert proxies.proxy_for("https", "other.example", 8443) == PROXY
    assert Proxies({"all": URL}, bypasses="[fd00::1]:8443".__eq__).proxy_for("https", "fd00::1", 8443) is None
