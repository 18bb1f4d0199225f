"""The command line without processes: what it accepts, what it says, and how it ends. See tests/live for the rest."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asap_adapters.cli import main
from asap_adapters.cli.agent_loading import adapt_agent, import_agent
from asap_adapters.cli.echo_agent import echo_manifest
from asap_adapters.cli.options import token
from asap_adapters.cli.output import card, json_text, table, visible
from asap_adapters.cli.tokens import read_tokens
from asap_adapters.cli.wording import in_words
from asap_core import Agent, Credential, NoncePolicy, Policy, to_json
from asap_core.errors import Allow, BadReply, InvalidDocument, NotAllowed, Problem, RemoteError, Unreachable

ALICE = "urn:asap:agent:alice"
BASE = "http://127.0.0.1:8000"


@pytest.fixture
def asap(capsys):
    """Run the command in this process; returns (exit code, stdout, stderr)."""

    def run(*argv: str):
        code: Any
        try:
            code = main(argv)
        except SystemExit as exited:  # argparse's way
            code = exited.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that can be imported in this test only; returns its name."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def write(text: str, name: str = "written") -> str:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    yield write
    sys.modules.pop("written", None)


OWN = """
from asap_core import Agent, Capabilities, Endpoints, Manifest, Policy, Skill
agent = Agent(Manifest(id="urn:asap:agent:own", name="Own", version="1.0.0", description="",
    capabilities=Capabilities(skills=[Skill(id="up", description="")]),
    endpoints=Endpoints(asap="http://127.0.0.1:1/asap")), policy=Policy(max_body=5000),
    aliases=["urn:asap:agent:alias"])
