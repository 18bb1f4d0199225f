"""The public names of each package. Everything else may move without notice."""

import ast
import importlib
import inspect
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_origin, get_type_hints

import attrs
import pytest

PUBLIC = {
    "asap_core": """
        AckStatus AdmissionAnswer AdmissionQuestion Admit Admitted Advice Agent AgentChanged Allow Anonymous
        AnswerGone Answered ArtifactNotify AsapError AuthScheme Authenticate Authenticated BadCoding BadHead
        BadReply BadState BadStore CallState Capabilities ClaimProof Clock Codings Counters Credential Decision
        Dispatch Done DpopProof Endpoints Envelope Exchange Floored Fork FunctionClock Future HANDLER_TIMEOUT Head
        HeadReader Health Hold Inflater Instant InsufficientScope InvalidDocument InvalidTransition KINDS Kind Left
        Limit Limited Load Manifest ManualClock McpResourceData McpResourceFetch McpToolCall McpToolResult
        MdnsUnavailable MessageAck MessageSend Mismatch Moment NoToken NoncePolicy NotAllowed NotResolved
        OutboundPolicy OutcomeUnknown Outgoing Payload Policy Principal Problem ProofRefused Proven PublicKey
        ReadBody Record Refusal Registry RegistryEntry RegistryIndex Remedy RemoteError Replayed Replied Request
        RequestBody Reservation Respond Response Role Running Saturated Skill Skipped Stale StartPolicy StateQuery
        StateRestore StoreUnavailable Stored TakeLimit Task TaskCancel TaskRequest TaskResponse TaskStatus
        TaskStream TaskUpdate TimedOut TokenTable Unreachable Unsuitable Unverified UpdateType WallTime What
        WrongAgent broken_call decode_envelope encode_envelope outcome_to_json parse_limits read_health
        read_manifest read_outcome read_registry refuse_head to_json
    """,
    "asap_core.auth": """
        Algorithm ByClaim BySubject ClientCredentials ClientKey ClientSecret DpopPolicy EcKey IntrospectionPolicy
        OkpKey ProofKey ProofOffer ProofRequirement RsaKey SecretMethod Token TokenPolicy VerificationKey
    """,
    "asap_core.client": """
        Added Announcement Barred BodyReader BreakerPolicy Client Completed Dial DiscoveredAgent DiscoveryOptions
        DocumentCachePolicy Effect Expired Fetch FileIdentity FileRead FileToWrite Freshness FreshnessPolicy Heard
        HttpExchange Ignored IntrospectionUnavailable JwtAuthentication LATE Late Links LocalNetwork Next
        OutboundPolicy Outcome Program ProviderUnavailable ReadFile Received Remark Removed RequestOptions Requests
        Resolved RetryPolicy Returned Route Runtime SignatureVerifier Sleep Source Stage Ticket TokenIntrospection
        TraceEntry TraceVerdict TrustPolicy Unanswered Unavailable Unresolved UnusableRecord Updated Wait Wanted
        WriteFile step within
    """,
    "asap_core.testing": """
        AdmissionStore CallerArrives CallerLeaves ConnectionFaults Cut Delayed DirectionFaults ExchangeMachine
        NearlyValid NearlyValidHead NearlyValidToken OutcomeScript ProgramRunner Reply Schedule ScriptedAnswer
        ScriptedDriver ScriptedRun Target TimePasses TokenIssuer WallClockSteps broken_documents check_driver
        check_store cuts envelope_documents envelopes heads json_values key_sets local_target manifests
        nearly_valid_announcements nearly_valid_envelopes nearly_valid_heads nearly_valid_key_sets
        nearly_valid_manifests nearly_valid_registry_entries nearly_valid_tokens network_scripts outcome_scripts
        request_bodies requests schedules tokens urns
    """,
    "asap_adapters": """
        AgentChanged AgentClient Anonymous AsapError AsgiApp Authenticated Authenticator BadReply BadState BadStore
        BlockingBrowser BlockingClient BlockingHttpOptions BlockingResolver Bound BreakerPolicy Context
        DiscoveredAgent DiscoveryOptions DocumentCachePolicy Handlers HttpOptions InvalidDocument InvalidTransition
        MdnsUnavailable NoToken NotAllowed NotResolved OutboundPolicy Redis RemoteError Resolver RetryPolicy
        StateFile TLS TaskFailed TimedOut TokenTable TrustPolicy Unreachable Unsuitable Unverified VerifyCredential
        WrongAgent bind_agent listen run serve
    """,
    "asap_adapters.auth": """
        ByClaim BySubject ClientCredentials ClientKey ClientSecret DpopKey DpopPolicy
        InsufficientScope IntrospectionAuthenticator IntrospectionPolicy IntrospectionUnavailable
        JwtAuthenticator PrivateKey ProofOffer ProofRefused Proven ProviderUnavailable TokenPolicy
        read_client_key
    """,
    "asap_adapters.testing": """
        InProcessTransport MemoryNetwork in_process
    """,
}
NAMES = {module: names.split() for module, names in PUBLIC.items()}
STORES = {
    "AdmissionAnswer", "AdmissionQuestion", "AnswerGone", "Floored", "Future", "Left", "Mismatch", "OutcomeUnknown",
    "Replayed", "Reservation", "Running", "Saturated", "Stale", "Stored", "check_store", "outcome_to_json",
    "read_outcome",
}  # fmt: skip
# Those who write a driver of a server need these too.
DRIVERS = {
    "Admit", "Answered", "Authenticate", "BadCoding", "BadHead", "CallState", "ClaimProof", "Codings", "Dispatch",
    "Done", "Exchange", "Fork", "FunctionClock", "Head", "HeadReader", "Hold", "Inflater", "Limited", "Moment",
    "Outgoing", "ReadBody", "Record", "RequestBody", "Respond", "StoreUnavailable", "TakeLimit", "broken_call",
    "refuse_head",
}  # fmt: skip
# A driver of a client, its checks, and credentials on another runtime.
CHECKS = {"Delayed", "ProgramRunner", "ScriptedAnswer", "ScriptedDriver", "ScriptedRun", "check_driver"}
# Strategies: tests of any of these draw from them.
DRAWN = {
    "CallerArrives", "CallerLeaves", "ConnectionFaults", "Cut", "DirectionFaults", "NearlyValid", "NearlyValidHead",
    "NearlyValidToken", "OutcomeScript", "Schedule", "TimePasses", "TokenIssuer", "WallClockSteps",
    "broken_documents", "cuts", "envelope_documents", "envelopes", "heads", "json_values", "key_sets", "manifests",
    "nearly_valid_announcements", "nearly_valid_envelopes", "nearly_valid_heads", "nearly_valid_key_sets",
    "nearly_valid_manifests", "nearly_valid_registry_entries", "nearly_valid_tokens", "network_scripts",
    "outcome_scripts", "request_bodies", "requests", "schedules", "tokens", "urns",
}  # fmt: skip
CLIENTS = {"asap_core.client": 70, "asap_core.auth": 20}
# Classes that stand in signatures of public names, and whose names nobody needs.
NOT_NEEDED = {
    "DocumentParser": "programs make each BodyReader",
    "FilePath": "pathlib.Path is one",
    "Proximity": "programs make each Route",
    "RegistryEntries": "a Sequence of RegistryEntry",
    "TokenKey": "programs call ClientCredentials.key",
    "WordIndex": "readers make each RegistryIndex",
}
# Made by users and by drivers. Only programs, and the driver of the server, call their methods.
HANDED_ON = {"Handlers", "OutboundPolicy", "Requests", "Runtime"}
USERS = Path(__file__).parent / "typing"


