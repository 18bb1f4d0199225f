"""Agents on the local network: records are read or refused, no value is truncated, URLs are at announced addresses."""

from typing import Any

import pytest
from attrs import evolve
from hypothesis import Phase, given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from asap_core.mdns import dnssd
from asap_core.mdns.announcing import (
    SrvTarget,
    Txt,
    advertised_addresses,
    instance_name,
    srv_target,
    txt_record,
)
from asap_core.mdns.dnssd import (
    Added,
    AnnouncedAgents,
    Announcement,
    Ignored,
    Removed,
    UnusableRecord,
    Updated,
    fold,
    instance_of,
    read_announcement,
)
from asap_core.net.addresses import read_without_zone


class TestNames:
    @pytest.mark.parametrize(
        ("name", "instance"),
        [
            ("Echo Agent", "Echo-Agent"),
            ("a.b", "a-b"),
            ("-a_b-", "a_b"),
            ("", "asap-agent"),
            ("!!!", "asap-agent"),
            ("a" * 70, "a" * 59),
            ("é" * 40, "é" * 29),
            ("a" * 58 + "-b", "a" * 58),
            ("\ud800", "asap-agent"),
        ],
    )
    def test_an_instance_name_fits_a_label(self, name, instance) -> None:
        assert instance_name(name) == instance

    @given(st.text())
    def test_any_name_fits_a_label_and_leaves_room_for_a_number(self, name) -> None:
        instance = instance_name(name)
        assert 0 < len(f"{instance}-999".encode()) <= 63
        assert "." not in instance

    @given(st.text())
    def test_an_instance_name_made_again_is_unchanged(self, name) -> None:
        assert instance_name(instance_name(name)) == instance_name(name)


class TestTxtRecords:
    FIELDS = {"agent_id": "urn:asap:agent:a", "manifest_url": "http://a/m", "version": "1", "skills": ["x", "y"]}

    def test_the_txt_record_has_the_three_keys_of_the_reference_and_the_id(self) -> None:
        assert txt_record(**self.FIELDS) == Txt(  # type: ignore[arg-type]
            {"manifest_url": "http://a/m", "id": "urn:asap:agent:a", "version": "1", "capabilities": "x,y"}
        )

    def test_a_value_that_does_not_fit_is_omitted_not_truncated(self) -> None:
        record = txt_record(**{**self.FIELDS, "skills": ["s" * 50] * 9, "version": "é" * 124})  # type: ignore[arg-type]
        assert record == Txt({"manifest_url": "http://a/m", "id": "urn:asap:agent:a"}, ("version", "capabilities"))

    @pytest.mark.parametrize(("field", "start", "longest"), [("manifest_url", "http://", 242), ("agent_id", "", 252)])
    def test_a_url_or_an_id_that_does_not_fit_raises_value_error(self, field, start, longest) -> None:
        fits = f"{start:a<{longest}}"
        assert fits in txt_record(**{**self.FIELDS, field: fits}).strings.values()  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"at most {longest} bytes"):
            txt_record(**{**self.FIELDS, field: f"{fits}a"})  # type: ignore[arg-type]

    @given(st.text(), st.text(), st.lists(st.text(), max_size=20))
    def test_every_string_fits_or_is_named_as_omitted(self, url, version, skills) -> None:
        wanted = {"manifest_url": url, "id": "i", "version": version, "capabilities": ",".join(skills)}
        try:
            record = txt_record(agent_id="i", manifest_url=url, version=version, skills=skills)
        except ValueError:
            return
        assert all(len(f"{key}={value}".encode("utf-8", "replace")) <= 255 for key, value in record.strings.items())
        assert {**record.strings, **{key: wanted[key] for key in record.left_out}} == wanted


