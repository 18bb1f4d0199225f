"""Code of users that names the types of what they get and give, for the type checker only; it isn't run."""

import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import assert_never, assert_type

from asap_adapters import BlockingBrowser, BlockingClient, BlockingResolver, Bound, Resolver, VerifyCredential, serve
from asap_core import (
    AckStatus,
    Agent,
    Anonymous,
    ArtifactNotify,
    BadCoding,
    BadHead,
    Clock,
    Codings,
    Credential,
    DpopProof,
    Head,
    HeadReader,
    Inflater,
    Left,
    Limit,
    Limited,
    McpResourceData,
    McpResourceFetch,
    MessageAck,
    MessageSend,
    Moment,
    NotAllowed,
    Outgoing,
    Payload,
    Registry,
    RegistryIndex,
    Remedy,
    Respond,
    Role,
    Skipped,
    StateQuery,
    StateRestore,
    TaskStream,
    TaskUpdate,
    UpdateType,
)
from asap_core.auth import (
    Algorithm,
    ByClaim,
    BySubject,
    ClientCredentials,
    ClientKey,
    ClientSecret,
    DpopPolicy,
    EcKey,
    IntrospectionPolicy,
    OkpKey,
    ProofKey,
    ProofOffer,
    ProofRequirement,
    RsaKey,
    SecretMethod,
    Token,
    TokenPolicy,
    VerificationKey,
)
from asap_core.client import (
    LATE,
    Added,
    Announcement,
    Client,
    DiscoveredAgent,
    DocumentCachePolicy,
    Freshness,
    FreshnessPolicy,
    Heard,
    Ignored,
    IntrospectionUnavailable,
    JwtAuthentication,
    Late,
    Links,
    Program,
    ProviderUnavailable,
    Removed,
    Requests,
    Resolved,
    Runtime,
    SignatureVerifier,
    Source,
    TokenIntrospection,
    TraceEntry,
    TraceVerdict,
    Unresolved,
    UnusableRecord,
    Updated,
    Wanted,
    within,
)
from asap_core.testing import AdmissionStore, ProgramRunner, check_driver, check_store

# --- payloads and documents ------------------------------------------------------------------------------------------


def kind(payload: Payload) -> str:
    match payload:
        case MessageSend(role=Role.USER):
            return "a user's"
        case TaskUpdate(update_type=UpdateType.PROGRESS) | TaskStream():
            return "progress"
        case MessageAck(status=AckStatus.REJECTED):
            return "rejected"
        case StateQuery() | StateRestore() | ArtifactNotify() | McpResourceFetch() | McpResourceData():
            return "data"
        case _:
            return "something else"


def skipped(registry: Registry, index: RegistryIndex) -> list[int]:
    entries: Sequence[Skipped] = registry.skipped
    return [each.index for each in entries] + [len(index.find(skill="echo"))]


def remedy(refused: NotAllowed) -> Remedy | None:
    return refused.remedy


# --- credentials -----------------------------------------------------------------------------------------------------


def credentials(dpop: ProofKey, sign: Callable[[bytes], bytes]) -> list[ClientCredentials]:
    secret = ClientSecret("me", "secret", method=SecretMethod.POST)
    key = ClientKey("me", "ES256", sign)
    return [ClientCredentials(client=each, issuer="https://id.example", dpop=dpop) for each in (secret, key)]


def policies() -> tuple[TokenPolicy, IntrospectionPolicy]:
    dpop = DpopPolicy(proofs=ProofRequirement.REQUIRED, algorithms=["ES256"])
    tokens = TokenPolicy(
        issuer="https://id.example",
        audience={"me"},
        agent=BySubject({"1": "urn:asap:agent:a"}),
        algorithms=["Ed25519"],
        dpop=dpop,
    )
    return tokens, IntrospectionPolicy(audience={"me"}, agent=ByClaim("agent"))


def key_type(key: VerificationKey) -> str:
    if key.algorithm is Algorithm.RS256:
        return "RSA"
    match key:
        case OkpKey():
            return "OKP"
        case EcKey():
            return "EC"
        case RsaKey():
            return "RSA"
        case _:
            assert_never(key)


