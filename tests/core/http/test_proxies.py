"""Law: with any number of trusted proxies, what the caller writes into the header doesn't choose its address."""

import ipaddress

import pytest
from attrs import evolve
from hypothesis import given, strategies as st

from asap_core import Policy
from asap_core.http.proxies import caller_of, is_trusted

TRUSTED = ("10.0.0.0/8", "::1", "fd00::/8")
HEADERS = ["x-forwarded-for", "forwarded"]


def client(peer, *values, header="x-forwarded-for", trusted=TRUSTED):
    headers = tuple((header.encode(), value.encode("latin-1")) for value in values)
    return caller_of(peer, headers, trusted=trusted, header=header)[0]


@pytest.mark.parametrize(
    ("peer", "values", "found"),
    [
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),  # nobody we trust: its word counts for nothing
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        ("10.0.0.1", ["203.0.113.9, 198.51.100.7"], "198.51.100.7"),  # what stands left of it is the caller's
        ("10.0.0.1", ["203.0.113.9", "198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["10.1.1.1, 10.2.2.2"], "10.1.1.1"),
        ("::1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["::ffff:198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["198.51.100.7:4711"], "198.51.100.7"),
        ("10.0.0.1", ["nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7:x"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7:"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7, nonsense, 10.0.0.3"], "10.0.0.3"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3:4"], "10.0.0.1"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("10.0.0.1", ["[2001:db8::1]"], "2001:db8::1"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", ['"[2001:db8::1]:4711"'], "2001:db8::1"),
        ("10.0.0.1", ['"198.51.100.7"'], "198.51.100.7"),
        ("10.0.0.1", ['"198.51.100.7'], "10.0.0.1"),
        ("10.0.0.1", ['203.0.113.9, "'], "10.0.0.1"),
        ("10.0.0.1", ["fe80::1%eth0"], "fe80::1"),  # the zone is the proxy's
        ("10.0.0.1", ["[fe80::1%25eth0]:80"], "fe80::1"),
        ("10.0.0.1", ["[::ffff:198.51.100.7]:80"], "198.51.100.7"),
        ("10.0.0.1", ["[2001:db8::1"], "10.0.0.1"),
        ("10.0.0.1", ["[2001:db8::1]80"], "10.0.0.1"),
        ("10.0.0.1", ["198.051.100.007"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7:123456"], "10.0.0.1"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9, unix:"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9, "], "10.0.0.1"),  # a proxy that told nothing: what's left of it is the caller's
        ("10.0.0.1", ['"203.0.113.9, 198.51.100.7'], "198.51.100.7"),  # quotes of the caller's hide nothing
        ("10.0.0.1", ["198.51.100.7,\t10.0.0.2"], "198.51.100.7"),
        ("", ["198.51.100.7"], ""),
        ("unix", ["198.51.100.7"], "unix"),
    ],
)
def test_the_client_is_the_nearest_address_that_is_no_trusted_proxy(peer, values, found) -> None:
    assert client(peer, *values) == found


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("for=198.51.100.7", "198.51.100.7"),
        ("For=198.51.100.7;proto=https;by=10.0.0.1", "198.51.100.7"),
        ("proto=https;for=198.51.100.7:80", "198.51.100.7"),
        ('for="[2001:db8::1]"', "2001:db8::1"),
        ('for="[2001:db8::1]:4711"', "2001:db8::1"),
        ("for=203.0.113.9, for=198.51.100.7", "198.51.100.7"),
        ("for=198.51.100.7 ; proto=https", "198.51.100.7"),
        ("for=unknown", "10.0.0.1"),
        ("for=_hidden", "10.0.0.1"),
        ("by=198.51.100.7", "10.0.0.1"),
        ("xfor=198.51.100.7", "10.0.0.1"),
        ('for=203.0.113.7;host="a,for=198.51.100.9"', "203.0.113.7"),
        ('host=";for=198.51.100.9";for=203.0.113.7', "203.0.113.7"),
        ('host="a\\",for=198.51.100.9;b=\\"";for=203.0.113.7', "203.0.113.7"),
        ('for=203.0.113.7;host="a\\\\",for=198.51.100.9', "198.51.100.9"),  # the backslash is escaped, not the quote
        (
            'x=", for=203.0.113.7;host="a,for=198.51.100.9;b=c"',
            "203.0.113.7",
        ),  # the first quote is the caller's
        ('for="203.0.113.9, for=198.51.100.7', "198.51.100.7"),
        ('for=203.0.113.9, for=198.51.100.7"', "10.0.0.1"),
        ('for="198.51.100.7', "10.0.0.1"),
        ('for="198.51.100.7"x', "10.0.0.1"),
        ('for=198.51.100.7;host="a\\"', "10.0.0.1"),
        ('for=198.51.100.7;host="\x01"', "10.0.0.1"),
        ('for="\\198.51.100.7"', "198.51.100.7"),
        ('FOR="198.51.100.7:_obscure"', "198.51.100.7"),
        ('for="198.51.100.7:4711"', "198.51.100.7"),
        ("for=[2001:db8::1]", "2001:db8::1"),
        ("for=2001:db8::1", "2001:db8::1"),
        ('for="2001:db8::1"', "2001:db8::1"),
        ('for="[fe80::1%eth0]"', "fe80::1"),
        ('for="[::ffff:198.51.100.7]"', "198.51.100.7"),
        ("for=198.51.100.7; proto=http;; by=_x;", "198.51.100.7"),
        ("for=198.51.100.7, , ,", "198.51.100.7"),  # RFC 9110 §5.6.1.2
        ("for=198.51.100.7;for=203.0.113.7", "10.0.0.1"),
        ("for=198.51.100.7;FOR=198.51.100.7", "10.0.0.1"),
        ("for=198.51.100.7;host=a;host=b", "10.0.0.1"),
        ("for =198.51.100.7", "10.0.0.1"),
        ("for= 198.51.100.7", "10.0.0.1"),
        ("for=", "10.0.0.1"),
        ("for", "10.0.0.1"),
        ('for=""', "10.0.0.1"),
        ("198.51.100.7", "10.0.0.1"),
        ("for=203.0.113.9, for=unknown", "10.0.0.1"),
        ("for=198.51.100.7, for=_x, for=10.0.0.3", "10.0.0.3"),
        ("for=198.51.100.7;host=example.com:8443;proto=https", "198.51.100.7"),
    ],
)
def test_forwarded_is_read_as_rfc_7239_defines_it(value, found) -> None:
    assert client("10.0.0.1", value, header="forwarded") == found


def test_each_line_is_read_by_itself() -> None:
    assert client("10.0.0.1", 'for="203.0.113.9', "for=198.51.100.7", header="forwarded") == "198.51.100.7"
    assert client("10.0.0.1", "for=198.51.100.7", "for=10.0.0.2", "", header="forwarded") == "198.51.100.7"
    assert client("10.0.0.1", "for=203.0.113.9", 'for="10.0.0.2', header="forwarded") == "10.0.0.1"


def test_the_other_header_is_not_read() -> None:
    headers = ((b"forwarded", b"for=203.0.113.9"),)
    assert caller_of("10.0.0.1", headers, trusted=TRUSTED, header="x-forwarded-for") == ("10.0.0.1", True)


addresses = st.ip_addresses().map(str)
strangers = addresses.filter(lambda text: not is_trusted(text, TRUSTED) and not text.startswith("::ffff:"))
proxies = st.integers(0x0A000000, 0x0AFFFFFF).map(ipaddress.IPv4Address).map(str)
written = st.text(st.characters(max_codepoint=255), max_size=60)


@given(strangers, st.lists(proxies, max_size=3), st.lists(written, max_size=3), st.sampled_from(HEADERS))
def test_headers_of_the_caller_do_not_change_its_address(caller, hops, claimed, header) -> None:
    def entry(address):
        if header == "x-forwarded-for":
            return address
        return f'for="[{address}]"' if ":" in address else f"for={address}"

    # Each proxy appends the address that connected to it; the last of them connects to us.
    seen = [*claimed, *map(entry, [caller, *hops])]
    assert client("10.9.9.9", ", ".join(seen), header=header) == caller


quoted = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30).map(
    lambda text: '"' + text.replace("\\", r"\\").replace('"', r"\"") + '"'
)


