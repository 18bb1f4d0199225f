"""The public names of each package. Everything else may move without notice."""

import ast
import importlib
from pathlib import Path

import pytest

PUBLIC = {
    "asap_core": """
        AdmissionAnswer AdmissionQuestion Admit Admitted Advice Agent AgentChanged Allow Anonymous AnswerGone
        Answered AsapError AuthScheme Authenticate Authenticated BadHead BadReply BadState BadStore CallState
        Capabilities ClaimProof Clock Counters Credential Decision Dispatch Done Endpoints Envelope
        Exchange Floored Fork FunctionClock Future HANDLER_TIMEOUT HeadReader Health Hold Instant InsufficientScope
        InvalidDocument InvalidTransition KINDS Kind Left Limit Load Manifest ManualClock McpToolCall
        McpToolResult MdnsUnavailable MessageAck MessageSend Mismatch NoToken NoncePolicy NotAllowed NotResolved
        OutboundPolicy OutcomeUnknown Payload Policy Principal Problem ProofRefused Proven PublicKey ReadBody
        Record Refusal Registry RegistryEntry RemoteError Replayed Replied Request RequestBody Reservation Respond
        Response Running Saturated Skill Stale StartPolicy StoreUnavailable Stored TakeLimit Task TaskCancel TaskRequest
        TaskResponse TaskStatus TaskUpdate TimedOut TokenTable Unreachable Unsuitable Unverified WallTime What
        WrongAgent broken_call decode_envelope encode_envelope outcome_to_json parse_limits read_health
        read_manifest read_outcome read_registry refuse_head to_json
    """,
    "asap_core.client": """
        Barred BodyReader BreakerPolicy Client Completed Dial DiscoveredAgent DiscoveryOptions
        DocumentCachePolicy Effect Expired Fetch FileIdentity FileRead FileToWrite Heard HttpExchange
        JwtAuthentication LocalNetwork Next OutboundPolicy Outcome Program ReadFile Received Remark
        RequestOptions Requests RetryPolicy Returned Route Runtime Sleep Stage Ticket TokenIntrospection
        TrustPolicy Unanswered Unavailable Wait WriteFile step
    """,
    "asap_core.testing": """
        ExchangeMachine Reply Target broken_documents check_store envelope_documents envelopes json_values local_target
        manifests request_bodies requests urns
    """,
    "asap_adapters": """
        AgentChanged AgentClient Anonymous AsapError AsgiApp Authenticated Authenticator BadReply BadState
        BadStore BlockingClient BlockingHttpOptions BreakerPolicy Context DiscoveredAgent DiscoveryOptions
        DocumentCachePolicy Handlers HttpOptions InvalidDocument InvalidTransition MdnsUnavailable NoToken
        NotAllowed NotResolved OutboundPolicy Redis RemoteError RetryPolicy StateFile TLS TaskFailed
        TimedOut TokenTable TrustPolicy Unreachable Unsuitable Unverified WrongAgent bind_agent listen run serve
    """,
    "asap_adapters.auth": """
        ByClaim BySubject ClientCredentials ClientKey ClientSecret DpopKey DpopPolicy
        InsufficientScope IntrospectionAuthenticator IntrospectionPolicy IntrospectionUnavailable
        JwtAuthenticator PrivateKey ProofOffer ProofRefused Proven ProviderUnavailable TokenPolicy
        read_client_key
    """,
    "asap_adapters.testing": """
        InProcessTransport in_process
    """,
}
NAMES = {module: names.split() for module, names in PUBLIC.items()}
STORES = {
    "AdmissionAnswer", "AdmissionQuestion", "AnswerGone", "Floored", "Future", "Left", "Mismatch", "OutcomeUnknown",
    "Replayed", "Reservation", "Running", "Saturated", "Stale", "Stored", "check_store", "outcome_to_json",
    "read_outcome",
}  # fmt: skip
DRIVERS = {"FunctionClock"}
USERS = Path(__file__).parent / "typing"


@pytest.mark.parametrize("module", PUBLIC)
def test_a_package_offers_exactly_its_public_names(module: str) -> None:
    offered = importlib.import_module(module)
    assert sorted(offered.__all__) == sorted(NAMES[module])
    assert all(hasattr(offered, name) for name in NAMES[module])
    assert set(NAMES[module]) <= set(dir(offered))


def test_the_number_of_public_names_is_bounded() -> None:
    """At most 150 for those who call and serve agents, and more for those who write a store or a driver."""
    others = {name for module, names in NAMES.items() if module != "asap_core.client" for name in names}
    assert len(others - STORES - DRIVERS) <= 150
    assert others >= STORES | DRIVERS
    assert len(set(NAMES["asap_core.client"])) <= 50


@pytest.mark.parametrize("module", PUBLIC)
def test_typed_code_of_users_uses_each_of_them(module: str) -> None:
    """Faces count together: an exception of both is one class, used from either."""
    used: set[str] = set()
    for path in USERS.glob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        loaded = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        used |= {alias.name for node in imports if node.module in NAMES for alias in node.names} & loaded
        assert not [
            node.module for node in imports if str(node.module).startswith("asap_") and node.module not in NAMES
        ]
    assert set(NAMES[module]) <= used
