"""How callers of `asap serve` authenticate: the options, and the table of tokens."""

import sys

import pytest
from attrs import fields

import asap_adapters.auth
from asap_adapters.cli.caller_tokens import CallerOptions, read_tokens
from asap_core import Credential
from asap_core.auth.dpop_server import ProofRequirement

ALICE = "urn:asap:agent:alice"
OIDC = "serve --port 0 --oidc https://i.example --audience a"
INTROSPECT = "serve --port 0 --introspect https://i.example/introspect --audience a"


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        ("serve --audience a", 2, "--audience needs --oidc or --introspect"),
        ("serve --scope a", 2, "--scope needs --oidc or --introspect"),
        ("serve --agent-claim a", 2, "--agent-claim needs --oidc or --introspect"),
        (f"serve --subject x={ALICE}", 2, "--subject needs --oidc or --introspect"),
        ("serve --oidc-network 10.0.0.0/8", 2, "--oidc-network needs --oidc or --introspect"),
        ("serve --any-audience", 2, "--any-audience needs --introspect"),
        ("serve --client-id x", 2, "--client-id needs --introspect"),
        ("serve --dpop required", 2, "--dpop needs --oidc"),
        ("serve --dpop-nonce", 2, "--dpop-nonce needs --oidc"),
        ("serve --oidc https://id.example", 2, "--oidc needs --audience: tokens for other services aren't"),
        ("serve --oidc id.example --audience a --agent-claim c", 2, "--oidc: expected as issuer a URL"),
        (f"{OIDC} --scope 'a b'", 2, "--scope: expected one scope"),
        (OIDC, 2, "--oidc needs --subject or --agent-claim"),
        (f"{OIDC} --subject x", 2, "--subject: expected a subject as SUB=URN"),
        (f"{OIDC} --subject x=y", 2, "--subject: expected a subject as SUB=URN"),
        (f"{OIDC} --subject x={ALICE} --agent-claim c", 2, "expected --subject or --agent-claim, not both"),
        (f"{OIDC} --subject x={ALICE} --subject x={ALICE}:b", 2, "expected every --subject once"),
        (f"{OIDC} --agent-claim c --oidc-network x", 2, "--oidc-network: expected a network"),
        (f"{OIDC} --agent-claim c --dpop off --dpop-nonce", 2, "expected --dpop-nonce or --dpop off, not both"),
        (f"{OIDC} --agent-claim c --dpop required --token t={ALICE}", 2, "--dpop required or --token, not both"),
        ("serve --introspect x", 2, "--introspect: expected a URL"),
        ("serve --introspect https://i.example/i", 2, "--introspect needs --audience or --any-audience"),
        (INTROSPECT, 2, "--introspect needs --subject or --agent-claim"),
        (f"{INTROSPECT} --any-audience", 2, "expected --audience or --any-audience, not both"),
        (f"{INTROSPECT} --dpop required", 2, "expected --dpop or --introspect, not both: proofs aren't checked"),
        (f"{INTROSPECT} --agent-claim c", 2, "--introspect needs --client-id"),
        (f"{INTROSPECT} --agent-claim c --client-id x", 2, "needs --client-secret-file or --client-key"),
        (f"{INTROSPECT} --agent-claim c --client-id x --client-secret-file no-such-file", 1, "no-such-file: No such"),
        ("serve --token hunter2", 2, "--token: expected TOKEN=URN"),
        ("serve --token hunter2=me", 2, "--token: expected an agent URN"),
        (f"serve --token ={ALICE}", 2, "--token: expected tokens"),
        (f"serve --token hunter2={ALICE} --token hunter2={ALICE}:b", 2, "every token once"),
        ("serve --token-file no-such-file", 1, "no-such-file: No such file"),
        (["serve", "--token-file", sys.executable], 1, "in UTF-8"),
    ],
)
def test_wrong_options_are_refused(refuses, argv, code, says) -> None:
    refuses(argv, code, says)


class TestTokens:
    def test_a_token_may_end_in_equals_signs(self) -> None:
        found = read_tokens([f"YWJj=={'='}{ALICE}"], None).verify(Credential("YWJj=="))
        assert found is not None
        assert found.urn == ALICE

    def test_a_file_has_one_token_in_a_line_and_comments(self, tmp_path) -> None:
        (tmp_path / "tokens").write_text(f"# callers\n\n  one={ALICE}\ntwo={ALICE}:b \n")
        assert len(read_tokens([f"three={ALICE}"], tmp_path / "tokens")) == 3

    @pytest.mark.parametrize(
        ("text", "says"),
        [("", "at least one"), ("# none\n", "at least one"), ("\nhunter2\n", "line 2: expected TOKEN")],
    )
    def test_a_file_without_tokens_is_refused(self, asap, tmp_path, text, says) -> None:
        (tmp_path / "tokens").write_text(text)
        code, _, err = asap("serve", "--token-file", str(tmp_path / "tokens"), "--port", "0")
        assert (code > 0, says in err, "hunter2" in err) == (True, True, False)


def test_the_error_names_a_missing_extra_in_one_line(refuses, monkeypatch) -> None:
    monkeypatch.delitem(vars(asap_adapters.auth), "JwtAuthenticator", raising=False)
    users = [name for name in sys.modules if name.partition(".")[0] == "joserfc"]
    for name in [*users, "asap_adapters.auth.jwt"]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "joserfc", None)
    says = "asap_adapters.auth needs joserfc, which comes with: pip install 'asap-sansio[jwt]'"
    refuses(f"{OIDC} --agent-claim c", 1, says)


def test_the_choices_of_dpop_are_those_of_the_policy() -> None:
    """They're written twice, so that a server without a provider doesn't load the policy."""
    (row,) = [each.metadata["row"] for each in fields(CallerOptions) if each.name == "dpop"]
    assert row.choices == tuple(each.value for each in ProofRequirement)
    assert row.shown_default == ProofRequirement.ALLOWED.value
