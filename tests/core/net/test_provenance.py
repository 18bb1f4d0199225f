"""Law: no document names a URL nearer to this process than its own source, whatever entries are evicted."""

from ipaddress import ip_address

import pytest
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from asap_core.lru import Lru
from asap_core.net import provenance
from asap_core.net.addresses import Proximity, proximity_of
from asap_core.net.outbound import AddressRefused, OutboundPolicy, UrlRefused
from asap_core.net.provenance import Provenance
from asap_core.net.urls import authority_of

REGISTRIES = {
    "registry.json": Proximity.MACHINE,
    "http://127.0.0.1/r.json": Proximity.MACHINE,
    "http://localhost/r.json": Proximity.MACHINE,
    "https://10.0.0.1/r.json": Proximity.NETWORK,
    "https://[fd00::1]/r.json": Proximity.NETWORK,
    "https://8.8.8.8/r.json": Proximity.INTERNET,
    "https://r.example/r.json": Proximity.INTERNET,
    "https://": Proximity.INTERNET,
}


class TestSources:
    @pytest.mark.parametrize(("source", "zone"), REGISTRIES.items())
    def test_a_document_is_as_near_as_its_server(self, source, zone) -> None:
        assert Provenance().proximity_of(source) is zone

    def test_a_name_is_as_near_as_its_furthest_connected_address(self) -> None:
        known = Provenance()
        known.connected("r.example:443", "10.0.0.5")
        assert known.proximity_of("https://r.example/r.json") is Proximity.NETWORK
        known.connected("r.example:443", "8.8.8.8")
        known.connected("r.example:443", "10.0.0.5")
        assert known.proximity_of("https://r.example/r.json") is Proximity.INTERNET
        known.connected("s.example:443", "not an address")
        assert known.proximity_of("https://s.example") is Proximity.INTERNET

    def test_the_nearer_of_two_documents_counts(self) -> None:
        for sources in (["https://10.0.0.1/r", "https://8.8.8.8/r"], ["https://8.8.8.8/r", "https://10.0.0.1/r"]):
            known = Provenance()
            for source in sources:
                known.learn("https://a.example/", source=source)
            assert known.reach("a.example:443") is Proximity.NETWORK

    def test_urls_without_a_host_are_ignored(self) -> None:
        known = Provenance()
        known.name("nonsense")
        known.learn("nonsense", source="https://r.example/")
        assert known.reach("") is Proximity.MACHINE
        assert not known._learned

    def test_a_server_that_the_caller_named_is_not_opened_by_documents(self) -> None:
        known = Provenance(frozenset({"192.168.1.9:8000"}))
        known.name("http://localhost:8000/")
        assert known.reach("localhost:8000") is Proximity.MACHINE
        assert known.reach_from("https://r.example/", "http://localhost:8000/x") is Proximity.INTERNET
        near = proximity_of(ip_address("192.168.1.3"))
        assert known.reach_from("https://192.168.1.3/", "http://localhost:8000/x") is near
        assert known.reach_from("registry.json", "http://localhost:8000/x") is Proximity.MACHINE
        assert known.reach_from("https://r.example/", "http://192.168.1.9:8000/x") is Proximity.MACHINE

    def test_the_caller_may_name_a_url_that_a_registry_named_before(self) -> None:
        known = Provenance(frozenset({"c.example:443"}))
        for host in ("a", "c"):
            known.learn(f"https://{host}.example/", source="https://r.example/r.json")
        assert known.reach("a.example:443") is Proximity.INTERNET
        assert known.reach("c.example:443") is Proximity.MACHINE
        known.name("https://a.example/")
        known.learn("https://a.example/", source="https://r.example/r.json")
        assert known.reach("a.example:443") is Proximity.MACHINE


class TestRecalledProximities:
    def test_a_recalled_proximity_counts_until_this_process_connects(self) -> None:
        known = Provenance()
        known.recall("https://r.example/", Proximity.NETWORK)
        known.recall("nonsense", Proximity.NETWORK)
        assert known.proximity_of("https://r.example/r.json") is Proximity.NETWORK
        known.connected("r.example:443", "8.8.8.8")
        known.recall("https://r.example/", Proximity.NETWORK)
        assert known.proximity_of("https://r.example/r.json") is Proximity.INTERNET


