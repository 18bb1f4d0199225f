"""The client: `Client`, whose methods return programs, and what a driver needs to run them on any runtime.

Each name is imported on first use, as in `asap_core`.
"""

from typing import TYPE_CHECKING, Final

from asap_core.lazy_imports import lazy_names

if TYPE_CHECKING:
    from asap_core.client.announced_manifests import Links as Links
    from asap_core.client.body_reader import BodyReader as BodyReader
    from asap_core.client.breaker import BreakerPolicy as BreakerPolicy
    from asap_core.client.client import Client as Client
    from asap_core.client.delivery import RetryPolicy as RetryPolicy
    from asap_core.client.discovery import DiscoveredAgent as DiscoveredAgent
    from asap_core.client.document_cache import DocumentCachePolicy as DocumentCachePolicy
    from asap_core.client.fetch_results import Source as Source
    from asap_core.client.file_to_write import FileToWrite as FileToWrite
    from asap_core.client.http_exchange import HttpExchange as HttpExchange
    from asap_core.client.jwt_authentication import (
        JwtAuthentication as JwtAuthentication,
        ProviderUnavailable as ProviderUnavailable,
        SignatureVerifier as SignatureVerifier,
    )
    from asap_core.client.options import (
        DiscoveryOptions as DiscoveryOptions,
        RequestOptions as RequestOptions,
        TrustPolicy as TrustPolicy,
    )
    from asap_core.client.programs import (
        LATE as LATE,
        Barred as Barred,
        Completed as Completed,
        Effect as Effect,
        Expired as Expired,
        Fetch as Fetch,
        FileIdentity as FileIdentity,
        FileRead as FileRead,
        Heard as Heard,
        Late as Late,
        LocalNetwork as LocalNetwork,
        Next as Next,
        Outcome as Outcome,
        Program as Program,
        ReadFile as ReadFile,
        Received as Received,
        Returned as Returned,
        Route as Route,
        Sleep as Sleep,
        Stage as Stage,
        Ticket as Ticket,
        Unanswered as Unanswered,
        Unavailable as Unavailable,
        Wait as Wait,
        WriteFile as WriteFile,
        step as step,
        within as within,
    )
    from asap_core.client.requests import Requests as Requests
    from asap_core.client.runtime import Remark as Remark, Runtime as Runtime
    from asap_core.client.search import (
        Resolved as Resolved,
        TraceEntry as TraceEntry,
        TraceVerdict as TraceVerdict,
        Unresolved as Unresolved,
    )
    from asap_core.client.token_introspection import (
        IntrospectionUnavailable as IntrospectionUnavailable,
        TokenIntrospection as TokenIntrospection,
    )
    from asap_core.client.trust import Wanted as Wanted
    from asap_core.http.caching import Freshness as Freshness, FreshnessPolicy as FreshnessPolicy
    from asap_core.mdns.dnssd import (
        Added as Added,
        Announcement as Announcement,
        Ignored as Ignored,
        Removed as Removed,
        UnusableRecord as UnusableRecord,
        Updated as Updated,
    )
    from asap_core.net.outbound import Dial as Dial, OutboundPolicy as OutboundPolicy

_HOMES: Final = {
    "asap_core.client.announced_manifests": "Links",
    "asap_core.client.body_reader": "BodyReader",
    "asap_core.client.breaker": "BreakerPolicy",
    "asap_core.client.client": "Client",
    "asap_core.client.delivery": "RetryPolicy",
    "asap_core.client.discovery": "DiscoveredAgent",
    "asap_core.client.document_cache": "DocumentCachePolicy",
    "asap_core.client.fetch_results": "Source",
    "asap_core.client.file_to_write": "FileToWrite",
    "asap_core.client.http_exchange": "HttpExchange",
    "asap_core.client.jwt_authentication": "JwtAuthentication ProviderUnavailable SignatureVerifier",
    "asap_core.client.options": "DiscoveryOptions RequestOptions TrustPolicy",
    "asap_core.client.programs": (
        "Barred Completed Effect Expired Fetch FileIdentity FileRead Heard LATE Late LocalNetwork Next Outcome "
        "Program ReadFile Received Returned Route Sleep Stage Ticket Unanswered Unavailable Wait WriteFile step "
        "within"
    ),
    "asap_core.client.requests": "Requests",
    "asap_core.client.search": "Resolved TraceEntry TraceVerdict Unresolved",
    "asap_core.client.trust": "Wanted",
    "asap_core.client.runtime": "Remark Runtime",
    "asap_core.client.token_introspection": "IntrospectionUnavailable TokenIntrospection",
    "asap_core.http.caching": "Freshness FreshnessPolicy",
    "asap_core.mdns.dnssd": "Added Announcement Ignored Removed UnusableRecord Updated",
    "asap_core.net.outbound": "Dial OutboundPolicy",
}

__all__ = sorted(name for names in _HOMES.values() for name in names.split())  # noqa: PLE0605 - the table above

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
