"""An identity provider's metadata: fetched once for all that need it; the URLs in it are judged by outbound policy."""

from typing import Final

from asap_adapters.net.documents import Documents, WholeReader
from asap_adapters.net.transport import HttpTransport
from asap_adapters.system import LoopClock
from asap_core.auth.provider import MAX_METADATA, ProviderMetadata, metadata_urls, read_metadata
from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.errors import BadReply
from asap_core.http.caching import FreshnessPolicy
from asap_core.net.outbound import Allowed
from asap_core.net.urls import without_credentials

_HTTP_NOT_FOUND: Final = 404
# As long as key sets; endpoints change less often.
FRESH_FOR: Final = 300.0


class Provider:
    """One issuer and its metadata.

    fresh_for: seconds for which metadata is kept at most; while the provider can't be reached, a day

    Raises ValueError if the issuer isn't a valid one.
    """

    def __init__(self, http: HttpTransport, clock: LoopClock, issuer: str, *, fresh_for: float = FRESH_FOR) -> None:
        self.issuer = issuer
        self._urls = metadata_urls(issuer)
        self._http = http
        self._documents: Documents[ProviderMetadata] = Documents(
            http,
            clock,
            reader=lambda: WholeReader(lambda data: read_metadata(data, issuer=issuer)),
            limit=MAX_METADATA,
            policy=DocumentCachePolicy(freshness=FreshnessPolicy(default=fresh_for, most=fresh_for)),
        )

    def name(self) -> None:
        """Note that the user named this issuer: any address that policy allows is allowed for it."""
        self._http.name_origin(self._urls[0])

    async def endpoint(self, name: str) -> Allowed:
        """Return the URL of that name in the metadata, such as `token_endpoint`.

        Raises `BadReply` if the metadata has none, `NotAllowed` if outbound policy forbids it, or it is nearer than the
        provider itself, and what `metadata` raises.
        """
        url: str | None = getattr(await self.metadata(), name)
        if url is None:
            raise BadReply(without_credentials(self.issuer), f"expected a provider that has a {name}")
        return self._http.judge(url, named_by=self.issuer)

    async def metadata(self) -> ProviderMetadata:
        """Return the metadata, cached or fetched. Raises an `AsapError` if it is unavailable."""
        first, second = self._urls
        try:
            return (await self._documents.find(first)).document
        except BadReply as error:
            if error.status != _HTTP_NOT_FOUND:
                raise
        return (await self._documents.find(second)).document
