"""The client: `Client`, whose methods return programs, and what a driver needs to run them on any runtime.

Each name is imported on first use, as in `asap_core`.
"""

from typing import TYPE_CHECKING, Final

from asap_core.lazy_imports import lazy_names

if TYPE_CHECKING:
    from asap_core.client.body_reader import BodyReader as BodyReader
    from asap_core.client.breaker import BreakerPolicy as BreakerPolicy
    from asap_core.client.client import Client as Client
    from asap_core.client.delivery import RetryPolicy as RetryPolicy
    from asap_core.client.discovery import DiscoveredAgent as DiscoveredAgent
    from asap_core.client.document_cache import DocumentCachePolicy as DocumentCachePolicy
    from asap_core.client.file_to_write import FileToWrite as FileToWrite
    from asap_core.client.http_exchange import HttpExchange as HttpExchange
    from asap_core.client.jwt_authentication import JwtAuthentication as JwtAuthentication
    from asap_core.client.options import (
        DiscoveryOptions as DiscoveryOptions,
        RequestOptions as RequestOptions,
        TrustPolicy as TrustPolicy,
    )
    from asap_core.client.programs import (
        Barred as Barred,
        Completed as Completed,
        Effect as Effect,
        Expired as Expired,
        Fetch as Fetch,
        FileIdentity as FileIdentity,
        FileRead as FileRead,
        Heard as Heard,
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
    )
    from asap_core.client.requests import Requests as Requests
    from asap_core.client.runtime import Remark as Remark, Runtime as Runtime
    from asap_core.client.token_introspection import TokenIntrospection as TokenIntrospection
    from asap_core.net.outbound import Dial as Dial, OutboundPolicy as OutboundPolicy

_HOMES: Final = {
    "asap_core.client.body_reader": "BodyReader",
    "asap_core.client.breaker": "BreakerPolicy",
    "asap_core.client.client": "Client",
    "asap_core.client.delivery": "RetryPolicy",
    "asap_core.client.discovery": "DiscoveredAgent",
    "asap_core.client.document_cache": "DocumentCachePolicy",
    "asap_core.client.file_to_write": "FileToWrite",
    "asap_core.client.http_exchange": "HttpExchange",
    "asap_core.client.jwt_authentication": "JwtAuthentication",
    "asap_core.client.options": "DiscoveryOptions RequestOptions TrustPolicy",
    "asap_core.client.programs": (
        "Barred Completed Effect Expired Fetch FileIdentity FileRead Heard LocalNetwork Next Outcome Program "
        "ReadFile Received Returned Route Sleep Stage Ticket Unanswered Unavailable Wait WriteFile step"
    ),
    "asap_core.client.requests": "Requests",
    "asap_core.client.runtime": "Remark Runtime",
    "asap_core.client.token_introspection": "TokenIntrospection",
    "asap_core.net.outbound": "Dial OutboundPolicy",
}

__all__ = sorted(name for names in _HOMES.values() for name in names.split())  # noqa: PLE0605 - the table above

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
