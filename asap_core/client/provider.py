"""An identity provider's metadata, by programs: fetched once for all; outbound policy judges the URLs in it."""

from typing import Final

from asap_core.auth.provider_metadata import MAX_METADATA, ProviderMetadata, metadata_urls, read_metadata
from asap_core.client.body_reader import WholeParser
from asap_core.client.document_cache import DocumentCachePolicy
from asap_core.client.documents import Documents
from asap_core.client.programs import Program
from asap_core.client.requests import Requests
from asap_core.client.runtime import Runtime
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

    Raises: ValueError if the issuer isn't a valid one.
    """

    def __init__(self, runtime: Runtime, requests: Requests, issuer: str, *, fresh_for: float = FRESH_FOR) -> None:
        self.issuer = issuer
        self._urls = metadata_urls(issuer)
        self._requests = requests
        self._documents: Documents[ProviderMetadata] = Documents(
            runtime,
            requests,
            parser=lambda: WholeParser(lambda data: read_metadata(data, issuer=issuer)),
            limit=MAX_METADATA,
            policy=DocumentCachePolicy(freshness=FreshnessPolicy(default=fresh_for, most=fresh_for)),
        )

    def name(self) -> None:
        """Note that the user named this issuer: any address that policy allows is allowed for it."""
        self._requests.name_origin(self._urls[0])

    def endpoint(self, name: str) -> Program[Allowed]:
        """Return the URL of that name in the metadata, such as `token_endpoint`.

        Raises `BadReply` if the metadata has none, `NotAllowed` if outbound policy forbids it, or it is nearer than the
        provider itself, and what `metadata` raises.
        """
        url: str | None = getattr((yield from self.metadata()), name)
        if url is None:
            raise BadReply(without_credentials(self.issuer), f"expected a provider that has a {name}")
        return self._requests.judge(url, named_by=self.issuer)

    def metadata(self) -> Program[ProviderMetadata]:
        """Return the metadata, cached or fetched. Raises an `AsapError` if it is unavailable."""
        first, second = self._urls
        try:
            return (yield from self._documents.find(first)).document
        except BadReply as error:
            if error.status != _HTTP_NOT_FOUND:
                raise
        return (yield from self._documents.find(second)).document