def up(request, context): ...
handlers = {"up": up}
"""


class TestWhatIsWrongIsSaidInOneLine:
    @pytest.mark.parametrize(
        ("argv", "code", "says"),
        [
            ([], 2, "COMMAND"),
            (["nonsense"], 2, "invalid choice"),
            (["demo", "more"], 2, "unrecognized"),
            (["serve", "--prot", "8000"], 2, "unrecognized arguments: --prot (see asap serve --help)"),
            (["registry", "find", "r.json", "--skil", "x"], 2, "(see asap registry find --help)"),
            (["serve", "adder.py:agent"], 2, "expected a module, not a file: adder:agent"),
            (["discover", "http://example.com"], 1, "--allow-http example.com"),
            (["discover", "https://10.0.0.1"], 1, "it is private (RFC 1918); allow it with --allow-network 10.0.0.0/8"),
            (["discover", "https://example.com:25"], 1, "allow it with --allow-port 25"),
            (["discover", "https://x.example", "--allow-network", "10.0.0.1/8"], 2, "a network such as 10.0.0.0/8"),
            (["discover", "https://x.example", "--allow-port", "0"], 2, "a port from 1 to 65535"),
            (["discover", "127.0.0.1:18000"], 1, "its scheme is missing; expected http://127.0.0.1:18000"),
            (["discover", "http://169.254.169.254"], 1, "link-local (RFC 3927); allow it with --allow-network"),
            (["registry", "find", "file:///etc/registry.json"], 1, "its path without file://"),
            (["discover", "nonsense"], 1, "its scheme is missing; expected https://nonsense"),
            (["discover", ""], 1, "can't be read as a URL"),
            (["discover", "http://[::1"], 1, "can't be read as a URL"),
            (["discover", "http://127.0.0.1:99999"], 1, "can't be read as a URL"),
            (["discover", "ftp://127.0.0.1"], 1, "neither https nor http"),
            (["discover", "http://127.0.0.1/?page=1"], 1, "no query"),
            (["discover", "http://me:hunter2@127.0.0.1"], 1, "it carries credentials; leave them out"),
            (["discover", "http://127.0.0.1:1"], 1, "no answer from http://127.0.0.1:1/"),
            (["discover", "http://127.0.0.1:1", "--expect", "me"], 2, "--expect: expected an agent URN"),
            (["discover", "http://127.0.0.1:1", "--backend", "curio"], 2, "'trio', 'asyncio'"),
            (["discover", "http://127.0.0.1:1", "--ca-file", "no-such-file"], 2, "--ca-file: expected certificates"),
            (["discover", "http://127.0.0.1:1", "--ca-file", __file__], 2, "--ca-file: expected certificates"),
            (["health", "http://127.0.0.1:1"], 1, "can't connect"),
            (["send", "http://127.0.0.1:1"], 2, "--skill"),
            (["send", "http://127.0.0.1:1", "--skill", ""], 2, "--skill: expected some text"),
            (["send", "http://127.0.0.1:1", "--skill", "x", "--input", "{"], 2, "--input: expected"),
            (["send", "http://127.0.0.1:1", "--skill", "x", "--input", "[]"], 2, "--input: expected a JSON object"),
            (["send", "http://127.0.0.1:1", "--skill", "x", "--input", '{"a":1,"a":2}'], 2, "--input: expected"),
            (["send", "http://127.0.0.1:1", "--skill", "x", "--input", "\udcff"], 2, "--input: expected UTF-8"),
            (["send", "http://127.0.0.1:1", "--skill", "x", "--sender", "me"], 2, "--sender: expected an agent URN"),
            (["send", "http://127.0.0.1:1", "--skill", "x", "--token", "hunter2\n"], 2, "--token: expected visible"),
            (["send", "http://127.0.0.1:1", "--skill", "x", "--nonce", ""], 2, "--nonce: expected"),
            (["send", "http://127.0.0.1:1", "--skill", "x", "--idempotency-key", "é"], 2, "1 to 256 visible ASCII"),
            (["send", "http://127.0.0.1:1", "--skill", "x", "--allow-endpoint", "x"], 2, "expected an origin"),
            (["browse", "--wait", "x"], 2, "seconds above 0"),
            (["browse", "--wait", "nan"], 2, "seconds above 0"),
            (["browse", "--wait", "-1"], 2, "seconds above 0"),
            (["registry"], 2, "COMMAND"),
            (["bench"], 2, "COMMAND"),
            (["bench", "admission", "--live", "2000000"], 2, "a number, 1 to 1000000"),
            (["registry", "find", "no-such-file"], 1, "no-such-file: No such file"),
            (["registry", "find", "."], 1, ".: Is a directory"),
            (["registry", "find", "http://127.0.0.1:1/r.json"], 1, "can't connect"),
            (["registry", "find", "x", "--id", "me"], 2, "--id: expected an agent URN"),
            (["registry", "entry", "http://127.0.0.1:1"], 1, "can't connect"),
            (["serve", "no.such.module:agent"], 1, "can't import no.such.module: ModuleNotFoundError"),
            (["serve", "json:loads"], 1, "expected json:loads to be an asap_core.Agent"),
            (["serve", "json"], 2, "pkg.module:agent"),
            (["serve", ":agent"], 2, "pkg.module:agent"),
            (["serve", "..json:agent"], 2, "pkg.module:agent"),
            (["serve", "json:"], 2, "pkg.module:agent"),
            (["serve", "json:loads", "--id", ALICE], 2, "either pkg.module:agent"),
            (["serve", "--host", "0.0.0.0"], 2, "--public-url"),
            (["serve", "--host", "::"], 2, "--public-url"),
            (["serve", "--host", ""], 2, "--public-url"),
            (["serve", "--host", "192.0.2.1"], 2, "without --token anyone"),
            (["serve", "--host", "no-such-host.invalid", "--token", f"t={ALICE}"], 1, "can't listen on no-such-host"),
            (["serve", "--host", "192.0.2.1", "--token", f"t={ALICE}", "--port", "0"], 1, "can't listen on 192.0.2.1"),
            (["serve", "--port", "x"], 2, "from 0 to 65535"),
            (["serve", "--port", "70000"], 2, "from 0 to 65535"),
            (["serve", "--port", "²"], 2, "from 0 to 65535"),
            (["serve", "--public-url", "x"], 2, "--public-url: expected a URL"),
            (["serve", "--public-url", "https://me:hunter2@a.example"], 2, "--public-url: expected a URL"),
            (["serve", "--audience", "a"], 2, "go with --oidc"),
            (["serve", "--oidc", "https://id.example"], 2, "--oidc needs --audience"),
            (["serve", "--oidc", "id.example", "--audience", "a"], 2, "expected as issuer a URL"),
            (
                ["serve", "--oidc", "https://i.example", "--audience", "a", "--agent-claim", "c", "--scope", 'a"'],
                2,
                "scopes: expected",
            ),
            (["serve", "--oidc", "https://i.example", "--audience", "a"], 2, "or --agent-claim NAME"),
            (["serve", "--oidc", "https://i.example", "--audience", "a", "--subject", "x"], 2, "as SUB=URN"),
            (
                ["serve", "--oidc", "https://i.example", "--audience", "a", "--subject", "x=y"],
                2,
                "at least one subject",
            ),
            (
                [
                    "serve",
                    "--oidc",
                    "https://i.example",
                    "--audience",
                    "a",
                    "--subject",
                    f"x={ALICE}",
                    "--agent-claim",
                    "c",
                ],
                2,
                "not both",
            ),
            (
                [
                    "serve",
                    "--oidc",
                    "https://i.example",
                    "--audience",
                    "a",
                    "--agent-claim",
                    "c",
                    "--oidc-network",
                    "x",
                    "--port",
                    "0",
                ],
                2,
                "--oidc-network: ",
            ),
            (["serve", "--token", "hunter2"], 2, "--token: expected TOKEN=URN"),
            (["serve", "--token", "hunter2=me"], 2, "--token: expected an agent URN"),
            (["serve", "--token", f"={ALICE}"], 2, "--token: expected tokens"),
            (["serve", "--token", f"hunter2={ALICE}", "--token", f"hunter2={ALICE}:b"], 2, "every token once"),
            (["serve", "--token-file", "no-such-file"], 1, "no-such-file: No such file"),
            (["serve", "--token-file", sys.executable], 1, "in UTF-8"),
            (["serve", "--workers", "2"], 2, "--workers needs --redis"),
            (["serve", "--workers", "0"], 2, "a number of processes, 1 to 256"),
            (["serve", "--redis", "http://me:hunter2@127.0.0.1"], 2, "--redis: expected a URL such as redis://"),
            (["serve", "--redis", "redis://me:hunter2@127.0.0.1:1", "--port", "0"], 1, "redis at 127.0.0.1:1: "),
            (["serve", "--redis", "redis://x", "--state", "x"], 2, "one place decides"),
            (["serve", "--redis", "redis://x", "--redis-file", "x"], 2, "not both"),
            (["serve", "--redis-file", "no-such-file", "--port", "0"], 1, "no-such-file: No such file"),
            (["serve", "--principal-limit", "many"], 2, "10/second;100/minute"),
            (["serve", "--rate-limit", "many"], 2, "10/second;100/minute"),
            (["serve", "--rate-limit", ""], 2, "10/second;100/minute"),
            (["serve", "--allow-origin", "app.example"], 2, "an origin such as https://app.example, without path"),
            (["serve", "--allow-host", "http://a"], 2, "a name such as agent.example, without scheme and port"),
            (["serve", "--max-body", "0"], 2, "number of bytes"),
            (["serve", "--max-body", "1e9"], 2, "number of bytes"),
            (["serve", "--nonce", "maybe"], 2, "required"),
            (["serve", "--id", "me"], 2, "--id: expected an agent URN"),
            (["serve", "--manifest", "no-such-file", "--port", "0"], 1, "no-such-file: No such file"),
            (["serve", "--manifest", __file__, "--port", "0"], 1, "is not a valid manifest"),
            (["serve", "--tls-cert", "no-such-file"], 1, "no-such-file: No such file"),
            (["serve", "--tls-cert", __file__], 1, "expected a certificate chain and its key in PEM"),
            (["serve", "--tls-key", "x"], 2, "--tls-cert"),
        ],
    )
    def test_with_its_exit_code(self, asap, argv, code, says) -> None:
        ended, out, err = asap(*argv)
        assert (ended, says in err) == (code, True), err
        assert (out, err.count("\n"), err.startswith("asap: ")) == ("", 1, True)
        assert "hunter2" not in err

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("raise RuntimeError('boom')", "RuntimeError: boom (.*written.py, line 1)"),
            ("\nimport sys; sys.exit(3)", "SystemExit: 3 (.*written.py, line 2)"),
            ("def (", r"SyntaxError: invalid syntax \(written.py, line 1\)"),
            ("import no_such_thing", "No module named 'no_such_thing'"),
            ("agent = 5", "to be an asap_core.Agent"),
            (OWN + "handlers = 5", "the mapping `handlers`"),
            (OWN + "handlers = {'up': 5}", "the mapping `handlers`"),
            (OWN + "on = []", "expected `on`"),
            (OWN + "handlers = {}", "expected a handler for every skill"),
            (OWN + "handlers['down'] = up", "every handler's skill in the manifest"),
        ],
    )
    def test_a_module_that_cannot_be_served(self, asap, module, text, says) -> None:
        code, out, err = asap("serve", f"{module(text)}:agent", "--port", "0")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert re.search(says, err), err

    def test_a_bug_of_ours_is_not_hidden(self, monkeypatch, tmp_path) -> None:
        (tmp_path / "r.json").write_text('{"version": "1", "updated_at": "2026-01-01T00:00:00Z", "agents": []}')
        monkeypatch.setattr("asap_core.wire.registry_index.Catalog.find", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["registry", "find", str(tmp_path / "r.json")])


class TestTokens:
    def test_a_token_may_end_in_equals_signs(self) -> None:
        table: Any = read_tokens([f"YWJj=={'='}{ALICE}"], None)
        assert table.verify(Credential("YWJj==")).urn == ALICE

    def test_a_file_has_one_a_line_beside_comments(self, tmp_path) -> None:
        (tmp_path / "tokens").write_text(f"# callers\n\n  one={ALICE}\ntwo={ALICE}:b \n")
        assert len(read_tokens([f"three={ALICE}"], tmp_path / "tokens")) == 3

    @pytest.mark.parametrize(
        ("text", "says"),
        [("", "at least one"), ("# none\n", "at least one"), ("\nhunter2\n", "line 2: expected TOKEN")],
    )
    def test_a_file_without_tokens_opens_nothing(self, asap, tmp_path, text, says) -> None:
        (tmp_path / "tokens").write_text(text)
        code, _, err = asap("serve", "--token-file", str(tmp_path / "tokens"), "--port", "0")
        assert (code > 0, says in err, "hunter2" in err) == (True, True, False)

    def test_what_can_be_a_token(self) -> None:
        assert token("a-b.c~d+e/f=") == "a-b.c~d+e/f="


class TestAnImportedAgent:
    def fit(self, agent, **changes):
        options = {"base_url": BASE, "public": False, "auth": False, "policy": agent.policy}
        return adapt_agent(agent, **{**options, **changes})

    @pytest.fixture
    def own(self, module):
        return import_agent(f"{module(OWN)}:agent").agent

    def test_is_where_it_listens_if_it_said_this_machine(self, own) -> None:
        assert self.fit(own).manifest.endpoints.asap == f"{BASE}/asap"

    def test_is_where_its_author_says_otherwise(self, own) -> None:
        elsewhere = Agent(echo_manifest("urn:asap:agent:own", "https://own.example"))
        assert self.fit(elsewhere) is elsewhere
        there = self.fit(elsewhere, public=True, base_url="https://b.example").manifest
        assert there.endpoints.asap == "https://b.example/asap"

    def test_keeps_what_the_command_line_does_not_say(self, own) -> None:
        made = self.fit(own, policy=Policy(max_body=5000, nonce=NoncePolicy.REQUIRED), auth=True)
        assert (made.addresses, made.payload_types, made.skills) == (own.addresses, own.payload_types, own.skills)
        assert (made.policy.max_body, made.authenticates) == (5000, True)

    def test_a_signature_over_another_endpoint_is_left_out(self) -> None:
        from attrs import evolve

        signed = evolve(echo_manifest("urn:asap:agent:own", "http://127.0.0.1:1"), signature="s")
        assert self.fit(Agent(signed)).manifest.signature is None
        assert self.fit(Agent(signed), base_url="http://127.0.0.1:1").manifest.signature == "s"

    def test_one_of_a_class_of_its_own_is_not_made_anew(self, asap, module) -> None:
        name = module(OWN + "agent.__class__ = type('Mine', (Agent,), {})\n")
        code, _, err = asap("serve", f"{name}:agent", "--port", "0")
        assert (code, "options can't change an agent" in err) == (1, True)

    def test_one_that_authenticates_needs_tokens(self, asap, tmp_path) -> None:
        (tmp_path / "m.json").write_text(json.dumps(to_json(echo_manifest(ALICE, BASE, auth=True))))
        code, _, err = asap("serve", "--manifest", str(tmp_path / "m.json"), "--port", "0")
        assert (code, "expected --token" in err) == (1, True)


class TestWords:
    def test_a_refusal_comes_with_what_to_do(self) -> None:
        refused = RemoteError(code=-32003, message="Seen", taxonomy="asap:protocol/invalid_nonce")
        assert in_words(refused).endswith("leave --nonce out, or give a new one")
        assert in_words(RemoteError(code=1, message="No")) == "the agent refused: No [1]"

    def test_what_is_wrong_with_the_envelope_is_listed_shortly(self) -> None:
        problems = [{"loc": ["envelope", "sender"], "msg": "expected a URN"}, {"msg": "b"}, 5, *[{"msg": "c"}] * 50]
        told = in_words(RemoteError(code=-32602, message="No", details={"validation_errors": problems}))
        assert "No: envelope.sender: expected a URN [-32602]; b; a problem that it doesn't name; c; c" in told
        assert told.count("; c") == 2

    def test_a_document_with_many_problems_makes_a_short_line(self) -> None:
        problems = tuple(Problem(("agents", index), "an entry") for index in range(100))
        assert in_words(InvalidDocument("registry", problems)).endswith("; and 95 more")
        assert "more" not in in_words(InvalidDocument("registry", problems[:5]))

    def test_options_are_the_commands(self) -> None:
        asked = NotAllowed("https://b.example", "r", Allow("allow_endpoints", "https://b.example:443"))
        assert str(asked).endswith("r; allow it with allow_endpoints=['https://b.example:443']")
        assert in_words(asked).endswith("r; allow it with --allow-endpoint https://b.example:443")

    def test_what_the_command_has_no_option_for_is_not_advised(self) -> None:
        redirected = BadReply("https://b.example", "redirects aren't followed", 308, remedy=Allow("redirects", 2))
        assert str(redirected).endswith("redirects aren't followed; allow it with redirects=2")
        assert in_words(redirected).endswith("redirects aren't followed")

    def test_when_to_try_again_is_for_programs_that_go_on(self) -> None:
        assert in_words(Unreachable("https://a.example", "no", 1.0)) == "no answer from https://a.example: no"

    def test_an_error_without_words_has_its_name(self) -> None:
        assert in_words(ValueError()) == "ValueError"
        assert in_words(OSError(2, "No such file", "f")) == "f: No such file"
        assert in_words(OSError(2, "No such file")) == "No such file"


class TestOutput:
    HOSTILE = "a\x1b[31m\r\n\u202eb\x9bc\ud800"

    def test_nothing_of_a_strangers_reaches_the_terminal_raw(self, capsys) -> None:
        card(self.HOSTILE, {self.HOSTILE: self.HOSTILE, "none": None})
        table([self.HOSTILE], [[self.HOSTILE]])
        out = capsys.readouterr().out
        assert out.count("\n") == 4
        assert not any(character in out for character in "\x1b\r\u202e\x9b\ud800")
        assert "none" not in out

    def test_json_stays_the_same_document(self) -> None:
        text = json_text({"é": [self.HOSTILE, "é"]}, indent=2)
        assert json.loads(text) == {"é": [self.HOSTILE, "é"]}
        assert visible(text.replace("\n", "")) == text.replace("\n", "")
        assert "é" in text

    def test_a_terminal_that_lacks_a_character_gets_an_escape(self) -> None:
        code = "from asap_adapters.cli.output import *; write_anything(); say('é'); print_json('é')"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
        )
        assert done.stdout == b'\\xe9\n"\\u00e9"\n'


def test_the_version_is_the_distributions(asap) -> None:
    from importlib.metadata import version

    assert asap("--version")[:2] == (0, f"asap-sansio {version('asap-sansio')}\n")


def test_the_document_of_the_command_has_every_command_and_option(asap) -> None:
    document = (Path(__file__).parents[3] / "docs" / "cli.md").read_text("utf-8")
    for command in (
        "serve",
        "discover",
        "health",
        "send",
        "browse",
        "registry find",
        "registry entry",
        "demo",
        "bench admission",
    ):
        assert f"asap {command}" in document
        for option in re.findall(r"^  (--[a-z-]+)", asap(*command.split(), "--help")[1], re.MULTILINE):
            assert f"`{option}" in document, f"asap {command} {option}"


@pytest.mark.parametrize("command", ["serve", "discover", "health", "send", "browse", "registry", "demo", "bench"])
def test_every_command_has_help(asap, command) -> None:
    code, out, err = asap(command, "--help")
    assert (code, out.startswith(f"usage: asap {command}"), err) == (0, True, "")


def test_redis_without_its_extra_names_the_extra_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "coredis"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "asap_adapters.stores.redis", raising=False)
    monkeypatch.setitem(sys.modules, "coredis", None)
    monkeypatch.setitem(sys.modules, "coredis.connection", None)
    assert main(["serve", "--port", "0", "--redis", "redis://127.0.0.1:1"]) == 1
    assert "pip install 'asap-sansio[redis]'" in capsys.readouterr().err.splitlines()[-1]
