"""The links this machine is on, as data: which are of use for multicast, and when a change of them is acted upon.

Names, addresses and answers hold on one link only (RFC 6762 §14), so each is joined, announced on and watched by
itself. A change is acted upon once it has lasted, and less often the more often there's another.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from attrs import define, field, frozen

from asap_core.clock import Instant
from asap_core.net.addresses import is_link_local_ipv6, read_without_zone, zone_of

# Sockets and a name on each. Machines with more interfaces have them for containers, which come last here.
MAX_LINKS: Final = 32
# What URLs and resolvers take for the name of a zone; other interfaces go by their number (RFC 4007 §11.2).
_PLAIN: Final = re.compile(r"[A-Za-z0-9._~-]+")


@frozen(kw_only=True)
class Link:
    """An interface and what's on it. `addresses` are without zones; `multicast` says that it's up and can do it.

    A point-to-point interface is a tunnel to elsewhere: nobody's neighbours are there, so it isn't used.
    """

    name: str
    index: int
    addresses: tuple[str, ...]
    loopback: bool = False
    multicast: bool = True
    point_to_point: bool = False

    @property
    def zone(self) -> str:
        """What to write behind the `%` of an address on this link."""
        return self.name if _PLAIN.fullmatch(self.name) else str(self.index)

    @property
    def sources(self) -> tuple[str, ...]:
        """The addresses to send from, one of each family: one is what a group is joined with (RFC 3493 §5.2).

        Of IPv6 the link-local one where there is one: it stays while others are renumbered, and every neighbour takes
        it for one on the link (RFC 6762 §11). On loopback IPv4 alone, since systems have no IPv6 multicast there.
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
    """Why this interface is of no use for multicast, or None where it is."""
    if link.point_to_point:
        return "it's a tunnel to elsewhere"
    if not (link.multicast or link.loopback):
        return "it's down, or takes no multicast"
    return None if link.sources else "it has no address to send from"


def select_links(machine: Iterable[Link], *, wanted: Sequence[str] | None = None) -> tuple[Link, ...]:
    """Those of use: up, for several, with an address. `wanted` are names or addresses; None means all.

    At most `MAX_LINKS`, those with IPv4 first and then in order of their number.
    """
    of_use = [
        link
        for link in machine
        if why_unused(link) is None
        if wanted is None or any(link.is_meant_by(text) for text in wanted)
    ]
    return tuple(sorted(of_use, key=lambda link: (":" in link.sources[0], link.index))[:MAX_LINKS])


# --- what has changed, and when that counts --------------------------------------------------------------------------


@frozen
class Join:
    """Begin on this link."""

    link: Link


@frozen
class Leave:
    """End on this link: it's gone, or has no address any more."""

    link: Link


@frozen
class Move:
    """The same link has other addresses."""

    before: Link
    after: Link


LinkChange = Join | Leave | Move

# An interface comes up in steps, address by address, within a second; a lease that is renewed goes and comes back.
SETTLE: Final = 1.0
# After each step on a link the next one on it waits twice as long, up to this: a link that flaps costs a step a minute.
MAX_HOLD: Final = 60.0
# A link that has been quiet for so long is as good as new.
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
        """Whether it's too soon after the last step."""
        return self.acted is not None and now - self.acted < min(MAX_HOLD, SETTLE * 2.0**self.steps)

    def forgiven(self, now: Instant) -> bool:
        """Whether it has been quiet for so long that it's as good as new."""
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
    """Tells which links to join, leave and move on, from repeated looks at the machine; at most `MAX_LINKS` at a time.

    Rule: a step is taken when what it's for has been seen unchanged for `SETTLE` seconds, and the last step on the same
    link is long enough ago. So a change that lasts is acted upon within `MAX_HOLD` of settling, one that doesn't never
    is, and no link, however it flaps, makes more than a few announcements a minute (RFC 6762 §8.3 wants them only where
    connectivity changed). The first look doesn't wait.
    """

    _records: dict[str, _Record] = field(factory=dict, init=False)
    _begun: bool = field(default=False, init=False)

    @property
    def joined(self) -> tuple[Link, ...]:
        """The links that it said to join, and not to leave since."""
        return tuple(record.joined for record in self._records.values() if record.joined is not None)

    def look(self, links: Sequence[Link], *, now: Instant) -> tuple[LinkChange, ...]:
        """These links are there now, at most `MAX_LINKS`: what to do about it, at most one step for each."""
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
        """The join or move there came to nothing: it's tried again, each time after a longer wait."""
        record = self._records.get(name)
        if record is not None:
            record.joined = None

    def _due(self, record: _Record, now: Instant) -> LinkChange | None:
        step = record.step
        if step is None or (self._begun and (now - record.since < SETTLE or record.held(now))):
            return None
        if isinstance(step, Join) and len(self.joined) >= MAX_LINKS:
            return None  # until one that's gone was left
        record.joined = record.seen
        record.act(now)
        return step

    def _forget(self, now: Instant) -> None:
        """Links that are gone are remembered until they're forgiven, and only so many."""
        gone = [name for name, record in self._records.items() if record.seen is None and record.joined is None]
        spare = len(self._records) - 2 * MAX_LINKS
        for place, name in enumerate(gone):
            if place < spare or self._records[name].forgiven(now):
                del self._records[name]