class TestAddresses:
    MACHINE = ["fe80::1%2", "127.0.0.1", "::1", "169.254.0.1", "192.0.2.1", "2001:db8::1", "224.0.0.1", "0.0.0.0", "?"]

    @pytest.mark.parametrize(
        ("bound", "announced"),
        [
            ("127.0.0.1", ("127.0.0.1",)),
            ("192.0.2.1", ("192.0.2.1",)),
            ("fe80::1%eth0", ("fe80::1",)),
            ("0.0.0.0", ("192.0.2.1", "169.254.0.1")),
            ("::ffff:192.0.2.1", ("192.0.2.1",)),
            ("0", ("192.0.2.1", "169.254.0.1")),
            # As Python's event loops and anyio bind it: without IPv4.
            ("::", ("2001:db8::1", "fe80::1")),
            ("*", ("192.0.2.1", "2001:db8::1", "169.254.0.1", "fe80::1")),
            ("", ("192.0.2.1", "2001:db8::1", "169.254.0.1", "fe80::1")),
            ("localhost", ("127.0.0.1", "::1")),
            ("a.example", ()),
        ],
    )
    def test_only_addresses_that_others_reach_are_announced(self, bound, announced) -> None:
        assert advertised_addresses(bound, self.MACHINE) == announced

    @given(st.sampled_from(["0.0.0.0", "::", "*"]), st.lists(st.ip_addresses().map(str)))
    def test_a_wildcard_never_announces_loopback_and_link_local_comes_last(self, bound, machine) -> None:
        announced = advertised_addresses(bound, machine)
        assert set(announced) <= {str(read_without_zone(text)) for text in machine}
        addresses = [read_without_zone(text) for text in announced]
        assert not any(one.is_loopback or one.is_multicast or one.is_unspecified for one in addresses)  # type: ignore[union-attr]
        assert sorted(addresses, key=lambda one: one.is_link_local) == addresses  # type: ignore[union-attr]

    def test_two_machines_have_different_srv_targets(self) -> None:
        one, other = (srv_target("http://192.0.2.1/m", [address]) for address in ("192.0.2.1", "192.0.2.2"))
        assert one.name != other.name
        assert one.name.endswith(".local.")
        assert one.addresses == ("192.0.2.1",)

    def test_the_order_of_addresses_does_not_change_the_srv_target(self) -> None:
        assert srv_target("http://a/", ["a", "b"]).name == srv_target("http://a/", ["b", "a"]).name

    @pytest.mark.parametrize("url", ["http://Host.Local/m", "http://host.local.:80/m"])
    def test_a_local_host_name_is_the_srv_target_without_addresses(self, url) -> None:
        assert srv_target(url, ["192.0.2.1"]) == SrvTarget("host.local.", ())

    def test_an_invalid_url_has_a_srv_target_too(self) -> None:
        assert srv_target("?", ["192.0.2.1"]).addresses == ("192.0.2.1",)


