"""An authenticator that asks an identity provider over HTTP: how it's opened and closed, and how requests are made."""

from typing import Final

from asap_adapters.coding import CODINGS
from asap_adapters.driver import DriverOwner, ProgramDriver
from asap_adapters.net.outbound_transport import HttpOptions
from asap_core.arguments import expect_kind, moved_to
from asap_core.client.requests import Requests
from asap_core.net.outbound import OutboundPolicy

REPLACED: Final = {
    **moved_to("outbound=OutboundPolicy(…)", OutboundPolicy),
    **moved_to("http=HttpOptions(…)", HttpOptions),
}
"""The keywords of earlier versions, for `replaced`."""


class ProviderAuthenticator(DriverOwner):
    """Runs the core's programs over connections of its own. Use it inside `async with`, or call `aclose()`.

    outbound: where the provider may be.
    http: how it's asked.

    Raises ValueError if an argument is invalid.
    """

    def __init__(self, outbound: OutboundPolicy | None, http: HttpOptions | None) -> None:
        outbound, http = outbound or OutboundPolicy(), http or HttpOptions()
        expect_kind("outbound", outbound, OutboundPolicy, "OutboundPolicy(allow_networks=['10.0.0.0/8'])")
        expect_kind("http", http, HttpOptions, "HttpOptions(timeout=10.0)")
        self._driver = ProgramDriver(http, owner=f"{type(self).__name__}(…)")
        self._requests = Requests(
            self._driver.runtime, policy=outbound, codings=CODINGS, timeout=http.timeout, compress=http.compress
        )
