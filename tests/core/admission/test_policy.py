"""The policy: its fields are checked when it's made."""

from typing import Any

import pytest

from asap_core import (
    NoncePolicy,
    Policy,
    StartPolicy,
    parse_limits,
)


class TestPolicy:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("max_body", 0), ("max_body", 1.5), ("max_body", True), ("max_batch", "50"), ("max_age", 0),
            ("max_age", float("inf")), ("max_age", float("nan")), ("skew", -1), ("hold", -1), ("drain", None),
            ("nonce", "sometimes"), ("start", "late"), ("peer_limits", "often"), ("peer_limits", ["10/second"]),
            ("peer_limits", 10), ("profile", "lenient"), ("require_id", "no"), ("max_depth", 301),
            ("handler_deadline", 31), ("trusted_proxies", ["x"]), ("max_bodies", 10_485_759),
        ],
    )  # fmt: skip
    def test_an_invalid_value_is_refused_when_the_policy_is_made(self, field, value) -> None:
        with pytest.raises(ValueError, match=r"expected|must be") as caught:
            Policy(**{field: value})
        assert field in str(caught.value) or "10.0.0.0/8" in str(caught.value) or "10/second" in str(caught.value)

    def test_limits_and_names_may_be_written_as_text(self) -> None:
        written: Any = {"peer_limits": "5/minute", "nonce": "off", "start": "exact", "principal_limits": ""}
        policy = Policy(**written)
        assert policy.peer_limits == parse_limits("5/minute")
        assert (policy.nonce, policy.start, policy.principal_limits) == (NoncePolicy.OFF, StartPolicy.EXACT, ())
        assert Policy().peer_limits == parse_limits("10/second;100/minute")
