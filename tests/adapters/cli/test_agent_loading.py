"""The agent that `asap serve pkg.module:agent` loads, with the options of the command line."""

import json
import re

import pytest
from attrs import evolve

from asap_adapters.cli.agent_loading import adapt_agent, import_agent
from asap_adapters.cli.echo_agent import echo_manifest
from asap_core import Agent, NoncePolicy, Policy, to_json

ALICE = "urn:asap:agent:alice"
BASE = "http://127.0.0.1:8000"
OWN = """
from asap_core import Agent, Capabilities, Endpoints, Manifest, Policy, Skill
agent = Agent(Manifest(id="urn:asap:agent:own", name="Own", version="1.0.0", description="",
    capabilities=Capabilities(skills=[Skill(id="up", description="")]),
    endpoints=Endpoints(asap="http://127.0.0.1:1/asap")), policy=Policy(max_body=5000),
    aliases=["urn:asap:agent:alias"])
def up(request, context): ...
handlers = {"up": up}
"""


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        ("serve adder.py:agent", 2, "expected a module, not a file: adder:agent"),
        ("serve no.such.module:agent", 1, "can't import no.such.module: ModuleNotFoundError"),
        ("serve json:loads", 1, "expected json:loads to be an asap_core.Agent"),
        ("serve json", 2, "pkg.module:agent"),
        ("serve :agent", 2, "pkg.module:agent"),
        ("serve ..json:agent", 2, "pkg.module:agent"),
        ("serve json:", 2, "pkg.module:agent"),
        (f"serve json:loads --id {ALICE}", 2, "expected pkg.module:agent or --id, not both"),
    ],
)
def test_a_wrong_name_is_refused(refuses, argv, code, says) -> None:
    refuses(argv, code, says)


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
def test_a_module_that_cannot_be_served_is_refused(asap, module, text, says) -> None:
    code, out, err = asap("serve", f"{module(text)}:agent", "--port", "0")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert re.search(says, err), err


class TestAnImportedAgent:
    def fit(self, agent, **changes):
        options = {"base_url": BASE, "public": False, "auth": False, "policy": agent.policy}
        return adapt_agent(agent, **{**options, **changes})

    @pytest.fixture
    def own(self, module):
        return import_agent(f"{module(OWN)}:agent").agent

    def test_an_imported_agent_on_this_machine_is_published_where_it_listens(self, own) -> None:
        assert self.fit(own).manifest.endpoints.asap == f"{BASE}/asap"

    def test_an_imported_agent_elsewhere_keeps_its_url(self, own) -> None:
        elsewhere = Agent(echo_manifest("urn:asap:agent:own", "https://own.example"))
        assert self.fit(elsewhere) is elsewhere
        there = self.fit(elsewhere, public=True, base_url="https://b.example").manifest
        assert there.endpoints.asap == "https://b.example/asap"

    def test_an_imported_agent_keeps_what_the_command_line_does_not_set(self, own) -> None:
        made = self.fit(own, policy=Policy(max_body=5000, nonce=NoncePolicy.REQUIRED), auth=True)
        assert (made.addresses, made.payload_types, made.skills) == (own.addresses, own.payload_types, own.skills)
        assert (made.policy.max_body, made.authenticates) == (5000, True)

    def test_a_signature_over_another_endpoint_is_left_out(self) -> None:
        signed = evolve(echo_manifest("urn:asap:agent:own", "http://127.0.0.1:1"), signature="s")
        assert self.fit(Agent(signed)).manifest.signature is None
        assert self.fit(Agent(signed), base_url="http://127.0.0.1:1").manifest.signature == "s"

    def test_an_agent_of_a_subclass_is_not_copied(self, asap, module) -> None:
        name = module(OWN + "agent.__class__ = type('Mine', (Agent,), {})\n")
        code, _, err = asap("serve", f"{name}:agent", "--port", "0")
        assert (code, "options can't change an agent" in err) == (1, True)

    def test_an_agent_that_authenticates_needs_tokens(self, asap, tmp_path) -> None:
        (tmp_path / "m.json").write_text(json.dumps(to_json(echo_manifest(ALICE, BASE, auth=True))))
        code, _, err = asap("serve", "--manifest", str(tmp_path / "m.json"), "--port", "0")
        assert (code, "expected --token" in err) == (1, True)
