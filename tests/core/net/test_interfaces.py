"""The links a machine is on: which are of use, and that changes are acted upon once they last, and not too often."""

from itertools import pairwise
from typing import Any

import pytest
from attrs import evolve
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from asap_core.net import interfaces as links
from asap_core.net.interfaces import (
    FORGIVE,
    MAX_HOLD,
    MAX_LINKS,
    SETTLE,
    Join,
    Leave,
    Link,
    LinkWatch,
    Move,
    select_links,
    why_unused,
)


def link(name="eth0", *addresses, **changes):
    return Link(name=name, **{"index": 2, "addresses": addresses or ("192.0.2.1",), **changes})


class TestLinks:
    def test_a_link_has_one_source_address_for_each_family_link_local_for_ipv6(self) -> None:
        assert link("eth0", "192.0.2.1", "192.0.2.2", "2001:db8::1", "fe80::1").sources == ("192.0.2.1", "fe80::1")
        assert link("eth0", "2001:db8::1").sources == ("2001:db8::1",)
        assert link("eth0", "fe80::1").sources == ("fe80::1",)

    def test_loopback_has_only_an_ipv4_source_address(self) -> None:
        assert link("lo", "127.0.0.1", "::1", loopback=True).sources == ("127.0.0.1",)
        assert link("lo", "::1", loopback=True).sources == ()

    @pytest.mark.parametrize(
        ("name", "zone"), [("eth0.100", "eth0.100"), ("br-1a_b~", "br-1a_b~"), ("ü/x", "2"), ("", "2")]
    )
    def test_a_name_that_urls_cannot_contain_is_replaced_by_the_number(self, name, zone) -> None:
        assert link(name).zone == zone

    @pytest.mark.parametrize(
        ("text", "meant"),
        [
            ("eth0", True), ("192.0.2.1", True), ("fe80::1", True), ("fe80::1%eth0", True), ("fe80::1%2", True),
            ("FE80:0::1", True), ("::ffff:192.0.2.1", True),
            ("eth1", False), ("192.0.2.9", False), ("fe80::1%eth1", False), ("fe80::1%3", False), ("", False),
            ("?", False),
        ],
    )  # fmt: skip
    def test_a_link_is_selected_by_its_name_or_an_address(self, text, meant) -> None:
        assert link("eth0", "192.0.2.1", "fe80::1").is_meant_by(text) is meant

    def test_only_usable_links_are_selected(self) -> None:
        of_use = [link("lo", "127.0.0.1", loopback=True, multicast=False), link("eth0"), link("eth1", "fe80::2")]
        of_none = [
            link("down", multicast=False),
            link("tun0", point_to_point=True),
            link("lo6", "::1", loopback=True),
        ]
        assert select_links([*of_none, *of_use]) == tuple(of_use)
        assert [why_unused(one) for one in of_use] == [None] * 3
        reasons = [why_unused(one) or "" for one in of_none]
        assert ["multicast" in reasons[0], "tunnel" in reasons[1], "address" in reasons[2]] == [True] * 3
        assert select_links(of_use, wanted=["eth1", "127.0.0.1"]) == (of_use[0], of_use[2])
        assert select_links(of_use, wanted=[]) == ()

    def test_links_with_ipv4_are_selected_first_up_to_the_maximum(self) -> None:
        many = [link(f"veth{index}", "fe80::1", index=index) for index in range(MAX_LINKS + 5)]
        selected = select_links([*many, link("eth0", index=999)])
        assert len(selected) == MAX_LINKS
        assert [one.name for one in selected[:2]] == ["eth0", "veth0"]


