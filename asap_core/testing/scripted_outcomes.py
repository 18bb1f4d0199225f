"""Scripts of what happens to a client's effects: for each kind of effect, outcomes in order."""

from collections.abc import Callable, Iterator
from typing import Final, assert_never

from attrs import frozen
from hypothesis import strategies as st

from asap_core.client.programs import (
    Barred,
    Completed,
    Effect,
    Expired,
    Fetch,
    Next,
    ReadFile,
    Sleep,
    Stage,
    Unanswered,
    Unavailable,
    Wait,
    WriteFile,
)
from asap_core.errors import Advice
from asap_core.testing.scripted_driver import Delayed, ScriptedAnswer, ScriptedReply

_Replies = tuple[ScriptedReply | Delayed, ...]
# What comes after the last outcome of a script: nothing can be reached, so each program comes to its end.
_UNREACHABLE: Final = Unanswered(Stage.CONNECTING, "can't connect: the script is over")
_NO_FILE: Final = Unavailable("the script is over")


@frozen
class OutcomeScript:
    """What happens outside: the first `Fetch` has the first of `fetches`, and so on.

    When they're used up, requests aren't connected, and files and the local network can't be used.
    """

    fetches: _Replies = ()
    reads: _Replies = ()
    writes: _Replies = ()
    events: _Replies = ()

    def play(self) -> Callable[[Effect], ScriptedReply | Delayed]:
        """Return a function that gives each effect its outcome, from the beginning; for a `ScriptedDriver`."""
        fetches, reads, writes, events = map(iter, (self.fetches, self.reads, self.writes, self.events))

        def reply(effect: Effect) -> ScriptedReply | Delayed:
            match effect:
                case Fetch():
                    return next(fetches, _UNREACHABLE)
                case ReadFile():
                    return _next_file(reads)
                case WriteFile():
                    return _next_file(writes)
                case Next():
                    return _next_file(events)
                case Wait() | Sleep():
                    raise TypeError("the driver itself waits and sleeps")
                case _:
                    assert_never(effect)

        return reply


def _next_file(replies: Iterator[ScriptedReply | Delayed]) -> ScriptedReply | Delayed:
    return next(replies, _NO_FILE)


_STATUSES: Final = (200, 200, 200, 201, 204, 301, 304, 307, 400, 401, 403, 404, 429, 500, 502, 503)
# What changes a client's decisions: caching, a retry, a redirect, and where it leads.
_HEADERS: Final[tuple[tuple[tuple[str, str], ...], ...]] = (
    (), (), (("cache-control", "max-age=60"),), (("cache-control", "no-store"),), (("etag", '"1"'),),
    (("cache-control", "max-age=1, stale-while-revalidate=60"), ("etag", '"1"')), (("retry-after", "2"),),
    (("location", "/elsewhere"),), (("location", "https://other.example/"),), (("location", "http://169.254.169.254/"),),
    (("www-authenticate", "Bearer"),),
)  # fmt: skip
_STAGES: Final = st.sampled_from(Stage)
_FAILURES: Final[st.SearchStrategy[ScriptedReply]] = (
    st.builds(Unanswered, _STAGES, st.just("it broke"), st.booleans())
    | st.builds(Expired, _STAGES)
    | st.just(Barred("it's inside", Advice("allow it")))
)
_FILE_FAILURES: Final[st.SearchStrategy[ScriptedReply]] = st.sampled_from(
    [Unavailable("No such file or directory", 2), Unavailable("Permission denied", 13), Expired()]
)
_SECONDS: Final = st.sampled_from([0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 2.0, 1_000.0])


def outcome_scripts(
    bodies: st.SearchStrategy[bytes] | None = None, *, most: int = 6
) -> st.SearchStrategy[OutcomeScript]:
    """Scripts for programs: responses whole and cut off, files, failures at each stage, at once or late.

    bodies: of the responses, and of the files; by default empty ones, JSON, and any bytes.
    most: how many requests have an outcome of their own; at least one has.
    """
    contents = st.sampled_from([b"", b"{}", b"[]", b"null"]) | st.binary(max_size=20) if bodies is None else bodies
    broken = st.none() | st.none() | st.just(Unanswered(Stage.ANSWERED, "it broke")) | st.just(Expired(Stage.ANSWERED))
    answers: st.SearchStrategy[ScriptedReply] = st.builds(
        ScriptedAnswer, st.sampled_from(_STATUSES), st.sampled_from(_HEADERS), contents, failure=broken
    )
    whole: st.SearchStrategy[ScriptedReply] = st.builds(ScriptedAnswer, body=contents)
    return st.builds(
        OutcomeScript,
        # By index: `st.one_of` would count a strategy that is listed several times once.
        fetches=_late(
            st.integers(0, 5).flatmap([whole, whole, whole, answers, answers, _FAILURES].__getitem__), 1, most
        ),
        reads=_late(whole | _FILE_FAILURES),
        writes=_late(st.just(Completed()) | _FILE_FAILURES),
        events=_late(st.just(Unavailable("no network")) | st.just(Expired())),
    )


def _late(replies: st.SearchStrategy[ScriptedReply], least: int = 0, most: int = 2) -> st.SearchStrategy[_Replies]:
    """These, at once or after some time."""
    timed = st.builds(lambda seconds, reply: Delayed(seconds, reply) if seconds else reply, _SECONDS, replies)
    return st.lists(timed, min_size=least, max_size=most).map(tuple)
