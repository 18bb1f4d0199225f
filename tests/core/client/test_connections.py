"""Which connections are kept, reused and closed: one request on each, and none is lost or closed twice."""

from attrs import define
from hypothesis import given, strategies as st

from asap_core.client.connections import IDLE_SECONDS, MAX_IDLE, PLACES, ConnectionKey, Connections, Pooled, Progress
from asap_core.net.environment_proxies import ProxyUrl

A = ConnectionKey((b"https", b"a.example", 443))
B = ConnectionKey((b"https", b"b.example", 443))
ANNOUNCED = ConnectionKey((b"https", b"a.example", 443), addresses=("192.0.2.7",))
PROXIED = ConnectionKey((b"https", b"a.example", 443), proxy=ProxyUrl("https_proxy", "http", "proxy.example", 3128))


@define(eq=False)
class Inner:
    """An HTTP connection. `idle`: whether its last exchange was complete."""

    key: ConnectionKey
    idle: bool = True
    closed: bool = False
    expired: bool = False

    def is_idle(self) -> bool:
        return self.idle

    def is_closed(self) -> bool:
        return self.closed

    def has_expired(self) -> bool:
        return self.expired


Held = Pooled[Inner, str]


def connections() -> Connections[Inner, str]:
    return Connections(lambda pooled: Inner(pooled.key))


def test_what_a_client_keeps_open_is_bounded() -> None:
    """Numbers of httpx, and less than the files that a process may open."""
    assert (PLACES, MAX_IDLE, IDLE_SECONDS) == (500, 20, 5.0)


class TestReuse:
    def test_a_connection_whose_exchange_was_complete_carries_the_next_request(self) -> None:
        these, progress = connections(), Progress()
        first, _ = these.begin(A, Progress())
        assert these.end(first) == []
        second, stale = these.begin(A, progress)
        assert (second, stale, second.progress) == (first, [], progress)
        assert these.begin(A, progress)[0] is not first  # it's in use again

    def test_an_incomplete_exchange_ends_its_connection(self) -> None:
        these = connections()
        first, _ = these.begin(A, Progress())
        first.inner.idle = False
        assert these.end(first) == [first]
        assert these.begin(A, Progress())[0] is not first

    def test_a_connection_that_was_closed_or_never_opened_is_not_kept(self) -> None:
        these = connections()
        first, _ = these.begin(A, Progress())
        first.inner.closed = True
        assert first.inner.idle
        assert these.end(first) == [first]

    def test_a_connection_in_use_carries_no_other_request(self) -> None:
        these = connections()
        assert these.begin(A, Progress())[0] is not these.begin(A, Progress())[0]

    def test_the_most_recently_used_one_is_taken(self) -> None:
        these = connections()
        first, second = (these.begin(A, Progress())[0] for _ in range(2))
        these.end(second)
        these.end(first)
        assert these.begin(A, Progress())[0] is first

    def test_other_servers_proxies_and_announcements_have_connections_of_their_own(self) -> None:
        these = connections()
        for key in (A, B, ANNOUNCED, PROXIED):
            held, _ = these.begin(key, Progress())
            assert held.inner.key == key
            these.end(held)

    def test_those_that_expired_or_were_closed_are_returned_to_be_closed(self) -> None:
        these = connections()
        first, second, third = (these.begin(A, Progress())[0] for _ in range(3))
        for held in (first, second, third):
            these.end(held)
        first.inner.expired = second.inner.closed = True
        assert these.begin(B, Progress())[1] == [first, second]
        assert these.begin(B, Progress())[1] == []  # once
        assert these.begin(A, Progress())[0] is third

    def test_the_one_that_was_idle_for_longest_gives_way(self) -> None:
        these = connections()
        held = [these.begin(A, Progress())[0] for _ in range(MAX_IDLE + 1)]
        assert [these.end(each) for each in held] == [[]] * MAX_IDLE + [[held[0]]]
        assert these.close()[0] == held[1:]


class TestClosing:
    def test_it_returns_the_idle_ones_and_those_in_use(self) -> None:
        these = connections()
        idle, busy = (these.begin(A, Progress())[0] for _ in range(2))
        these.end(idle)
        assert these.close() == ([idle], [busy])
        assert these.closed

    def test_afterwards_none_is_kept(self) -> None:
        these = connections()
        held, _ = these.begin(A, Progress())
        these.close()
        assert these.end(held) == [held]
        assert these.close() == ([], [])


@given(st.lists(st.tuples(st.sampled_from(["begin", "end", "cut off", "closed", "expire"]), st.integers(0, 7))))
def test_each_connection_has_one_owner_at_any_time(steps: list[tuple[str, int]]) -> None:
    """It's in use by one request, kept, or closed once. Never two of these."""
    these = connections()
    busy: list[Held] = []
    closed: list[Held] = []
    made: set[Held] = set()
    for step, number in steps:
        if step == "begin":
            held, stale = these.begin([A, B][number % 2], Progress())
            assert held not in busy + closed
            assert held.key == [A, B][number % 2]
            busy.append(held)
            made.add(held)
            closed += stale
        elif busy and step == "expire":
            busy[number % len(busy)].inner.expired = True
        elif busy:
            held = busy.pop(number % len(busy))
            held.inner.idle, held.inner.closed = step != "cut off", step == "closed"
            closed += these.end(held)
    idle, used = these.close()
    assert sorted(map(id, idle + used + closed)) == sorted(map(id, made))
    assert set(used) == set(busy)
    assert len(idle) <= MAX_IDLE
