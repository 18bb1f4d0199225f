"""Authenticators: objects that say which proofs they verify, and bare functions, which verify none."""

from types import SimpleNamespace
from typing import Any

import pytest

from asap_adapters.auth.authenticator import as_authenticator
from asap_core import Authenticated, Credential, TokenTable
from asap_core.auth.principal import ProofOffer

ALICE = "urn:asap:agent:alice"
OFFER = ProofOffer(algs=("ES256",))


class Verifying:
    proofs = OFFER

    def verify(self, _credential: Credential) -> Authenticated | None:
        return Authenticated(ALICE)

    def other(self, _credential: Credential) -> Authenticated | None:
        return None


def test_an_authenticator_is_returned_unchanged() -> None:
    for one in (Verifying(), TokenTable({"t": ALICE})):
        assert as_authenticator(one) is one


def test_a_bound_method_verify_gives_its_authenticator() -> None:
    one = Verifying()
    assert as_authenticator(one.verify) is one
    table = TokenTable({"t": ALICE})
    assert as_authenticator(table.verify) is table


def test_a_plain_function_verifies_no_proofs() -> None:
    def verify(_credential: Credential) -> Authenticated | None:
        return Authenticated(ALICE)

    verify.proofs = OFFER  # type: ignore[attr-defined] # no longer read
    for function in (verify, Verifying().other):
        made = as_authenticator(function)
        assert (made.verify, made.proofs) == (function, None)


@pytest.mark.parametrize("proofs", ["all", True, ["ES256"]])
def test_a_proofs_attribute_of_another_type_is_an_error(proofs) -> None:
    wrong: Any = SimpleNamespace(verify=Verifying().verify, proofs=proofs)
    with pytest.raises(ValueError, match="expected an authenticator whose proofs are a ProofOffer or None"):
        as_authenticator(wrong)
