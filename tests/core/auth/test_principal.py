"""Credentials and principals: tokens are read strictly, looked up by digest and shown nowhere."""

from typing import Any

import pytest

from asap_core.admission.admission import AdmissionQuestion
from asap_core.auth.principal import (
    Anonymous,
    Authenticated,
    BadCredential,
    Credential,
    TokenTable,
    read_credential,
    sender_rule,
)


class TestWho:
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
    def test_tokens_that_cannot_be_are_refused(self, tokens) -> None:
        with pytest.raises(ValueError, match="expected"):
            TokenTable(tokens)

    def test_a_table_takes_the_longest_token_that_a_header_may_have(self) -> None:
        assert len(TokenTable({"t" * 8192: "urn:asap:agent:a"})) == 1

    @pytest.mark.parametrize("value", [b"Bearer abc", b"bearer   abc ", b"BEARER abc", b" Bearer abc"])
    def test_a_bearer_token_is_read(self, value) -> None:
        assert read_credential(((b"authorization", value),)) == Credential("abc")

    @pytest.mark.parametrize(("length", "kind"), [(8192, Credential), (8193, BadCredential)])
    def test_a_token_has_a_longest_length(self, length, kind) -> None:
        assert type(read_credential(((b"authorization", b"Bearer " + b"t" * length),))) is kind

    def test_a_question_shows_no_nonce(self) -> None:
        facts: Any = {"sender": "s", "authenticated": True, "peer": "", "issued": 0.0, "deadline": 1.0}
        secrets: Any = {"nonce": "hush-nonce", "idempotency_key": "hush-key", "digest": b"hush"}
        assert "hush" not in repr(AdmissionQuestion(**facts, **secrets))

    def test_nobody_is_held_to_a_name_that_was_not_proven(self) -> None:
        assert sender_rule(Anonymous("192.0.2.1"), "urn:asap:agent:a") is None
        assert sender_rule(Authenticated("urn:asap:agent:a"), "urn:asap:agent:a") is None
        assert sender_rule(Authenticated("urn:asap:agent:a"), "urn:asap:agent:b") is not None
