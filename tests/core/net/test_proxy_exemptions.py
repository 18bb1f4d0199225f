"""`no_proxy`: what each kind of entry names."""

import pytest

from asap_core.net.proxy_exemptions import is_exempt


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
    assert is_exempt(host, 8443, no_proxy) is exempt
