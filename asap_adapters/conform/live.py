"""A live agent as its tester describes it: how it's reached, and the lab that laws are tried in."""

import itertools
import ssl
import time
from urllib.parse import urlsplit

from attrs import evolve, field, frozen

from asap_adapters.conform.hooks import MoveClock, Restart, command_line
from asap_adapters.conform.sockets import SocketExecutor, look_up
from asap_adapters.system import new_token
from asap_core.testing.laws.lab import Lab
from asap_core.testing.laws.runner import Recorder
from asap_core.testing.laws.survey import AgentUnderTest, NoManifest, refused_caller, survey
from asap_core.testing.laws.verdicts import Need
from asap_core.wire.json_values import JsonObject


class TokenRefused(Exception):
    """The agent answers 401 to a token that should be good. Its text is the URN of the caller."""


@frozen(kw_only=True)
class LiveAgent:
    """An agent at a URL. The fields are the options of `asap conform` with these names.

    urn: the agent that `token` stands for; `other_urn`: of `other_token`.
    failing: `--failing-skill`.
    owned: it may be on another machine.
    move_clock, restart: hooks, without which laws that need them aren't tried.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    urn: str | None = None
    other_token: str | None = field(default=None, repr=False)
    other_urn: str | None = None
    skill: str | None = None
    input: JsonObject | None = None
    failing: str | None = None
    without: frozenset[Need] = frozenset()
    direct: bool = False
    owned: bool = False
    move_clock: MoveClock | None = None
    restart: Restart | None = None

    def visit(self) -> tuple[SocketExecutor, Lab | NoManifest]:
        """Fetch the manifest. Returns what laws are run with, or `NoManifest` if there's no agent.

        Raises NotThisMachine if it's on another machine and not `owned`; OSError if its name can't be resolved;
        TokenRefused if a token is good for nothing: laws would be judged by the wrong answers.
        """
        parts = urlsplit(self.url)
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        host = look_up(parts.hostname or "", port, anywhere=self.owned)
        executor = SocketExecutor(host, ssl.create_default_context() if secure else None)
        executor.move_clock, executor.restart = self.move_clock, self.restart
        target = AgentUnderTest(
            host=parts.netloc.rpartition("@")[2], root=parts.path.rstrip("/"), token=self.token, urn=self.urn,
            other_token=self.other_token, other_urn=self.other_urn, skill=self.skill, failing=self.failing,
            without=self.without,
            offers=executor.offers | ({Need.DIRECT} if self.direct else set()),
        )  # fmt: skip
        target = target if self.input is None else evolve(target, input=self.input)
        run, numbers = new_token()[:8], itertools.count()
        steps = survey(target, wall=executor.wall, ids=lambda: f"conform-{run}-{next(numbers)}")
        lab = Recorder(executor, time.monotonic).run(steps)
        if not isinstance(lab, NoManifest):
            refused = Recorder(executor, time.monotonic).run(refused_caller(lab))
            if refused is not None:
                raise TokenRefused(refused.urn)
            lab = evolve(lab, clock_hook=command_line(self.move_clock), reset_hook=command_line(self.restart))
        return executor, lab
