"""Verifying JWTs, every signature being good: when keys are fetched, and which tokens are remembered."""

from typing import Any

import pytest
from attrs import evolve

from asap_core.auth.claims import Accepted, Rejected
from asap_core.auth.jwks import KeySet
from asap_core.auth.jwt import JwtVerifier, KeysUnavailable, NeedKeys, VerifySignature
from tests.core.auth.tokens import GOOD, KEY, KEYS, NOW, WALL, judge, policy, token, verifier
from tests.moments import moment


class TestKeys:
    def test_a_token_without_kid_is_verified_by_the_only_key_of_its_kind(self) -> None:
        assert isinstance(judge(token(kid=None)), Accepted)
        assert isinstance(judge(token(kid=None), verifier(KeySet((KEY, evolve(KEY, kid="k2"))))), Rejected)
        assert isinstance(judge(token(kid=None, alg="RS256")), Rejected)

    def test_an_empty_key_set_is_fetched_again_for_a_token_without_kid(self) -> None:
        state = verifier(KeySet(())).open(token(kid=None), at=moment(NOW + 31, WALL))
        assert state.fetch.again

    def test_two_keys_with_the_same_kid_verify_nothing(self) -> None:
        made = verifier(KeySet((KEY, evolve(KEY, x=bytes(32)))))
        assert judge(token(), made) == Rejected("a key of the issuer's")

    def test_a_forged_signature_causes_no_fetch(self) -> None:
        state = verifier().open(token(), at=moment(NOW, WALL))
        assert (state.key, state.bad()) == (KEY, Rejected("a signature by the issuer's key"))
        assert isinstance(judge(token(signature=bytes(10))), Rejected)

    def test_an_unknown_key_is_fetched_once_in_the_cool_down(self) -> None:
        made = verifier()
        first = made.open(token(kid="k2"), at=moment(NOW + 31, WALL))
        assert first.fetch.again
        second = made.open(token(kid="k3"), at=moment(NOW + 31, WALL))
        assert second.fetch.again  # joins: it may come to the fetch before the first does
        new = KeySet((KEY, evolve(KEY, kid="k2")))
        assert isinstance(first.fetched(new, age=0, at=moment(NOW + 32, WALL)), VerifySignature)
        assert isinstance(second.fetched(new, age=0, at=moment(NOW + 32, WALL)), Rejected)
        assert isinstance(made.open(token(kid="k4"), at=moment(NOW + 61, WALL)), Rejected)
        assert made.open(token(kid="k4"), at=moment(NOW + 62, WALL)).fetch.again

    def test_a_key_set_older_than_the_cached_one_changes_nothing(self) -> None:
        made = verifier()
        late = made.open(token(kid="k2"), at=moment(NOW + 31, WALL))
        late.fetched(KeySet(()), age=40, at=moment(NOW + 31, WALL))
        assert made.ring.keys == KEYS

    def test_without_keys_a_token_cannot_be_verified(self) -> None:
        made: Any = JwtVerifier(policy(), secret=b"s" * 32)
        state = made.open(token(), at=moment(NOW, WALL))
        assert (state.fetch.again, state.fetch.patience) == (False, None)
        assert state.unavailable(at=moment(NOW, WALL)) == KeysUnavailable()
        assert made.open(token(), at=moment(NOW, WALL)) == KeysUnavailable()
        assert isinstance(made.open(token(), at=moment(NOW + 1, WALL)), NeedKeys)

    def test_a_caller_that_leaves_after_the_answer_is_no_failure(self) -> None:
        made: Any = JwtVerifier(policy(), secret=b"s" * 32)
        one, two = (made.open(token(), at=moment(NOW, WALL)) for _ in range(2))
        assert isinstance(one.fetched(KEYS, age=0, at=moment(NOW, WALL)), VerifySignature)
        assert isinstance(two.unavailable(at=moment(NOW + 1, WALL)), VerifySignature)
        # A failure would have put the next question off.
        assert isinstance(made.open(token(kid="k2"), at=moment(NOW + 31, WALL)), NeedKeys)
        assert isinstance(made.open(token(), at=moment(NOW + 301, WALL)), NeedKeys)

    def test_an_outage_is_bridged_and_bounded(self) -> None:
        made = verifier()
        for second in range(300, 3_900, 10):
            state = made.open(token(), at=moment(NOW + second, WALL))
            if isinstance(state, NeedKeys):
                state = state.unavailable(at=moment(NOW + second, WALL))
            assert isinstance(state, VerifySignature), second
        state = made.open(token(), at=moment(NOW + 3_900, WALL))
        state = state.unavailable(at=moment(NOW + 3_900, WALL)) if isinstance(state, NeedKeys) else state
        assert state == KeysUnavailable()

    def test_an_unknown_key_during_an_outage_makes_keys_unavailable(self) -> None:
        made = verifier()
        state = made.open(token(kid="k2"), at=moment(NOW + 31, WALL))
        assert state.unavailable(at=moment(NOW + 31, WALL)) == KeysUnavailable()
        assert isinstance(made.open(token(), at=moment(NOW + 31, WALL)), VerifySignature)

    def test_a_caller_that_leaves_causes_no_second_fetch(self) -> None:
        made = verifier()
        made.open(token(kid="k2"), at=moment(NOW + 31, WALL)).abandon(now=NOW + 31)
        assert made.open(token(kid="k2"), at=moment(NOW + 32, WALL)) == KeysUnavailable()
        one, two = (made.open(token(kid="k2"), at=moment(NOW + 61, WALL)) for _ in range(2))
        one.abandon(now=NOW + 61)
        assert isinstance(two.fetched(KEYS, age=0, at=moment(NOW + 61, WALL)), Rejected)
        one.abandon(now=NOW + 62)  # too late to matter
        assert isinstance(made.open(token(), at=moment(NOW + 62, WALL)), VerifySignature)

    def test_patience_grows_with_a_slow_provider(self) -> None:
        made, found = verifier(), []
        for round_ in range(7):
            state = made.open(token(), at=moment(NOW + 300 + 30 * round_, WALL))
            found.append(state.fetch.patience)
            state.unavailable(at=moment(NOW + 300 + 30 * round_, WALL))
        assert found == [1, 2, 4, 8, 16, 32, 32]


