"""Credentials and principals: tokens are read strictly, looked up by digest and shown nowhere."""

from typing import Any

import pytest

from asap_core.admission.admission import AdmissionQuestion
from asap_core.auth.principal import (
    Authenticated,
    BadCredential,
    Credential,
    InsufficientScope,
    ProofOffer,
    TokenTable,
    challenge,
    insufficient_scope,
    read_credential,
)


class TestPrincipals:
    def test_tokens_are_looked_up_by_digest_and_shown_nowhere(self) -> None:
        table = TokenTable({"t": "urn:asap:agent:a"})
        assert table.verify(Credential("t")) == Authenticated("urn:asap:agent:a")
        assert table.verify(Credential("\ud800")) is None
        assert len(table) == 1
        assert "'t'" not in repr(Credential("t"))

    @pytest.mark.parametrize(
        "tokens",
        [*({token: "urn:asap:agent:a"} for token in ("", "a b", "a\tb", "é", "t" * 8193)), {"t": "me"}],
    )
    def test_invalid_tokens_are_refused(self, tokens) -> None:
        with pytest.raises(ValueError, match="expected"):
            TokenTable(tokens)

    def test_a_value_that_is_not_a_mapping_is_refused_with_its_type(self) -> None:
        with pytest.raises(ValueError, match=r"tokens: expected a mapping .*; not list"):
            TokenTable(["t"])  # type: ignore[arg-type]

    def test_a_table_takes_the_longest_token_that_a_header_may_have(self) -> None:
        assert len(TokenTable({"t" * 8192: "urn:asap:agent:a"})) == 1

    @pytest.mark.parametrize("value", [b"Bearer abc", b"bearer   abc ", b"BEARER abc", b" Bearer abc"])
    def test_a_bearer_token_is_read(self, value) -> None:
        assert read_credential(((b"authorization", value),)) == Credential("abc")

    def test_a_token_is_read_with_every_character_but_the_spaces_around_it(self) -> None:
        assert read_credential(((b"authorization", b"Bearer \t?a=b?\t "),)) == Credential("?a=b?")

    def test_a_bearer_token_is_read_as_such_if_proofs_are_accepted_too(self) -> None:
        headers = ((b"authorization", b"Bearer abc"), (b"dpop", b"proof"))
        assert read_credential(headers, method="POST", url="https://a.example/asap") == Credential("abc")

    @pytest.mark.parametrize(("scheme", "proves"), [("Bearer", False), ("DPoP", True)])
    def test_an_unreadable_token_is_refused_with_a_message_for_its_scheme(self, scheme: str, proves: bool) -> None:
        read = read_credential(((b"authorization", f"{scheme} a b".encode()),), url="https://a.example/asap")
        expected = f"Authorization: {scheme} and a token of 1 to 8192 visible ASCII characters"
        assert read == BadCredential(expected, proves)

    @pytest.mark.parametrize(("length", "kind"), [(8192, Credential), (8193, BadCredential)])
    def test_a_token_has_a_longest_length(self, length, kind) -> None:
        assert type(read_credential(((b"authorization", b"Bearer " + b"t" * length),))) is kind

    def test_the_repr_of_a_question_shows_no_nonce(self) -> None:
        facts: Any = {"sender": "s", "authenticated": True, "peer": "", "issued": 0.0, "deadline": 1.0}
        secrets: Any = {"nonce": "hush-nonce", "idempotency_key": "hush-key", "digest": b"hush"}
        assert "hush" not in repr(AdmissionQuestion(**facts, **secrets))

    def test_callers_of_one_agent_are_equal_with_any_scopes_and_keys(self) -> None:
        assert Authenticated("urn:asap:agent:a", frozenset({"read"}), "key") == Authenticated("urn:asap:agent:a")

    @pytest.mark.parametrize("scopes", [frozenset[str](), frozenset({"read", 'wr"ite'})])
    def test_invalid_scopes_in_insufficient_scope_are_refused(self, scopes: frozenset[str]) -> None:
        with pytest.raises(ValueError, match="scopes: expected words"):
            InsufficientScope(scopes)


class TestChallenges:
    """The scheme that the caller used says what was wrong; without a word about proofs, it's Bearer."""

    def test_a_challenge_has_its_error_in_the_bearer_scheme(self) -> None:
        offered = challenge(ProofOffer(algs=("ES256",)), error="invalid_token")
        assert offered == 'Bearer realm="asap", error="invalid_token", DPoP realm="asap", algs="ES256"'

    def test_a_challenge_has_missing_scopes_in_the_bearer_scheme(self) -> None:
        expected = 'Bearer realm="asap", error="insufficient_scope", scope="a b"'
        assert insufficient_scope(frozenset({"b", "a"})) == expected
