"""An introspection response, and the policy that accepts it."""

from typing import Any

from asap_core.auth.claims import ByClaim
from asap_core.auth.introspection_response import (
    IntrospectionPolicy,
)

ALICE, AUDIENCE, WALL = "urn:asap:agent:alice", "urn:asap:agent:echo", 1_800_000_000.0


GOOD: Any = {
    "active": True, "sub": ALICE, "aud": AUDIENCE, "iss": "https://id.example", "exp": WALL + 300, "iat": WALL - 5,
    "scope": "read write", "token_type": "Bearer", "client_id": "c", "username": "u",
}  # fmt: skip


POLICY = IntrospectionPolicy(audience=AUDIENCE, agent=ByClaim("sub"), issuer="https://id.example", scopes=["read"])