class TestAnnouncements:
    TXT = {
        b"manifest_url": b"http://192.0.2.1:80/m.json",
        b"id": b"urn:asap:agent:a",
        b"version": b"1",
        b"capabilities": b"a,b,",
    }

    def read(self, txt=None, **changes):
        fields = {
            "instance": "A",
            "server": "a.local.",
            "port": 80,
            "addresses": ["192.0.2.1"],
            "txt": self.TXT if txt is None else txt,
        }
        return read_announcement(**{**fields, **changes})

    def read_url(self, url, **changes):
        return self.read({**self.TXT, b"manifest_url": url}, **changes)

    def test_a_valid_announcement_is_read(self) -> None:
        assert self.read() == Announcement(
            instance="A",
            agent_id="urn:asap:agent:a",
            version="1",
            skills=("a", "b"),
            manifest_url="http://192.0.2.1:80/m.json",
            host="192.0.2.1",
            port=80,
            addresses=("192.0.2.1",),
        )

    def test_an_announcement_made_here_is_read_back(self) -> None:
        record = txt_record(agent_id="urn:asap:agent:e", manifest_url="http://192.0.2.1/", version="é", skills=["a"])
        target = srv_target("http://192.0.2.1/", ["192.0.2.1"])
        txt = {key.encode(): value.encode() for key, value in record.strings.items()}
        found = self.read(txt, server=target.name, addresses=target.addresses)
        assert (found.agent_id, found.version, found.skills) == ("urn:asap:agent:e", "é", ("a",))

    def test_an_announcement_of_the_reference_with_only_a_url_is_read(self) -> None:
        found = self.read({b"manifest_url": b"http://a.local/m.json"}, port=None)
        assert (found.agent_id, found.skills, found.version, found.port) == (None, None, "", 0)

    def test_keys_are_case_insensitive_and_the_first_counts(self) -> None:
        found = self.read({b"Version": b"1", b"version": b"2", **self.TXT})
        assert found.version == "1"

    def test_text_that_is_not_utf_8_and_keys_without_value_are_read_as_far_as_possible(self) -> None:
        found = self.read({**self.TXT, b"version": b"\xff", b"capabilities": None})
        assert (found.version, found.skills) == ("�", ())

    @pytest.mark.parametrize(
        "url",
        [
            b"", b"\xff", b"http://", b"ftp://192.0.2.1", b"//192.0.2.1", b"http://a b", b"http://[", b"http://192.0.2.1:x/",
            b"http://192.0.2.1:0/", b"http://u@192.0.2.1/", b"http://:p@192.0.2.1/", b"http://192.0.2.1\\@evil/",
            b"http://192.0.2.1/\x1b[2J",
        ],
    )  # fmt: skip
    def test_a_manifest_url_that_is_not_http_is_refused(self, url) -> None:
        assert "http or https" in self.read_url(url).reason

    @pytest.mark.parametrize(
        ("url", "changes"),
        [
            (b"http://192.0.2.9/x", {}),
            (b"http://169.254.169.254/", {}),
            (b"http://other.local/", {}),
            (b"http://a.local/", {"server": None}),
            (b"http://localhost/", {}),
            (b"http://0x7f.1/", {}),
            # The SRV target is the announcer's own word: only a name of this link counts.
            (b"http://169.254.169.254/", {"server": "169.254.169.254."}),
            (b"http://localhost/", {"server": "localhost."}),
            (b"https://intranet.example/", {"server": "intranet.example."}),
            (b"http://local/", {"server": "local."}),
            # Nor do addresses that are no host's.
            (b"http://0.0.0.0/", {"addresses": ["0.0.0.0"]}),
            (b"http://224.0.0.1/", {"addresses": ["224.0.0.1"]}),
            (b"http://192.0.2.1/", {"addresses": ["nonsense", ""]}),
            # More addresses than a host has aren't all looked at.
            (b"http://192.0.2.9/", {"addresses": ["192.0.2.1"] * 32 + ["192.0.2.9"]}),
        ],
    )
    def test_a_manifest_url_at_another_host_is_refused(self, url, changes) -> None:
        assert "on the host that announces it" in self.read_url(url, **changes).reason

    @pytest.mark.parametrize(
        ("url", "changes"),
        [
            (b"https://192.0.2.1/m", {}),
            (b"http://A.Local/m", {}),
            (b"http://a.local./m", {}),
            (b"http://localhost:8000/m", {"addresses": ["127.0.0.1"]}),
            (b"http://localhost:8000/m", {"addresses": ["192.0.2.1", "::1"]}),
            (b"http://[fe80::1]/m", {"addresses": ["fe80::1%eth0"]}),
            (b"http://[fe80::1%25eth0]/m", {"addresses": ["fe80::1%2"]}),
            (b"http://[2001:db8:0::1]/m", {"addresses": ["2001:db8::1"]}),
            (b"http://[::ffff:192.0.2.1]/m", {}),
        ],
    )
    def test_a_manifest_url_at_the_announcer_is_accepted_in_any_spelling(self, url, changes) -> None:
        assert isinstance(self.read_url(url, **changes), Announcement)

    def test_an_invalid_id_is_refused(self) -> None:
        assert "expected as id" in self.read({**self.TXT, b"id": b"me"}).reason

    @given(
        st.dictionaries(
            st.sampled_from([b"manifest_url", b"id", b"version", b"capabilities", b"\xff"]) | st.binary(),
            st.none() | st.binary() | st.sampled_from([b"http://192.0.2.1/", b"http://a.local/", b"urn:asap:agent:a"]),
            max_size=6,
        ),
        st.text(),
        st.none() | st.text() | st.just("a.local."),
        st.none() | st.integers(),
        st.lists(st.text() | st.ip_addresses().map(str) | st.just("192.0.2.1"), max_size=40),
    )
    def test_any_record_is_read_or_refused(self, txt, instance, server, port, addresses) -> None:
        found = self.read(txt, instance=instance, server=server, port=port, addresses=addresses)
        assert isinstance(found, Announcement | UnusableRecord)
        assert found.instance == instance

    HOSTS = st.sampled_from(["192.0.2.1", "192.0.2.2", "127.0.0.1", "10.0.0.1", "a.local", "b.local", "a", "localhost"])

    @given(HOSTS | st.text(), st.lists(HOSTS, max_size=3), HOSTS | st.text())
    def test_any_accepted_announcement_has_a_url_at_an_announced_address(self, host, addresses, server) -> None:
        found = self.read_url(f"http://{host}/".encode("utf-8", "replace"), addresses=addresses, server=server)
        if isinstance(found, Announcement):
            where = {"127.0.0.1" if found.host == "localhost" else found.host}
            assert where & {*addresses, server if server.endswith(".local") else None}


