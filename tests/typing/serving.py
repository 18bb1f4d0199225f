"""Code of users that serve agents, for the type checker only; it isn't run."""

from collections.abc import Awaitable
from typing import assert_never

from attrs import evolve

from asap_adapters import (
    TLS,
    Anonymous,
    AsgiApp,
    Authenticated,
    Authenticator,
    BadState,
    BadStore,
    Context,
    Handlers,
    MdnsUnavailable,
    Redis,
    StateFile,
    TokenTable,
    bind_agent,
    listen,
    serve,
)
from asap_adapters.auth import (
    ByClaim,
    BySubject,
    ClientSecret,
    DpopPolicy,
    InsufficientScope,
    IntrospectionAuthenticator,
    IntrospectionPolicy,
    IntrospectionUnavailable,
    JwtAuthenticator,
    ProofOffer,
    ProofRefused,
    Proven,
    ProviderUnavailable,
    TokenPolicy,
)
from asap_adapters.testing import InProcessTransport, in_process
from asap_core import (
    KINDS,
    Agent,
    AuthScheme,
    Capabilities,
    Credential,
    Decision,
    Endpoints,
    Kind,
    Limit,
    Manifest,
    NoncePolicy,
    Policy,
    Principal,
    Skill,
    StartPolicy,
    TaskRequest,
    WallTime,
    What,
    parse_limits,
)

tokens = TokenTable({"token": "urn:asap:agent:you"})
jwt = JwtAuthenticator(
    TokenPolicy(issuer="https://id.example", audience="me", agent=ByClaim("agent"), dpop=DpopPolicy(nonce=True))
)
introspection = IntrospectionAuthenticator(
    IntrospectionPolicy(audience="me", agent=BySubject({"you": "urn:asap:agent:you"}), issuer="https://id.example"),
    ClientSecret("me", "secret"),
)
manifest = Manifest(
    id="urn:asap:agent:me",
    name="Me",
    version="1.0.0",
    description="",
    capabilities=Capabilities(skills=[Skill(id="echo", description="")]),
    endpoints=Endpoints(asap="https://me.example/asap"),
    auth=AuthScheme(schemes=["bearer"]),
)
limits: tuple[Limit, ...] = parse_limits("20/1s")
agent = Agent(
    manifest,
    policy=Policy(
        nonce=NoncePolicy.OR_ID, start=StartPolicy.FLOOR, peer_limits=limits, principal_limits=(Limit(9, 1),)
    ),
)

policies = [
    Policy(nonce="required", start="exact", peer_limits="20/second", principal_limits=[Limit(9, 1)]),
    Policy(scopes={"task.request": "asap.call", "task.cancel": ["asap.call", "asap.cancel"]}),
    evolve(Policy(), scopes=Policy(scopes={"task.request": {"asap.call"}}).scopes),
]
token_policies = [
    TokenPolicy(issuer="https://id.example", audience=["me"], agent=ByClaim("sub"), dpop="required", scopes="asap.call")
]


class Own:
    """An authenticator of one's own, which verifies proofs."""

    proofs = ProofOffer(algs=("ES256",), required=True)

    async def verify(self, credential: Credential) -> Proven | InsufficientScope | ProofRefused | None:
        if credential.proof is None:
            return ProofRefused("a proof")
        if credential.token == "narrow":
            return InsufficientScope(frozenset({"asap.call"}))
        you = Authenticated("urn:asap:agent:you")
        return Proven(principal=you, holder="thumbprint", proof_id="1", issued=WallTime(0.0))


def by_function(credential: Credential) -> Awaitable[Proven | InsufficientScope | ProofRefused | None]:
    return Own().verify(credential)


authenticators: list[Authenticator] = [tokens, jwt, introspection, Own()]


def echo(request: TaskRequest, context: Context) -> object:
    return {"skill": request.skill_id, "for": name(context.principal)}


def name(principal: Principal) -> str:
    match principal:
        case Authenticated(urn):
            return urn
        case Anonymous(peer):
            return peer
        case _:
            assert_never(principal)


def observe(decision: Decision) -> None:
    kind: Kind | None = decision.kind
    if decision.what is not What.ACCEPTED and kind in KINDS:
        raise RuntimeError(decision.peer)


async def run_server() -> str:
    try:
        await serve(
            agent,
            Handlers({"echo": echo}, threads=4),
            at=await listen("127.0.0.1", 0),
            tls=TLS("cert.pem"),
            authenticate=jwt,
            storage=StateFile("state"),
            observe=observe,
        )
        await serve(agent, {"echo": echo}, storage=Redis("redis://127.0.0.1", share_peer_limits=True))
    except (BadState, BadStore, MdnsUnavailable) as error:
        return str(error)
    except (ProviderUnavailable, IntrospectionUnavailable) as error:
        return str(error)
    return bind_agent(agent, observe=observe, metrics=True).url


app = AsgiApp(agent, {"echo": echo}, authenticate=by_function)


async def in_a_test() -> str:
    async with in_process(agent, {"echo": echo}, authenticate=tokens) as client:
        return client.sender


transport = InProcessTransport(agent, Handlers({"echo": echo}))