@given(strangers, st.lists(quoted, max_size=3), st.lists(written, max_size=3))
def test_values_that_a_proxy_quotes_do_not_change_the_callers_address(caller, said, claimed) -> None:
    before, after = [[f"{letter}{place}={text}" for place, text in enumerate(said)] for letter in "xy"]
    entry = ";".join([*before, f'for="[{caller}]"', *after])
    assert client("10.9.9.9", ", ".join([*claimed, entry]), header="forwarded") == caller


@given(addresses | written, st.lists(written, max_size=4), st.sampled_from(HEADERS))
def test_any_header_gives_an_address(peer, values, header) -> None:
    found = client(peer, *values, header=header)
    if found != peer:
        ipaddress.ip_address(found)
    if not is_trusted(peer, TRUSTED):
        assert found == peer


@pytest.mark.parametrize(
    ("peer", "value", "found"),
    [
        ("198.51.100.7", "192.0.2.9", ("198.51.100.7", True)),
        ("10.0.0.1", "198.51.100.7", ("198.51.100.7", True)),
        ("10.0.0.1", "198.51.100.7, 10.0.0.2", ("198.51.100.7", True)),
        ("10.0.0.1", "10.0.0.2", ("10.0.0.2", True)),
        ("10.0.0.1", "198.51.100.7, unknown, 10.0.0.2", ("10.0.0.2", False)),
        ("10.0.0.1", '"', ("10.0.0.1", False)),
        ("10.0.0.1", ", ".join(["198.51.100.7", *["10.0.0.2"] * 20]), ("10.0.0.2", False)),
    ],
)
def test_the_result_says_if_the_address_is_the_clients_own(peer, value, found) -> None:
    headers = ((b"x-forwarded-for", value.encode()),)
    assert caller_of(peer, headers, trusted=TRUSTED, header="x-forwarded-for") == found


