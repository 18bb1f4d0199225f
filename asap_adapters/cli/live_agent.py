"""Options of the commands that test a live agent: where it is, who calls it, and what it may be asked to do."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypedDict, Unpack

from attrs import frozen

from asap_adapters.cli.command import Needs, flag, option, repeated, required
from asap_adapters.cli.failures import UserError
from asap_adapters.cli.options import urn, whole_number
from asap_adapters.conform.hooks import MoveClock, Restart
from asap_adapters.conform.live import LiveAgent, TokenRefused
from asap_adapters.conform.sockets import NotThisMachine, SocketExecutor
from asap_core.net.urls import origin_of
from asap_core.testing.laws.lab import MANIFEST_PATH, Lab
from asap_core.testing.laws.survey import ASSUMED, NoManifest
from asap_core.testing.laws.verdicts import Need
from asap_core.wire.json_values import JsonObject

EXIT_UNREACHABLE: Final = 3
"""The exit code if there's no agent."""
MOST_SEED: Final = 2**32 - 1
_FEATURES: Final = tuple(sorted(need.name.lower() for need in ASSUMED))


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """A block in which a file that can't be read or written is an error of the command line.

    The exit code 1, which it would have otherwise, says something of the agent.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}", usage=True) from None


def seed(text: str) -> int:
    """Read a seed."""
    return whole_number(text, 0, MOST_SEED, f"expected a number, 0 to {MOST_SEED}")


def _base_url(text: str) -> str:
    if origin_of(text) is None:
        raise ValueError("expected a base URL such as http://127.0.0.1:8000")
    return text


def feature(text: str) -> Need:
    """Read the name of a feature that an agent may leave out."""
    if text not in _FEATURES:
        raise ValueError(f"expected one of {', '.join(_FEATURES)}")
    return Need[text.upper()]


def _object(text: str) -> JsonObject:
    value = json.loads(text) if text.startswith("{") else None
    if not isinstance(value, dict):
        raise ValueError('expected a JSON object such as {"text": "hi"}')  # noqa: TRY004 - argparse's way
    return value


class FurtherOptions(TypedDict, total=False):
    """Fields of `LiveAgent` for which not each command has an option."""

    direct: bool
    failing: str | None
    move_clock: MoveClock | None
    restart: Restart | None


@frozen(kw_only=True)
class LiveAgentOptions:
    """The agent under test."""

    url: str = required("URL", _base_url, "base URL of the agent")
    token: str | None = option("--token TOKEN", str, "bearer token of the caller")
    sender: str | None = option("--as URN", urn, "the agent that --token stands for")
    other_token: str | None = option("--other-token TOKEN", str, "bearer token of a second caller")
    other_sender: str | None = option("--other-as URN", urn, "the agent that --other-token stands for")
    skill: str | None = option("--skill NAME", str, "the skill that may be run; without it, only one named echo")
    input: JsonObject | None = option("--input JSON", _object, "the input of that skill")
    without: Sequence[Need] = repeated(
        "--without FEATURE", feature, f"the agent doesn't have this feature: {', '.join(_FEATURES)}"
    )
    owned: bool = flag("--i-own-this-host", "test an agent on another machine, which is yours")

    def visit(self, **further: Unpack[FurtherOptions]) -> tuple[SocketExecutor, Lab]:
        """Fetch its manifest. `further`: fields of `LiveAgent` for which not each command has an option.

        Raises UserError if there's no agent, if it's on another machine and not one's own, or if it refuses a token.
        """
        agent = LiveAgent(
            url=self.url, token=self.token, urn=self.sender, other_token=self.other_token,
            other_urn=self.other_sender, skill=self.skill, input=self.input, without=frozenset(self.without),
            owned=self.owned, **further,
        )  # fmt: skip
        try:
            executor, lab = agent.visit()
        except NotThisMachine as error:
            raise UserError(f"{error}; if it's yours, give --i-own-this-host", usage=True) from None
        except TokenRefused as error:
            raise UserError(f"the agent refuses the token that was given for {error} (401)", usage=True) from None
        except OSError as error:  # of the look-up of its name: what happens later is an answer too
            raise UserError(f"no agent at {self.url}: {error.strerror or error}", code=EXIT_UNREACHABLE) from None
        if isinstance(lab, NoManifest):
            where = f"{self.url.rstrip('/')}{MANIFEST_PATH}"
            raise UserError(f"no manifest of an agent at {where}: {lab.got}", code=EXIT_UNREACHABLE)
        return executor, lab


def lacks_token(lab: Lab) -> bool:
    """Return whether the agent authenticates its callers and no token was given, so that it refuses every call."""
    return bool(lab.manifest.get("auth")) and lab.caller.token is None


LIVE_AGENT_RULES: Final = (
    Needs("--token", ["--as"], "the sender of each envelope is the token's agent"),
    Needs("--other-token", ["--other-as"], "the sender of each envelope is the token's agent"),
    Needs("--input", ["--skill"]),
)
