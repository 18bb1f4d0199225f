"""The exceptions that this library raises at its users: each holds fields, and its message says what would be right."""

from collections.abc import Mapping
from typing import Final, Literal

from attrs import define, field, frozen


@frozen
class Problem:
    """One thing wrong in a document.

    path: where it is, as keys and indexes from the root. The keys are the protocol's, never the document's, so nothing
        that a caller wrote is repeated.
    expected: what would have been right.
    kind: `missing`, `unknown_keys`, `wrong`, `ill_formed` or `too_much`.
    """

    path: tuple[str | int, ...]
    expected: str
    kind: str = "wrong"

    @property
    def json_path(self) -> str:
        """The path in the notation of RFC 9535, such as `$.params.envelope.sender` or `$.agents[3].id`."""
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
    """The base of the library's exceptions. The message says what would have been right."""


@define(eq=False)
class InvalidDocument(AsapError, ValueError):
    """A document is invalid. `problems` lists what is wrong with it, each with its place."""

    what: str
    problems: tuple[Problem, ...]

    def __str__(self) -> str:
        return f"not a valid {self.what}: " + "; ".join(str(problem) for problem in self.problems)


@define(eq=False)
class InvalidTransition(AsapError, ValueError):
    """A task can't change to this status. `allowed` are the statuses that it can change to."""

    task_id: str
    from_status: str
    to_status: str
    allowed: tuple[str, ...]

    def __str__(self) -> str:
        where = " or ".join(self.allowed) or "nowhere: it is over"
        return f"a {self.from_status} task can move to {where}, not to {self.to_status}"


@define(eq=False)
class Unreachable(AsapError):
    """There was no answer from `url`.

    url: without credentials.
    reason: what happened.
    next_try: seconds until a retry is worthwhile.
    sent: false if the request didn't reach the server, so nothing of it was carried out.
    kept_age: how many seconds ago the server last confirmed the cached document, which is too old to be used.
    crowded: the request waited in vain for a free connection of this client. That says nothing about the server.
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
    """`url` did not answer in time. A message may have been carried out all the same."""


@define(eq=False)
class BadReply(AsapError):
    """`url` answered with something else than the protocol says.

    reason: what was expected.
    status: the HTTP status.
    next_try, kept_age: as in `Unreachable`.
    retry_after: how many seconds the answer asked to wait.
    remedy: set if an option of the client would allow the answer.
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
    return wait if kept_age is None else f"{wait}; the cached copy is {kept_age:.0f} s old, too old to use"


# RFC 9110 §15.6.3 to §15.6.5: what a proxy answers if it had no answer, or can't tell what became of the request.
GATEWAY: Final = frozenset({502, 503, 504})


@define(eq=False)
class WrongAgent(AsapError):
    """Another agent answers at `url`: the manifest's id, or a reply's sender, isn't `expected`."""

    url: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.url} is {self.found}, not {self.expected}"


@define(eq=False)
class AgentChanged(WrongAgent):
    """Another agent than before answers at `url`: `expected` did until now. `AgentClient.forget` accepts `found`."""

    def __str__(self) -> str:
        return f"{self.url} is {self.found} now, and was {self.expected}; call forget(url) if this is intended"


@define(eq=False)
class Unsuitable(AsapError):
    """The agent at `url` doesn't meet a requirement of the caller: `lacks` says which."""

    url: str
    agent_id: str
    lacks: str

    def __str__(self) -> str:
        return f"{self.agent_id} at {self.url} doesn't have {self.lacks}"


@define(eq=False)
class Unverified(AsapError):
    """The manifest of `agent_id` at `url` isn't signed by a key that is trusted for it: `reason` says why."""

    url: str
    agent_id: str
    reason: str

    def __str__(self) -> str:
        return f"the manifest of {self.agent_id} at {self.url} isn't verified: {self.reason}"


@define(eq=False)
class NotResolved(AsapError):
    """The agent `urn` wasn't found. `asked` says where it was looked for, with the result of each."""

    urn: str
    asked: tuple[object, ...]

    def __str__(self) -> str:
        where = "; ".join(map(str, self.asked)) or "no registry is configured, and the local network isn't asked"
        return f"{self.urn} isn't found: {where}"


@define(eq=False)
class NotAllowed(AsapError):
    """The outbound policy doesn't allow this request. `remedy` says what to do about it."""

    url: str
    reason: str
    remedy: Remedy

    def __str__(self) -> str:
        return f"{self.url} is not requested: {self.reason}; {self.remedy}"


@define(eq=False)
class NoToken(AsapError):
    """The provider at `url` gave no access token, so nothing was sent to the agent.

    refused: the provider answered and refused. Otherwise a retry in `next_try` seconds may succeed.
    remedy: what to do about it, if the client's options prevent it, such as a redirect of the provider's metadata.
    """

    url: str
    reason: str
    refused: bool = False
    next_try: float | None = None
    remedy: Remedy | None = None

    def __str__(self) -> str:
        remedy = "" if self.remedy is None else f"; {self.remedy}"
        return f"no access token from {self.url}: {self.reason}{remedy}{_later(self.next_try, None)}"


class MdnsUnavailable(AsapError):
    """mDNS doesn't work on this machine or in this container. The message says what it needs."""


class BadState(AsapError):
    """A state file can't be used, and none of it is. The message says what would have been right."""


class BadStore(AsapError):
    """A server can't be used for admission. The message says what would have been right."""


@define(eq=False, kw_only=True)
class RemoteError(AsapError):
    """The agent answered with an error.

    code: the JSON-RPC code.
    message: the JSON-RPC message.
    taxonomy: the string by which to classify the error. Empty if the peer, of 1.1, sent none.
    recoverable: whether a retry may succeed.
    retry_after: seconds to wait before it.
    details: what the agent said besides. `str()` shows the first of `details["validation_errors"]`.
    status: the HTTP status.
    own: false if the answer may be that of a proxy in front of the agent.
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


# Characters: a path and a few words.
_MAX_PROBLEM: Final = 200
_UNNAMED: Final = "a problem that it doesn't name"


def remote_problem(problem: object) -> str:
    """Return one entry of a peer's `validation_errors`, which may be any JSON value, on one line: place and message."""
    if not isinstance(problem, dict):
        return _UNNAMED
    place, says = problem.get("loc"), problem.get("msg")
    where = ".".join(str(step) for step in place if type(step) in (str, int)) if isinstance(place, list) else ""
    told = ": ".join(part for part in (where, says) if isinstance(part, str) and part)[:_MAX_PROBLEM]
    return "".join(char if char.isprintable() else " " for char in told) or _UNNAMED