class TestUrlsOfUnknownServers:
    """URLs that a peer names for a POST or a challenge: the internet only, whatever the caller may reach."""

    @pytest.mark.parametrize(
        "address",
        ["10.0.0.1", "100.64.0.1", "127.0.0.1", "169.254.169.254", "192.168.0.1", "224.0.0.1", "240.0.0.1", "0.0.0.0",
         "::1", "fe80::1", "fec0::1", "fd00::1", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::1"],
    )  # fmt: skip
    def test_urls_of_unknown_servers_lead_to_no_private_address(self, address) -> None:
        policy = OutboundPolicy(allow_networks=["0.0.0.0/0", "::/0"], allow_http=["a.example"])
        host = f"[{address}]" if ":" in address else address
        assert isinstance(policy.judge(f"https://{host}/", reach=Proximity.INTERNET), UrlRefused)
        chosen = policy.choose("a.example", ["8.8.8.8", address], port=443, reach=Proximity.INTERNET)
        assert isinstance(chosen, AddressRefused)

    def test_unknown_servers_may_be_limited_to_the_internet(self) -> None:
        known = Provenance(unknown=Proximity.INTERNET)
        assert known.reach("a.example:443") is Proximity.INTERNET
        known.name("https://a.example/")
        assert known.reach("a.example:443") is Proximity.MACHINE


HOSTS = st.sampled_from([f"{letter}.example" for letter in "abcdefgh"])


SOURCES = st.sampled_from(sorted(REGISTRIES))


class NamingMachine(RuleBasedStateMachine):
    """Provenance with tables of three beside a model that forgets nothing: it never lets anything be nearer."""

    make = Provenance

    @initialize()
    def begin(self) -> None:
        self.real = self.make()
        self.named: set[str] = set()
        self.learned: dict[str, Proximity] = {}

    @rule(host=HOSTS)
    def name(self, host) -> None:
        self.real.name(f"https://{host}/")
        self.named.add(f"{host}:443")

    @rule(host=HOSTS, source=SOURCES)
    def learn(self, host, source) -> None:
        self.real.learn(f"https://{host}/", source=source)
        if REGISTRIES[source] is not Proximity.MACHINE:
            zones = (REGISTRIES[source], self.learned.get(f"{host}:443", Proximity.INTERNET))
            self.learned[f"{host}:443"] = max(zones)

    @invariant()
    def no_url_is_nearer_than_its_source(self) -> None:
        for letter in "abcdefgh":
            authority = f"{letter}.example:443"
            if authority not in self.named:
                assert self.real.reach(authority) <= self.learned.get(authority, Proximity.MACHINE)

    @invariant()
    def remembered_urls_have_the_proximity_of_their_source(self) -> None:
        if max(len(self.named), len(self.learned)) <= 3:
            for letter in "abcdefgh":
                authority = f"{letter}.example:443"
                said = Proximity.MACHINE if authority in self.named else self.learned.get(authority, Proximity.MACHINE)
                assert self.real.reach(authority) is said

    @invariant()
    def tables_are_bounded(self) -> None:
        assert len(self.real._named) <= 3
        assert len(self.real._learned) <= 3


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setattr(provenance, "MAX_REMEMBERED", 3)
    monkeypatch.setattr(provenance, "_MAX_LEARNED", 3)


@pytest.mark.usefixtures("small")
def test_no_url_is_nearer_than_its_source() -> None:
    run_state_machine_as_test(NamingMachine)


class AllowsUnknownServersEverything(Provenance):
    """Forgets what it learned as if the caller had named it."""

    def learn(self, url, *, source) -> None:
        super().learn(url, source=source)
        self._unknown = Proximity.MACHINE


class LetsTheLatestDocumentWin(Provenance):
    """Takes a document's word over a nearer document's absence."""

    def learn(self, url, *, source) -> None:
        if source != "https://r.example/r.json":
            super().learn(url, source=source)


class ForgetsNothing(Provenance):
    def name(self, url) -> None:
        everything = Lru[str, None](10_000)
        for authority in (*self._named, str(authority_of(url))):
            everything.put(authority, None)
        self._named = everything


class LetsTheFurthestDocumentWin(Provenance):
    """Lets a document further away take back what a nearer one said."""

    def learn(self, url, *, source) -> None:
        self._learned.pop(str(authority_of(url)))
        super().learn(url, source=source)


@pytest.mark.planted
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "broken", [AllowsUnknownServersEverything, LetsTheLatestDocumentWin, ForgetsNothing, LetsTheFurthestDocumentWin]
)
def test_a_planted_bug_is_caught(broken) -> None:
    class Machine(NamingMachine):
        make = broken

    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=500, stateful_step_count=20, database=None, print_blob=False, phases=[Phase.generate]
            ),
        )
