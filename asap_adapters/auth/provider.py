"""An identity provider as it describes itself: fetched once for all who need it, and what it names judged by policy."""

from typing import Final

from asap_adapters.clock import LoopClock
from asap_adapters.net.documents import Documents, Whole
from asap_adapters.net.transport import Web
from asap_core.auth.provider import MAX_METADATA, ProviderMetadata, metadata_urls, read_metadata
from asap_core.client.document_cache import DirectoryPolicy
from asap_core.errors import BadReply
from asap_core.http.freshness import FreshnessPolicy
from asap_core.net.outbound import Allowed
from asap_core.net.urls import without_credentials

_HTTP_NOT_FOUND: Final = 404
# As keys are: a provider changes its endpoints less often.
FRESH_FOR: Final = 300.0


class Provider:
    """One issuer, and what it says of itself. Raises ValueError where the issuer can't be one.

    It's kept for `fresh_for` seconds at most, and for a day while the provider is out of reach.
    """

    def __init__(self, web: Web, clock: LoopClock, issuer: str, *, fresh_for: float = FRESH_FOR) -> None:
        self.issuer = issuer
        self._urls = metadata_urls(issuer)
        self._web = web
        self._documents: Documents[ProviderMetadata] = Documents(
            web,
            clock,
            reader=lambda: Whole(lambda data: read_metadata(data, issuer=issuer)),
            limit=MAX_METADATA,
            policy=DirectoryPolicy(freshness=FreshnessPolicy(default=fresh_for, most=fresh_for)),
        )

    def name(self) -> None:
        """The caller named this issuer: it may be as near as policy lets anything be."""
        self._web.name_origin(self._urls[0])

    async def endpoint(self, name: str) -> Allowed:
        """The URL of that name in its metadata, such as `token_endpoint`, if it may be asked.

        Raises `BadReply` where it has none, `NotAllowed` where policy or the provider's own place keeps us from asking
        there, and what kept its metadata from being had.
        """
        url: str | None = getattr(await self.metadata(), name)
        if url is None:
            raise BadReply(without_credentials(self.issuer), f"expected a provider that has a {name}")
        return self._web.judge(url, named_by=self.issuer)

    async def metadata(self) -> ProviderMetadata:
        """What it says of itself, kept or fetched."""
        first, second = self._urls
        try:
            return (await self._documents.find(first)).document
        except BadReply as error:
            if error.status != _HTTP_NOT_FOUND:
                raise
        return (await self._documents.find(second)).document