class TestChanges:
    def test_the_first_look_joins_links_at_once(self) -> None:
        watch: Any = LinkWatch()
        assert watch.look([link("eth0"), link("eth1")], now=5.0) == (Join(link("eth0")), Join(link("eth1")))
        assert watch.joined == (link("eth0"), link("eth1"))
        assert watch.look([link("eth0"), link("eth1")], now=6.0) == ()

    def test_a_link_that_comes_later_is_joined_after_the_settle_time(self) -> None:
        watch: Any = LinkWatch()
        assert watch.look([], now=0.0) == ()
        assert watch.look([link()], now=1.0) == ()
        assert watch.look([link()], now=1.0 + SETTLE / 2) == ()
        assert watch.look([link()], now=1.0 + SETTLE) == (Join(link()),)

    def test_changes_of_addresses_in_steps_are_one_move(self) -> None:
        watch: Any = LinkWatch()
        watch.look([link()], now=0.0)
        more, most = link("eth0", "192.0.2.1", "fe80::1"), link("eth0", "192.0.2.1", "fe80::1", "2001:db8::1")
        assert watch.look([more], now=10.0) == ()
        assert watch.look([most], now=10.6) == ()
        assert watch.look([most], now=11.2) == ()
        assert watch.look([most], now=11.6) == (Move(link(), most),)
        assert watch.joined == (most,)

    def test_a_link_that_is_back_before_the_settle_time_is_no_change(self) -> None:
        watch: Any = LinkWatch()
        watch.look([link()], now=0.0)
        assert watch.look([], now=10.0) == ()
        assert watch.look([link()], now=10.5) == ()
        assert watch.look([link()], now=20.0) == ()

    def test_old_links_are_left_before_new_ones_are_joined(self) -> None:
        watch: Any = LinkWatch()
        watch.look([link("a")], now=0.0)
        watch.look([link("b")], now=10.0)
        assert watch.look([link("b")], now=12.0) == (Leave(link("a")), Join(link("b")))

    def test_a_flapping_link_is_joined_ever_more_rarely_until_it_is_quiet(self) -> None:
        watch: Any = LinkWatch()
        steps = []
        for second in range(600):
            there = [] if second // 3 % 2 else [link()]
            steps += [second for _ in watch.look(there, now=float(second))]
        assert len(steps) <= 6 + 600 / MAX_HOLD + 1
        assert max(later - sooner for sooner, later in pairwise(steps)) <= MAX_HOLD + 6
        watch.look([link()], now=600.0)
        watch.look([link()], now=600.0 + MAX_HOLD + SETTLE)
        quiet = 700.0 + FORGIVE
        watch.look([], now=quiet)
        assert watch.look([], now=quiet + SETTLE) == (Leave(link()),)
        watch.look([link()], now=quiet + 2)
        assert watch.look([link()], now=quiet + 2 + 2 * SETTLE) == (Join(link()),)

    def test_a_failed_join_is_retried_ever_more_slowly(self) -> None:
        watch: Any = LinkWatch()
        watch.failed("eth0")
        tries = []
        for tenth in range(3000):
            if watch.look([link()], now=tenth / 10):
                tries.append(tenth / 10)
                watch.failed("eth0")
        gaps = [later - sooner for sooner, later in pairwise(tries)]
        assert gaps[:6] == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0]

    def test_a_failed_move_is_followed_by_a_join(self) -> None:
        watch: Any = LinkWatch()
        watch.look([link()], now=0.0)
        other = link("eth0", "192.0.2.2")
        watch.look([other], now=10.0)
        assert watch.look([other], now=12.0) == (Move(link(), other),)
        watch.failed("eth0")
        assert watch.look([other], now=20.0) == (Join(other),)


# --- its laws, against a naive model ---------------------------------------------------------------------------------

NAMES = st.sampled_from("abcdefghij")
LINKS = st.builds(link, NAMES, st.sampled_from(["192.0.2.1", "192.0.2.2"]))
BOUND = 3