def announced(instance="A", version="1", link=""):
    return Announcement(
        instance=instance, agent_id=None, version=version, skills=(), manifest_url="http://a/", host="a", port=1,
        addresses=(), link=link,
    )  # fmt: skip


class TestCase:
    """RFC 6762 §16, RFC 4343: names compare without regard to the case of ASCII letters, and of no others."""

    @pytest.mark.parametrize("end", ["._asap._tcp.local.", "._ASAP._TCP.local.", "._Asap._tcp.LOCAL."])
    def test_a_service_type_is_recognised_in_any_case(self, end) -> None:
        assert instance_of(f"Echo.Agent{end}") == "Echo.Agent"
        assert instance_of(end) is instance_of(end[1:]) is instance_of("") is None

    @pytest.mark.parametrize(
        "name", ["x._asap._udp.local.", "x._asap._tcp.local", "x_asap._tcp.local.", "x._aſap._tcp.local."]
    )
    def test_another_service_type_is_not_recognised(self, name) -> None:
        assert instance_of(name) is None

    def test_only_ascii_letters_are_compared_without_case(self) -> None:
        assert fold("AZaz09-É\u212a\u0130ſ") == "azaz09-É\u212a\u0130ſ"

    def test_an_instance_in_another_case_is_the_same_and_keeps_its_first_spelling(self) -> None:
        there = AnnouncedAgents()
        assert there.seen(announced("Echo", "1", "eth0"))
        assert not there.seen(announced("eCHO", "1", "eth0"))
        assert there.seen(announced("ECHO", "2", "eth0"))
        assert [(type(event), event.announcement.instance) for event in there.take()] == [(Added, "Echo")]  # type: ignore[union-attr]
        assert there.is_agent("echo", "eth0")
        assert there.on("eth0") == ("Echo",)
        assert there.gone("ecHo", "eth0")
        assert not there.seen(announced("echo", "2", "eth0")), "as it was told before"
        assert there.take() == ()
        assert there.seen(announced("Écho", "1", "eth0"))
        assert there.seen(announced("écho", "1", "eth0"))
        assert len(there) == 3


