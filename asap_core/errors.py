"""The exceptions that this library raises at its users: each holds fields, and its message says what would be right."""

from collections.abc import Mapping
from typing import Final, Literal

from attrs import define, field, frozen


@frozen
class Problem:
    """One thing wrong in a document: where (keys and indexes from the root) and what would have been right.

    `kind` is `missing`, `unknown_keys`, `wrong`, `ill_formed` or `too_much`. Keys in a path come from the
    protocol, never from the document, so that nothing the caller wrote comes back.
    """

    path: tuple[str | int, ...]
    expected: str
    kind: str = "wrong"

    @property
    def json_path(self) -> str:
        """The place as RFC 9535 writes it: `$.params.envelope.sender`, `$.agents[3].id`."""
        return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)

    def __str__(self) -> str:
        return f"{self.json_path}: expected {self.expected}"


@frozen
class Allow:
    """A remedy: an option of `OutboundPolicy` that allows the request. Its text names the keyword argument.

    option: the name of the option.
    value: what it has to contain, or for `redirects` its value.
    instead: what can be done without allowing anything, such as "use https".
    """

    option: Literal["allow_http", "allow_networks", "allow_ports", "allow_endpoints", "redirects"]
    value: str | int
    instead: str | None = None

    def __str__(self) -> str:
        value = self.value if self.option == "redirects" else [self.value]
        return self.written(f"{self.option}={value!r}")

    def written(self, option: str) -> str:
        """The remedy in words, with the option and its value as the reader writes them."""
        return f"allow it with {option}" if self.instead is None else f"{self.instead}, or allow it with {option}"


@frozen
class Advice:
    """A remedy that is no option: what to do, in words."""

    text: str

    def __str__(self) -> str:
        return self.text


Remedy = Allow | Advice


class AsapError(Exception):
    """Whatever this library raises at its users; the message says what would have been right."""


@define(eq=False)
class InvalidDocument(AsapError, ValueError):
    """A document isn't what it should be; `problems` lists everything wrong with it, each with its place."""

    what: str
    problems: tuple[Problem, ...]

    def __str__(self) -> str:
        return f"not a valid {self.what}: " + "; ".join(str(problem) for problem in self.problems)


@define(eq=False)
class InvalidTransition(AsapError, ValueError):
    """A task can't move so; `allowed` are the statuses it can move to from where it is."""

    task_id: str
    from_status: str
    to_status: str
    allowed: tuple[str, ...]

    def __str__(self) -> str:
        where = " or ".join(self.allowed) or "nowhere: it is over"
        return f"a {self.from_status} task can move to {where}, not to {self.to_status}"


@define(eq=False)
class Unreachable(AsapError):
    """No answer could be had from `url` (credentials removed); `reason` says what happened, `next_try` when it pays.

    `sent` is false where the request didn't get as far as the server: nothing of it was carried out. `crowded` says
    that it waited in vain for a connection of this client's own, which says nothing of the server. `kept_age` says how
    many seconds ago the server last vouched for the document kept, which is too old to stand in.
    """

    url: str
    reason: str
    next_try: float | None = None
    sent: bool = True
    kept_age: float | None = None
    crowded: bool = False

    def __str__(self) -> str:
        return f"no answer from {self.url}: {self.reason}{_later(self.next_try, self.kept_age)}"


@define(eq=False)
class TimedOut(Unreachable):
    """`url` did not answer in time; for a message sent, it may have been carried out."""


@define(eq=False)
class BadReply(AsapError):
    """`url` answered with something that isn't what the protocol says; `reason` says what it should have been.

    `next_try` and `kept_age` are as `Unreachable`'s. `retry_after` is what the answer asked to wait, in seconds.
    `remedy` is there if an option of the client would have had another outcome.
    """

    url: str
    reason: str
    status: int | None = None
    next_try: float | None = None
    kept_age: float | None = None
    retry_after: float | None = None
    remedy: Remedy | None = None

    def __str__(self) -> str:
        status = "" if self.status is None else f" (HTTP {self.status})"
        remedy = "" if self.remedy is None else f"; {self.remedy}"
        return f"unusable answer from {self.url}{status}: {self.reason}{remedy}{_later(self.next_try, self.kept_age)}"


def _later(next_try: float | None, kept_age: float | None) -> str:
    wait = "" if next_try is None else f"; not asked again for {next_try:.1f} s"
    return wait if kept_age is None else f"{wait}; what is kept is {kept_age:.0f} s old, and can't stand in"