class TestRemembering:
    def test_a_known_token_needs_no_second_signature_check(self) -> None:
        made = verifier()
        first = judge(token(), made)
        assert made.open(token(), at=moment(NOW + 1, WALL + 1)) == first
        assert len(made) == 1
        assert {len(digest) for digest in made._known} == {16}  # and not the token

    def test_the_table_shows_no_token(self) -> None:
        tables = [verifier(secret=bytes([number]) * 32) for number in (1, 2)]
        for made in tables:
            judge(token(), made)
        assert len(tables[0]) == len(tables[1]) == 1
        assert not set(tables[0]._known) & set(tables[1]._known)

    @pytest.mark.parametrize(("now", "wall"), [(NOW + 90, WALL), (NOW, WALL + 90)])
    def test_a_cached_verdict_ends_on_the_clock_that_is_first(self, now, wall) -> None:
        made = verifier()
        judge(token(), made)
        assert isinstance(made.open(token(), at=moment(now, wall)), VerifySignature)
        assert len(made) == 0

    def test_a_cached_verdict_ends_with_its_key(self) -> None:
        made = verifier()
        judge(token(), made)
        made.ring.keys = KeySet((evolve(KEY, x=bytes(32)),))
        assert isinstance(made.open(token(), at=moment(NOW, WALL)), VerifySignature)

    def test_a_refused_token_is_not_cached(self) -> None:
        made = verifier()
        judge(token({**GOOD, "aud": "x"}), made)
        assert len(made) == 0

    def test_the_number_of_cached_verdicts_is_bounded(self) -> None:
        made = verifier(max_known=2)
        for number in (1, 2):
            judge(token({**GOOD, "jti": number}), made)
        judge(token({**GOOD, "jti": 1}), made)
        judge(token({**GOOD, "jti": 3}), made)
        assert len(made) == 2
        assert isinstance(made.open(token({**GOOD, "jti": 1}), at=moment(NOW, WALL)), Accepted)
        assert isinstance(made.open(token({**GOOD, "jti": 2}), at=moment(NOW, WALL)), VerifySignature)