@pytest.mark.parametrize("module", PUBLIC)
def test_a_package_offers_exactly_its_public_names(module: str) -> None:
    offered = importlib.import_module(module)
    assert sorted(offered.__all__) == sorted(NAMES[module])
    assert all(hasattr(offered, name) for name in NAMES[module])
    assert set(NAMES[module]) <= set(dir(offered))


def test_the_number_of_public_names_is_bounded() -> None:
    """At most 150 for those who call and serve agents, and more for those who write a store, a driver or a test."""
    others = {name for module, names in NAMES.items() if module not in CLIENTS for name in names}
    assert len(others - STORES - DRIVERS - CHECKS - DRAWN) <= 150
    assert others >= STORES | DRIVERS | CHECKS | DRAWN
    for module, most in CLIENTS.items():
        assert len(NAMES[module]) <= most, module


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


# --- signatures ------------------------------------------------------------------------------------------------------


def offered_by(faces: str) -> dict[str, Any]:
    """The public names of the packages whose names begin with this."""
    found = {module: importlib.import_module(module) for module in PUBLIC if module.startswith(faces)}
    return {name: getattr(face, name) for module, face in found.items() for name in NAMES[module]}


def hints_of(annotated: Any, module: str) -> dict[str, Any]:
    """Its own annotations, evaluated."""
    own = SimpleNamespace(__annotations__=inspect.get_annotations(annotated))
    return get_type_hints(own, vars(sys.modules[module]), offered_by(""))


