"""What a server asks whom a credential stands for: the protocol of authenticators."""

from collections.abc import Awaitable
from typing import Protocol

from attrs import frozen

from asap_core.auth.principal import AuthenticationResult, Credential, ProofOffer


class VerifyCredential(Protocol):
    """A function in place of an authenticator. It verifies no proofs, so no credential comes with one."""

    def __call__(self, credential: Credential, /) -> Awaitable[AuthenticationResult] | AuthenticationResult:
        """Return whom the credential stands for, as `Authenticator.verify` does."""
        ...


class Authenticator(Protocol):
    """Decides whom a credential stands for: `serve(…, authenticate=…)` takes one."""

    @property
    def proofs(self) -> ProofOffer | None:
        """Which DPoP proofs (RFC 9449) it verifies. None: it verifies none, and no credential comes with one."""
        ...

    def verify(self, credential: Credential) -> Awaitable[AuthenticationResult] | AuthenticationResult:
        """Return whom the credential stands for, or None if it isn't good. It may be async.

        Raises OSError if that can't be decided now: the caller is answered 503.
        """
        ...


@frozen
class _FunctionAuthenticator:
    verify: VerifyCredential
    proofs: ProofOffer | None = None


def as_authenticator(given: Authenticator | VerifyCredential) -> Authenticator:
    """Return `given` if it is an authenticator, the one whose `verify` it is, or else one that calls it.

    Raises ValueError if `proofs` isn't a `ProofOffer` or None.
    """
    owner: object = getattr(given, "__self__", None)
    found: object = owner if getattr(owner, "verify", None) == given else given
    if not (hasattr(found, "verify") and hasattr(found, "proofs")):
        return _FunctionAuthenticator(given)  # type: ignore[arg-type] # no authenticator, so a function
    if not isinstance(found.proofs, ProofOffer | None):
        raise ValueError("authenticate: expected an authenticator whose proofs are a ProofOffer or None")  # noqa: TRY004 - as for all that's given
    return found
