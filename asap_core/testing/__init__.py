"""The fuzz kit: Hypothesis strategies and state machines, to test this implementation, another, or a store.

Install the extra `fuzz`. Not part of the pure core: no other module imports it.
"""

from asap_core.testing.machine import ExchangeMachine, Reply, Target, local_target
from asap_core.testing.stores import AdmissionStore, check_store
from asap_core.testing.strategies import (
    broken_documents,
    envelope_documents,
    envelopes,
    json_values,
    manifests,
    request_bodies,
    requests,
    urns,
)

__all__ = [
    "AdmissionStore",
    "ExchangeMachine",
    "Reply",
    "Target",
    "broken_documents",
    "check_store",
    "envelope_documents",
    "envelopes",
    "json_values",
    "local_target",
    "manifests",
    "request_bodies",
    "requests",
    "urns",
]