async def nobody(credential: Credential) -> None:
    proof: DpopProof | None = credential.proof
    assert proof is None or proof.method == "POST"


verify: VerifyCredential = nobody


async def authenticate(program: Program[object]) -> None:
    with suppress(ProviderUnavailable, IntrospectionUnavailable):
        program.close()


def authentication(runtime: Runtime, requests: Requests, holds: SignatureVerifier) -> ProofOffer | None:
    tokens, introspection = policies()
    opaque = TokenIntrospection(
        runtime, requests, introspection, client=ClientSecret("me", "secret"), secret=b"", endpoint="https://id.example"
    )
    jwt = JwtAuthentication(runtime, requests, tokens, verify_signature=holds, verify_proof=holds, secret=b"")
    return opaque.proofs or jwt.proofs


# --- what a client's programs return ---------------------------------------------------------------------------------


def limited(client: Client, clock: Clock, credentials: ClientCredentials) -> Program[Token | None]:
    token = yield from within(3.0, client.token(credentials), clock)
    assert_type(token, Token | Late)
    return None if token is LATE else token


def trace(client: Client) -> Program[Sequence[TraceEntry]]:
    end = yield from client.explain("urn:asap:agent:a")
    match end:
        case Resolved(Wanted(), trace):
            return [entry for entry in trace if entry.verdict is TraceVerdict.TAKEN]
        case Unresolved(_, trace):
            return trace
        case _:
            assert_never(end)


def is_old(found: DiscoveredAgent) -> bool:
    freshness: Freshness | None = found.freshness
    return found.source is Source.STALE_ERROR or freshness is None or not freshness.store


kept = DocumentCachePolicy(freshness=FreshnessPolicy(default=60.0))
links: Links = lambda _interface: (["192.0.2.7/24"], ["eth0"])  # noqa: E731


def heard(heard: Heard) -> Announcement | str:
    match heard.event:
        case Added(announcement) | Updated(announcement) | Removed(announcement):
            return announcement
        case Ignored(UnusableRecord() as record):
            return record.reason
        case _:
            assert_never(heard.event)


# --- what a driver, a resolver and a listener handle -----------------------------------------------------------------


class Deflate:
    """A content coding of one's own."""

    def __init__(self) -> None:
        self._inside = zlib.decompressobj()

    def inflate(self, data: bytes, room: int) -> bytes:
        try:
            return self._inside.decompress(data, room)
        except zlib.error:
            raise BadCoding("expected a zlib stream") from None

    @property
    def pending(self) -> bool:
        return bool(self._inside.unconsumed_tail)

    @property
    def finished(self) -> bool:
        return self._inside.eof


made: Inflater = Deflate()
codings: Codings = {b"deflate": Deflate}


def head(data: bytes) -> Head | None:
    found = HeadReader(max_size=65_536, max_fields=100).feed(data)
    return None if isinstance(found, BadHead) else found


def sent(state: Respond, agent: Agent, cancel: Callable[[], None]) -> Moment:
    outgoing: Outgoing | None = state.outgoing
    if outgoing is not None:
        outgoing.reset = cancel
    return agent.moment()


def share(taken: Limited | tuple[Left, ...]) -> float | list[Limit]:
    return taken.retry_after if isinstance(taken, Limited) else [left.limit for left in taken]


class Table:
    """A resolver of one's own."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        return [host] if port else []


class BlockingTable:
    """The same for threads."""

    def resolve(self, host: str, port: int) -> Sequence[str]:
        return [host] if port else []


resolvers: tuple[Resolver, BlockingResolver] = Table(), BlockingTable()


def watch(client: BlockingClient) -> BlockingBrowser:
    return client.browse()


async def listening(agent: Agent, bound: Bound) -> None:
    await serve(agent, {}, at=bound, authenticate=verify)


def store(opened: Callable[[], AdmissionStore]) -> None:
    check_store(lambda _clock: opened)


def driver(made: Callable[[Client], ProgramRunner]) -> None:
    check_driver(made, lacks=["cancelling"])


def who(anonymous: Anonymous) -> str | None:
    return anonymous.peer