# RFC 9110 §15.6.3 to §15.6.5: what a proxy answers if it can't tell what became of a request, or had no answer.
GATEWAY: Final = frozenset({502, 503, 504})


@define(eq=False)
class WrongAgent(AsapError):
    """Somebody else answers at `url`: the manifest's id, or a reply's sender, isn't the agent that was asked for."""

    url: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.url} is {self.found}, not {self.expected}"


@define(eq=False)
class AgentChanged(WrongAgent):
    """Another agent than before answers at `url`: `expected` is who did until now. `AgentClient.forget` accepts it."""

    def __str__(self) -> str:
        return f"{self.url} is {self.found} now, and was {self.expected}; forget() it if that's meant"


@define(eq=False)
class Unsuitable(AsapError):
    """The agent at `url` isn't what was required of it: `lacks` says what."""

    url: str
    agent_id: str
    lacks: str

    def __str__(self) -> str:
        return f"{self.agent_id} at {self.url} doesn't have {self.lacks}"


@define(eq=False)
class Unverified(AsapError):
    """The manifest of `agent_id` at `url` isn't signed by a key that counts for it: `reason` says how."""

    url: str
    agent_id: str
    reason: str

    def __str__(self) -> str:
        return f"the manifest of {self.agent_id} at {self.url} isn't verified: {self.reason}"


@define(eq=False)
class NotResolved(AsapError):
    """No agent `urn` was found; `asked` says where it was looked for, and what came of each."""

    urn: str
    asked: tuple[object, ...]

    def __str__(self) -> str:
        where = "; ".join(map(str, self.asked)) or "no registry is configured, and the local network isn't asked"
        return f"{self.urn} isn't found: {where}"


@define(eq=False)
class NotAllowed(AsapError):
    """The library's outbound policy keeps this request from being made; `remedy` says what to do about it."""

    url: str
    reason: str
    remedy: Remedy

    def __str__(self) -> str:
        return f"{self.url} is not asked: {self.reason}; {self.remedy}"


@define(eq=False)
class NoToken(AsapError):
    """No access token could be had from the provider at `url`, so that nothing was sent to the agent.

    `refused` says that the provider did answer, and said no; otherwise it may be better in `next_try` seconds.
    """

    url: str
    reason: str
    refused: bool = False
    next_try: float | None = None

    def __str__(self) -> str:
        return f"no access token from {self.url}: {self.reason}{_later(self.next_try, None)}"


class MdnsUnavailable(AsapError):
    """What was asked of mDNS can't be had on this machine or in this container; the message says what it needs."""


class BadState(AsapError):
    """A state file can't be used; nothing of it is. The message says what would have been right."""


class BadStore(AsapError):
    """A server can't be used for admission. The message says what would have been right."""


@define(eq=False, kw_only=True)
class RemoteError(AsapError):
    """The agent answered with an error.

    `code` is the JSON-RPC code, `taxonomy` the string to classify by (empty from a 1.1 peer that sent none), `details`
    what it said beside, `recoverable` whether asking again may help, after `retry_after` seconds if given. `own` is
    false if the answer may be that of a proxy in front of the agent. Of `details["validation_errors"]` the message has
    the first.
    """

    code: int
    message: str
    taxonomy: str = ""
    recoverable: bool = False
    retry_after: float | None = None
    details: Mapping[str, object] = field(factory=dict, repr=False)
    status: int = 200
    own: bool = True

    def __str__(self) -> str:
        label = f"{self.code} {self.taxonomy}".rstrip()
        hint = "" if self.retry_after is None else f" (retry after {self.retry_after:g} s)"
        problems = self.details.get("validation_errors")
        first = f": {remote_problem(problems[0])}" if isinstance(problems, list) and problems else ""
        return f"the agent refused: {self.message}{first} [{label}]{hint}"


# A place and a few words; the path of a deeper place is longer, and says no more.
_MAX_PROBLEM: Final = 200
_UNNAMED: Final = "a problem that it doesn't name"


def remote_problem(problem: object) -> str:
    """One entry of a peer's `validation_errors`, which may be anything: its place and what it says, on one line."""
    if not isinstance(problem, dict):
        return _UNNAMED
    place, says = problem.get("loc"), problem.get("msg")
    where = ".".join(str(step) for step in place if type(step) in (str, int)) if isinstance(place, list) else ""
    told = ": ".join(part for part in (where, says) if isinstance(part, str) and part)[:_MAX_PROBLEM]
    return "".join(char if char.isprintable() else " " for char in told) or _UNNAMED