class TestAnnouncedAgents:
    def test_a_repeated_announcement_is_not_reported(self) -> None:
        known = AnnouncedAgents()
        assert known.take() == ()
        assert known.seen(announced())
        assert not known.seen(announced())
        assert known.take() == (Added(announced()),)
        assert not known.seen(announced())
        assert known.take() == ()

    def test_added_updated_and_removed_agents_are_reported_in_order(self) -> None:
        known = AnnouncedAgents()
        for instance in "BA":
            known.seen(announced(instance))
        assert known.take() == (Added(announced("B")), Added(announced("A")))
        assert known.seen(announced(version="2"))
        assert known.gone("B")
        assert known.take() == (Updated(announced(version="2")), Removed(announced("B")))
        assert len(known) == 1

    def test_an_unknown_agent_cannot_be_removed(self) -> None:
        known = AnnouncedAgents()
        assert not known.gone("A")
        assert known.take() == ()

    def test_a_slow_reader_gets_the_latest_state_not_every_step(self) -> None:
        known = AnnouncedAgents()
        for version in "123":
            known.seen(announced(version=version))
        assert known.take() == (Added(announced(version="3")),)
        known.gone("A")
        assert known.seen(announced(version="4"))
        assert known.take() == (Updated(announced(version="4")),)

    def test_an_agent_that_is_again_as_it_was_reported_is_not_reported(self) -> None:
        known = AnnouncedAgents()
        known.seen(announced("B"))
        assert not known.gone("B")
        known.seen(announced())
        known.take()
        known.gone("A")
        assert not known.seen(announced())
        assert known.take() == ()

    def test_an_agent_whose_record_becomes_unusable_is_removed(self) -> None:
        known, bad = AnnouncedAgents(), UnusableRecord("A", "why")
        known.seen(bad)
        assert known.take() == (Ignored(bad),)
        known.seen(announced())
        assert known.take() == (Added(announced()),)
        known.seen(bad)
        assert known.take() == (Removed(announced()), Ignored(bad))
        assert known.gone("A")
        assert known.take() == ()

    def test_the_number_of_agents_is_bounded_until_one_leaves(self, monkeypatch) -> None:
        monkeypatch.setattr(dnssd, "MAX_AGENTS", 1)
        known = AnnouncedAgents()
        known.seen(announced())
        assert not known.has_room_for("B")
        assert not known.seen(announced("B"))
        assert known.has_room_for("A")
        assert known.seen(announced(version="2"))
        known.gone("A")
        assert known.seen(announced("B"))
        assert known.take() == (Added(announced("B")),)


# --- its laws, against a naive model ---------------------------------------------------------------------------------

BOUND = 3
INSTANCES = st.sampled_from("AaBbC")
ON = st.sampled_from(["eth0", "wlan0"])
FOUND = st.builds(announced, INSTANCES, st.sampled_from("12"), ON) | st.builds(
    UnusableRecord, INSTANCES, st.sampled_from("xy"), ON
)


def low(one):
    """It, its name in lower case: names that differ in nothing else are one."""
    return one.lower() if isinstance(one, str) else evolve(one, instance=one.instance.lower())


class Laws(RuleBasedStateMachine):
    """The reader's picture, drawn from events alone, is the present whenever it has asked; no event lies on the way."""

    kind: Any = AnnouncedAgents

    def __init__(self) -> None:
        super().__init__()
        self.real = self.kind()
        self.there: dict[Any, Any] = {}
        self.picture: dict[Any, Any] = {}
        self.doubted: set[Any] = set()

    @rule(found=FOUND)
    def seen(self, found) -> None:
        news_of, found = found, low(found)
        key = (found.link, found.instance)
        fits = key in self.there or len(self.there) < BOUND
        assert self.real.has_room_for(news_of.instance, found.link) == fits
        news = self.real.seen(news_of)
        self.doubted.discard(key)
        if fits:
            assert not (news and self.there.get(key) == found)
            self.there[key] = found

    @rule(instance=INSTANCES, link=ON)
    def gone(self, instance, link) -> None:
        news = self.real.gone(instance, link)
        assert not (news and (link, low(instance)) not in self.there)
        self.forget(lambda key: key == (link, low(instance)))

    @rule(link=ON)
    def lost(self, link) -> None:
        news = self.real.lost(link)
        assert not (news and not any(key[0] == link for key in self.there))
        self.forget(lambda key: key[0] == link)

    @rule(link=ON)
    def doubt(self, link) -> None:
        self.real.doubt(link)
        self.doubted |= {key for key in self.there if key[0] == link}

    @rule(link=ON)
    def drop_doubted(self, link) -> None:
        self.real.drop_doubted(link)
        self.forget(lambda key: key[0] == link and key in self.doubted)

    def forget(self, which) -> None:
        for key in [key for key in self.there if which(key)]:
            del self.there[key]
            self.doubted.discard(key)

    @rule()
    def take(self) -> None:
        ignored = set()
        for event in self.real.take():
            match event:
                case Added(one):
                    assert (one.link, low(one.instance)) not in self.picture
                    self.picture[one.link, low(one.instance)] = low(one)
                case Updated(one):
                    assert self.picture[one.link, low(one.instance)] != low(one)
                    self.picture[one.link, low(one.instance)] = low(one)
                case Removed(one):
                    assert self.picture.pop((one.link, low(one.instance))) == low(one)
                case Ignored(unusable):
                    key = (unusable.link, low(unusable.instance))
                    assert self.there[key] == low(unusable)
                    assert key not in ignored
                    ignored.add(key)
        assert self.picture == {key: one for key, one in self.there.items() if isinstance(one, Announcement)}
        assert self.real.take() == ()

    @invariant()
    def reports_the_present_agents(self) -> None:
        for link in ("eth0", "wlan0"):
            on = {instance: one for (place, instance), one in self.there.items() if place == link}
            assert sorted(map(low, self.real.on(link))) == sorted(on)
            agents = {instance for instance, one in on.items() if isinstance(one, Announcement)}
            assert set(map(low, self.real.agents_on(link))) == agents

    @invariant()
    def is_bounded(self) -> None:
        assert len(self.real) == len(self.there) <= BOUND
        assert len(self.real._told) <= BOUND
        assert set(self.real._changed) <= set(self.real._told) | set(self.real._now)
        assert self.real._doubted == self.doubted <= set(self.there)