class Laws(RuleBasedStateMachine):
    """Steps match the links: none comes too early or too often, and they catch up once links are stable."""

    kind: Any = LinkWatch

    @initialize()
    def begin(self) -> None:
        self.now = 100.0
        self.real = self.kind()
        self.there: dict[str, Any] = {}
        self.since: dict[str, Any] = {}
        self.story: dict[str, Any] = {}
        self.acted: dict[str, Any] = {}
        self.first = True

    @rule(found=st.lists(LINKS, max_size=4, unique_by=lambda one: one.name))
    def links_change(self, found) -> None:
        self.there = {one.name: one for one in found}
        self.look()

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 2.0, 5.0, 61.0, 400.0]))
    def time_passes(self, seconds) -> None:
        self.now += seconds
        self.look()

    @rule(name=NAMES)
    def a_join_fails(self, name) -> None:
        self.real.failed(name)
        self.story.pop(name, None)

    @rule()
    def links_stay_the_same(self) -> None:
        for _ in range(4):
            self.now += MAX_HOLD + SETTLE
            self.look()
        seen = list(self.there.values())[:BOUND]
        assert self.story == {one.name: one for one in seen}
        assert set(self.real.joined) == set(seen)

    def look(self) -> None:
        seen = {one.name: one for one in list(self.there.values())[:BOUND]}
        for name in seen.keys() | self.since.keys():
            before, _ = self.since.get(name, (None, None))
            if name not in self.since or before != seen.get(name):
                self.since[name] = (seen.get(name), self.now)
        for step in self.real.look(list(self.there.values()), now=self.now):
            self.check(step)
        self.first = False
        assert len(self.story) <= BOUND
        assert set(self.real.joined) == set(self.story.values())

    def check(self, step) -> None:
        one: Any = None
        match step:
            case Join(one):
                assert one.name not in self.story
                self.story[one.name] = one
            case Leave(one):
                assert self.story.pop(one.name) == one
            case Move(before, after):
                one = after
                assert before.name == after.name
                assert self.story[before.name] == before != after
                self.story[after.name] = after
        seen, since = self.since[one.name]
        assert seen == (None if isinstance(step, Leave) else one)
        if not self.first:
            assert self.now - since >= SETTLE
            assert self.now - self.acted.get(one.name, -1e9) >= 2 * SETTLE
        self.acted[one.name] = self.now

    @invariant()
    def is_bounded(self) -> None:
        if hasattr(self, "real"):
            assert len(self.real._records) <= 2 * BOUND


class ActsAtOnce(LinkWatch):
    def look(self, found, *, now):
        self._begun = False
        return super().look(found, now=now)


class NeverMoves(LinkWatch):
    def look(self, found, *, now):
        return tuple(step for step in super().look(found, now=now) if not isinstance(step, Move))


class NeverLeaves(LinkWatch):
    def look(self, found, *, now):
        return super().look([*found, *(one for one in self.joined if one.name not in {x.name for x in found})], now=now)


class ForgetsFailures(LinkWatch):
    def failed(self, name) -> None:
        pass


class ForgetsNoLink(LinkWatch):
    def _forget(self, now) -> None:
        pass


class IgnoresItsBound(LinkWatch):
    @property
    def joined(self):
        return () if len(super().joined) == BOUND else super().joined


class DoesNotHold(LinkWatch):
    def _due(self, record, now):
        record.acted = None
        return super()._due(record, now)


class ForgetsHeldLinks(LinkWatch):
    def _forget(self, now) -> None:
        super()._forget(now + 1e6)


BOUNDED = settings(max_examples=100, stateful_step_count=30, deadline=None, report_multiple_bugs=False)
HUNT = settings(BOUNDED, max_examples=2000, phases=[Phase.generate], derandomize=True, database=None)


def hold_to_laws(kind, monkeypatch) -> None:
    monkeypatch.setattr(links, "MAX_LINKS", BOUND)
    machine = type("Machine", (Laws,), {"kind": kind})
    run_state_machine_as_test(machine, settings=BOUNDED if kind is LinkWatch else HUNT)


def test_the_watch_keeps_its_laws(monkeypatch) -> None:
    hold_to_laws(LinkWatch, monkeypatch)


@pytest.mark.planted
@pytest.mark.parametrize(
    "mutant",
    [
        ActsAtOnce, NeverMoves, NeverLeaves, ForgetsFailures, ForgetsNoLink, IgnoresItsBound, DoesNotHold,
        ForgetsHeldLinks,
    ],
)  # fmt: skip
def test_a_broken_watch_is_caught(mutant, monkeypatch) -> None:
    with pytest.raises((AssertionError, KeyError)):
        hold_to_laws(mutant, monkeypatch)


def test_links_are_values() -> None:
    assert evolve(link(), index=3) != link()
