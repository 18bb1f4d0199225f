"""The machine's network interfaces as data: which are usable for multicast, and when to act on a change of them.

Names, addresses and answers hold on one link only (RFC 6762 §14), so each link is joined, announced on and watched by
itself. A change is acted on once it has been stable for a while, and the more often a link changes, the later.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from attrs import define, field, frozen

from asap_core.arguments import ArgumentRule, is_instance, is_list_of, is_or_none
from asap_core.clock import Instant
from asap_core.net.addresses import is_link_local_ipv6, read_without_zone, zone_of

# Each costs sockets and an announced name. Machines with more interfaces have them for containers, which come last.
MAX_LINKS: Final = 32
# Names that URLs and resolvers accept as a zone; other interfaces are named by their index (RFC 4007 §11.2).
_PLAIN: Final = re.compile(r"[A-Za-z0-9._~-]+")


@frozen(kw_only=True)
class Link:
    """An interface and its addresses.

    `addresses`: without zones.
    `multicast`: whether it's up and can do multicast.
    `point_to_point`: whether it's a tunnel. There are no neighbours on it, so it isn't used.
    """

    name: str
    index: int
    addresses: tuple[str, ...]
    loopback: bool = False
    multicast: bool = True
    point_to_point: bool = False

    @property
    def zone(self) -> str:
        """The zone of a link-local address on this link: what follows the `%`."""
        return self.name if _PLAIN.fullmatch(self.name) else str(self.index)

    @property
    def sources(self) -> tuple[str, ...]:
        """The addresses to send from, one of each family: a group is joined with one (RFC 3493 §5.2).

        For IPv6 the link-local address if there is one: it stays when others are renumbered, and every neighbour
        accepts it as on the link (RFC 6762 §11). On loopback only IPv4: systems have no IPv6 multicast there.
        """
        four = [text for text in self.addresses if ":" not in text]
        six = [] if self.loopback else [text for text in self.addresses if ":" in text]
        return (*four[:1], *sorted(six, key=lambda text: not is_link_local_ipv6(text))[:1])

    def is_meant_by(self, text: str) -> bool:
        """Whether a name, or an address with or without a zone, means this link."""
        if text == self.name:
            return True
        if zone_of(text) not in ("", self.name, str(self.index)):
            return False
        wanted = read_without_zone(text)
        return wanted is not None and wanted in map(read_without_zone, self.addresses)


def why_unused(link: Link) -> str | None:
    """Return why this interface isn't usable for multicast, or None if it is."""
    if link.point_to_point:
        return "it's a tunnel to elsewhere"
    if not (link.multicast or link.loopback):
        return "it's down, or takes no multicast"
    return None if link.sources else "it has no address to send from"


INTERFACES: Final = ArgumentRule(
    "a list of names or addresses of interfaces, or None", is_or_none(is_list_of(is_instance(str)))
)


def select_links(machine: Iterable[Link], *, wanted: Sequence[str] | None = None) -> tuple[Link, ...]:
    """Return the interfaces that are usable for multicast, at most `MAX_LINKS`: those with IPv4 first, then by index.

    `wanted`: names or addresses of interfaces; None for all.
    """
    of_use = [
        link
        for link in machine
        if why_unused(link) is None
        if wanted is None or any(link.is_meant_by(text) for text in wanted)
    ]
    return tuple(sorted(of_use, key=lambda link: (":" in link.sources[0], link.index))[:MAX_LINKS])


# --- changes ---------------------------------------------------------------------------------------------------------


@frozen
class Join:
    """Start on this link."""

    link: Link


@frozen
class Leave:
    """Stop on this link: it's gone, or has no address any more."""

    link: Link


@frozen
class Move:
    """The link has other addresses than before."""

    before: Link
    after: Link


LinkChange = Join | Leave | Move

# An interface comes up address by address, within a second; an address whose lease is renewed may go and come back.
SETTLE: Final = 1.0
# After each change on a link the next one waits twice as long, at most this: a flapping link costs one change a minute.
MAX_HOLD: Final = 60.0
# A link that hasn't changed for this long starts again with the shortest wait.
FORGIVE: Final = 300.0


@define
class _Record:
    seen: Link | None
    since: Instant
    joined: Link | None = None
    steps: int = 0
    acted: Instant | None = None

    def look(self, seen: Link | None, now: Instant) -> None:
        if seen != self.seen:
            self.seen, self.since = seen, now

    def held(self, now: Instant) -> bool:
        """Whether it's too soon after the last change."""
        return self.acted is not None and now - self.acted < min(MAX_HOLD, SETTLE * 2.0**self.steps)

    def forgiven(self, now: Instant) -> bool:
        """Whether it hasn't changed for `FORGIVE` seconds."""
        return self.acted is None or now - self.acted >= FORGIVE

    def act(self, now: Instant) -> None:
        if self.forgiven(now):
            self.steps = 0
        # 2**6 is past the longest hold.
        self.steps, self.acted = min(self.steps + 1, 6), now

    @property
    def step(self) -> LinkChange | None:
        match self.joined, self.seen:
            case None, Link() as link:
                return Join(link)
            case Link() as link, None:
                return Leave(link)
            case Link() as before, Link() as after if before != after:
                return Move(before, after)
            case _:
                return None


@define(eq=False)
class LinkWatch:
    """Decides which links to join, leave and move on, from repeated looks at the machine; at most `MAX_LINKS` at once.

    Rule: a change is acted on if it has been seen for `SETTLE` seconds and the last change on the same link is long
    enough ago. So a lasting change is acted on within `MAX_HOLD` seconds of settling and a brief one never is, and no
    link, however it flaps, causes more than a few announcements a minute (RFC 6762 §8.3: announce only if connectivity
    changed). The first look is acted on at once.
    """

    _records: dict[str, _Record] = field(factory=dict, init=False)
    _begun: bool = field(default=False, init=False)

    @property
    def joined(self) -> tuple[Link, ...]:
        """The links that were joined and not left since."""
        return tuple(record.joined for record in self._records.values() if record.joined is not None)

    def look(self, links: Sequence[Link], *, now: Instant) -> tuple[LinkChange, ...]:
        """Take the links that are there now, at most `MAX_LINKS`. Returns what to do, at most one change for each."""
        there = {link.name: link for link in links[:MAX_LINKS]}
        for name in there:
            self._records.setdefault(name, _Record(None, now))
        for name, record in self._records.items():
            record.look(there.get(name), now)
        steps = [step for record in self._records.values() if (step := self._due(record, now)) is not None]
        self._begun = True
        self._forget(now)
        return tuple(sorted(steps, key=lambda step: not isinstance(step, Leave)))

    def failed(self, name: str) -> None:
        """The join or move on this link failed: it's tried again, each time after a longer wait."""
        record = self._records.get(name)
        if record is not None:
            record.joined = None

    def _due(self, record: _Record, now: Instant) -> LinkChange | None:
        step = record.step
        if step is None or (self._begun and (now - record.since < SETTLE or record.held(now))):
            return None
        if isinstance(step, Join) and len(self.joined) >= MAX_LINKS:
            return None  # until another one is left
        record.joined = record.seen
        record.act(now)
        return step

    def _forget(self, now: Instant) -> None:
        """Drop the records of links that are gone, if they are quiet for long enough or too many."""
        gone = [name for name, record in self._records.items() if record.seen is None and record.joined is None]
        spare = len(self._records) - 2 * MAX_LINKS
        for place, name in enumerate(gone):
            if place < spare or self._records[name].forgiven(now):
                del self._records[name]