@pytest.mark.parametrize(
    ("peer", "trusted", "found"),
    [
        ("", ("unix:",), ("198.51.100.7", True)),
        ("", ("10.0.0.0/8",), ("", True)),
        ("192.0.2.1", ("unix:",), ("192.0.2.1", True)),
        ("10.0.0.1", ("unix:", "10.0.0.0/8"), ("198.51.100.7", True)),
    ],
)
def test_a_proxy_on_a_unix_socket_is_trusted_by_its_word(peer, trusted, found) -> None:
    headers = ((b"x-forwarded-for", b"198.51.100.7"),)
    assert caller_of(peer, headers, trusted=trusted, header="x-forwarded-for") == found
    assert Policy(trusted_proxies=trusted).trusted_proxies == trusted


def test_a_bounded_number_of_hops_is_read() -> None:
    assert client("10.0.0.1", ", ".join(["198.51.100.7", *["10.0.0.2"] * 20])) == "10.0.0.2"


@pytest.mark.parametrize("bad", ["", "10.0.0.1/8", "host", "10.0.0.0/33"])
def test_networks_are_checked_when_policy_is_made(bad) -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.0/8"):
        Policy(trusted_proxies=[bad])
    assert evolve(Policy(), trusted_proxies=["10.0.0.0/8"]).trusted_proxies == ("10.0.0.0/8",)


def test_the_forwarding_header_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="forwarded_header"):
        Policy(forwarded_header="x-real-ip")  # type: ignore[arg-type]