class Repeats(AnnouncedAgents):
    def _note(self, key):
        self._changed[key] = None
        return True


class TellsEveryChangeAsNew(AnnouncedAgents):
    def _tell(self, key):
        return tuple(Added(e.announcement) if isinstance(e, Updated) else e for e in super()._tell(key))


class ReportsNoRemoval(AnnouncedAgents):
    def gone(self, instance, link=""):
        self._now.pop((link, low(instance)), None)
        return False


class KeepsUnusableAgents(AnnouncedAgents):
    def _tell(self, key):
        events = super()._tell(key)
        return events[1:] if len(events) > 1 else events


class IgnoresItsBound(AnnouncedAgents):
    def seen(self, found):
        self._now[found.link, low(found.instance)] = found
        return self._note((found.link, low(found.instance)))


class ComparesCase(AnnouncedAgents):
    def seen(self, found):
        news = super().seen(found)
        key = (found.link, low(found.instance))
        if key in self._now and self._now[key] != found:
            self._now[key] = found
            return self._note(key)
        return news


class DoubtsSeenAgents(AnnouncedAgents):
    def seen(self, found):
        doubted = set(self._doubted)
        news = super().seen(found)
        self._doubted |= doubted
        return news


class DropsOnEveryLink(AnnouncedAgents):
    def drop_doubted(self, link):
        return any([super(DropsOnEveryLink, self).drop_doubted(one) for one in ("eth0", "wlan0")])  # noqa: C419 - both


class KeepsAgentsOfLostLinks(AnnouncedAgents):
    def lost(self, link):
        return False


BOUNDED = settings(max_examples=100, stateful_step_count=30, deadline=None, report_multiple_bugs=False)
# To catch a mutant is enough; the shortest way to it is of no interest.
HUNT = settings(BOUNDED, max_examples=2000, phases=[Phase.generate], derandomize=True, database=None)


def hold_to_laws(kind, monkeypatch) -> None:
    monkeypatch.setattr(dnssd, "MAX_AGENTS", BOUND)
    machine = type("Machine", (Laws,), {"kind": kind})
    run_state_machine_as_test(machine, settings=BOUNDED if kind is AnnouncedAgents else HUNT)


def test_announced_agents_keep_their_laws(monkeypatch) -> None:
    hold_to_laws(AnnouncedAgents, monkeypatch)


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize(
    "mutant",
    [
        Repeats, TellsEveryChangeAsNew, ReportsNoRemoval, KeepsUnusableAgents, IgnoresItsBound, DoubtsSeenAgents,
        DropsOnEveryLink, KeepsAgentsOfLostLinks, ComparesCase,
    ],
)  # fmt: skip
def test_a_planted_bug_is_caught(mutant, monkeypatch) -> None:
    with pytest.raises((AssertionError, KeyError)):
        hold_to_laws(mutant, monkeypatch)
