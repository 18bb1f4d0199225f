"""Binds a core client to what both clients of this package give it: decoders, this machine's links, a verifier."""

from asap_adapters.coding import CODINGS
from asap_adapters.net.interfaces import links
from asap_core.client.client import Client
from asap_core.client.options import TrustPolicy
from asap_core.client.runtime import Runtime


def bind_client(client: Client, runtime: Runtime, trust: TrustPolicy | None) -> Client:
    """Bind a client. Returns it. Raises ImportError if `trust` needs an extra that isn't installed."""
    if trust is not None and (trust.trusted_keys or trust.require_signed):
        import asap_adapters.auth.signing_key  # noqa: F401, PLC0415 - a missing extra is reported at once
    return client.bind(runtime, codings=CODINGS, links=links, verify=_verify)


def _verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    from asap_adapters.auth.signing_key import verify  # noqa: PLC0415 - an optional extra

    return verify(public_key, signature, message)
