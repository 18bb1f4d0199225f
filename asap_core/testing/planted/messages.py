"""HTTP messages as values, the limits that they're held to, and the fault that ends reading one."""

from dataclasses import dataclass, field
from typing import Final

Fields = tuple[tuple[str, str], ...]
"""Header fields in order: names in lower case, values without the blanks around them."""


JSON: Final = ("content-type", "application/json")
"""The field of every body that is JSON."""


@dataclass(frozen=True, kw_only=True)
class PlantedRequest:
    """One request. `path`: the target's path, without the query. `length`: None if the body is chunked."""

    method: str
    path: str
    fields: Fields = ()
    body: bytes = b""
    query: str = ""
    length: int | None = 0
    keeps_open: bool = True
    peer: str = "127.0.0.1"

    def values(self, name: str) -> list[str]:
        """All values of a field, in order."""
        return [value for key, value in self.fields if key == name]

    def value(self, name: str) -> str | None:
        """The value of a field, of several ones joined by commas (RFC 9110 §5.3). None if it isn't there."""
        values = self.values(name)
        return ", ".join(values) if values else None


@dataclass(frozen=True, kw_only=True)
class PlantedResponse:
    """One response. `close`: the connection ends after it."""

    status: int
    fields: Fields = ()
    body: bytes = b""
    close: bool = False


class HttpFault(Exception):
    """A request that can't be read: the status that says so, and what would have been right. It ends the connection."""

    def __init__(self, status: int, expected: str) -> None:
        super().__init__(status, expected)
        self.status = status
        self.expected = expected


@dataclass(frozen=True, kw_only=True)
class PlantedOptions:
    """What the agent is and accepts. Sizes are in bytes, times in seconds; the defaults are those of docs/policy.md."""

    urn: str = "urn:asap:agent:planted"
    name: str = "Planted agent"
    url: str = "http://127.0.0.1:8000"
    tokens: tuple[tuple[str, str], ...] = (
        ("token-of-alice", "urn:asap:agent:alice"),
        ("token-of-bob", "urn:asap:agent:bob"),
    )
    """Bearer tokens, each with the agent that it stands for. Empty: anonymous callers are accepted."""
    max_body: int = 10_485_760
    max_depth: int = 64
    max_batch: int = 50
    max_head: int = 16_384
    max_fields: int = 100
    max_age: float = 300.0
    skew: float = 30.0
    keys_kept: float = 600.0
    nonces_per_sender: int = 100_000
    head_timeout: float = 10.0
    body_timeout: float = 30.0
    idle_timeout: float = 60.0
    codings: tuple[str, ...] = ("br", "gzip")
    """What bodies may be compressed by. Of br it reads what the laws send: see `Coding`."""
    skills: tuple[str, ...] = field(default=("echo", "fail", "sleep"))


REASONS: Final = {
    200: "OK", 204: "No Content", 304: "Not Modified", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden",
    404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout", 413: "Content Too Large",
    415: "Unsupported Media Type", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
    501: "Not Implemented", 503: "Service Unavailable", 505: "HTTP Version Not Supported",
}  # fmt: skip
"""The reason phrases of the statuses that are sent."""