def classes_in(hint: Any) -> set[type]:
    """The classes of this library that a type names."""
    parts = [part for arg in get_args(hint) for part in (arg if isinstance(arg, list) else [arg])]
    found = {kind for kind in (hint, get_origin(hint)) if isinstance(kind, type)}
    return {kind for kind in found if kind.__module__.startswith("asap_")}.union(*map(classes_in, parts))


def function_of(member: Any) -> Any:
    """The function that a member of a class runs."""
    if isinstance(member, property):
        return member.fget
    if isinstance(member, cached_property):
        return member.func
    return getattr(member, "__wrapped__", None) or getattr(member, "__func__", member)


def hints_in(value: Any) -> Iterator[tuple[str, Any]]:
    """What stands in a signature, and where: a field, a parameter, a return type, a part of a union."""
    if inspect.isfunction(value):
        yield from hints_of(value, value.__module__).items()
    elif not isinstance(value, type):
        yield "", value
    else:
        for kind in (each for each in value.__mro__ if each.__module__.startswith("asap_")):
            fields = hints_of(kind, kind.__module__)
            yield from ((name, hint) for name, hint in fields.items() if not name.startswith("_"))
            for name, member in vars(kind).items():
                function = function_of(member)
                is_offered = not name.startswith("_") and value.__name__ not in HANDED_ON
                is_constructor = name == "__init__" and not attrs.has(kind)
                if inspect.isfunction(function) and (is_offered or is_constructor or name == "__call__"):
                    hints = hints_of(function, kind.__module__)
                    yield from ((f"{name}({where})", hint) for where, hint in hints.items())


def missing_of(faces: str) -> dict[str, list[str]]:
    """The classes that public signatures name, and that aren't public; each with where it stands."""
    offered = offered_by(faces)
    public = {id(value) for value in offered.values()}
    found = defaultdict(list)
    for name, value in offered.items():
        for where, hint in hints_in(value):
            for kind in classes_in(hint):
                if id(kind) not in public:
                    found[kind.__name__].append(f"{name}.{where}")
    return found


# The adapters' names may need the core's, not the other way round.
@pytest.mark.parametrize("faces", ["asap_core", "asap"])
def test_every_class_in_a_public_signature_is_public(faces: str) -> None:
    """Or it's listed with the reason why nobody needs its name."""
    missing = missing_of(faces)
    assert {name: where for name, where in missing.items() if name not in NOT_NEEDED} == {}
    assert set(missing) == set(NOT_NEEDED), "no longer in any signature"


def test_a_class_that_is_missing_is_found() -> None:
    """`Route.reach` is a field, `BodyReader` a constructor's parameter, `RegistryIndex.agents` a return type."""
    missing = missing_of("asap_core")
    assert "Route.reach" in missing["Proximity"]
    assert "BodyReader.__init__(parser)" in missing["DocumentParser"]
    assert any(where.endswith("agents(return)") for where in missing["RegistryEntries"])
