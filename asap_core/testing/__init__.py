"""The test kit: Hypothesis strategies, state machines and laws, to test an implementation, a store or a driver.

Install the extra `fuzz`; the laws (`asap_core.testing.laws`) don't need it. Not part of the pure core: no other module
imports it. Each name is imported on first use, as in `asap_core`.
"""

from typing import TYPE_CHECKING, Final

from asap_core.lazy_imports import lazy_names

if TYPE_CHECKING:
    from asap_core.testing.bodies import request_bodies as request_bodies
    from asap_core.testing.caller_schedules import (
        CallerArrives as CallerArrives,
        CallerLeaves as CallerLeaves,
        Schedule as Schedule,
        TimePasses as TimePasses,
        WallClockSteps as WallClockSteps,
        schedules as schedules,
    )
    from asap_core.testing.driver_trial import ProgramRunner as ProgramRunner
    from asap_core.testing.drivers import check_driver as check_driver
    from asap_core.testing.head_rules import (
        NearlyValidHead as NearlyValidHead,
        heads as heads,
        nearly_valid_heads as nearly_valid_heads,
    )
    from asap_core.testing.key_set_rules import (
        key_sets as key_sets,
        nearly_valid_key_sets as nearly_valid_key_sets,
    )
    from asap_core.testing.machine import (
        ExchangeMachine as ExchangeMachine,
        Reply as Reply,
        Target as Target,
        local_target as local_target,
    )
    from asap_core.testing.nearly_valid import (
        NearlyValid as NearlyValid,
        nearly_valid_announcements as nearly_valid_announcements,
        nearly_valid_envelopes as nearly_valid_envelopes,
        nearly_valid_manifests as nearly_valid_manifests,
        nearly_valid_registry_entries as nearly_valid_registry_entries,
    )
    from asap_core.testing.network_fault_scripts import network_scripts as network_scripts
    from asap_core.testing.network_faults import (
        ConnectionFaults as ConnectionFaults,
        Cut as Cut,
        DirectionFaults as DirectionFaults,
    )
    from asap_core.testing.scripted_driver import (
        Delayed as Delayed,
        ScriptedAnswer as ScriptedAnswer,
        ScriptedDriver as ScriptedDriver,
        ScriptedRun as ScriptedRun,
    )
    from asap_core.testing.scripted_outcomes import (
        OutcomeScript as OutcomeScript,
        outcome_scripts as outcome_scripts,
    )
    from asap_core.testing.stores import AdmissionStore as AdmissionStore, check_store as check_store
    from asap_core.testing.strategies import (
        broken_documents as broken_documents,
        cuts as cuts,
        envelope_documents as envelope_documents,
        envelopes as envelopes,
        json_values as json_values,
        manifests as manifests,
        requests as requests,
        urns as urns,
    )
    from asap_core.testing.token_rules import (
        NearlyValidToken as NearlyValidToken,
        TokenIssuer as TokenIssuer,
        nearly_valid_tokens as nearly_valid_tokens,
        tokens as tokens,
    )

_HOMES: Final = {
    "asap_core.testing.bodies": "request_bodies",
    "asap_core.testing.caller_schedules": ("CallerArrives CallerLeaves Schedule TimePasses WallClockSteps schedules"),
    "asap_core.testing.driver_trial": "ProgramRunner",
    "asap_core.testing.drivers": "check_driver",
    "asap_core.testing.head_rules": "NearlyValidHead heads nearly_valid_heads",
    "asap_core.testing.key_set_rules": "key_sets nearly_valid_key_sets",
    "asap_core.testing.machine": "ExchangeMachine Reply Target local_target",
    "asap_core.testing.nearly_valid": (
        "NearlyValid nearly_valid_announcements nearly_valid_envelopes nearly_valid_manifests "
        "nearly_valid_registry_entries"
    ),
    "asap_core.testing.network_faults": "ConnectionFaults Cut DirectionFaults",
    "asap_core.testing.network_fault_scripts": "network_scripts",
    "asap_core.testing.scripted_driver": "Delayed ScriptedAnswer ScriptedDriver ScriptedRun",
    "asap_core.testing.scripted_outcomes": "OutcomeScript outcome_scripts",
    "asap_core.testing.stores": "AdmissionStore check_store",
    "asap_core.testing.strategies": (
        "broken_documents cuts envelope_documents envelopes json_values manifests requests urns"
    ),
    "asap_core.testing.token_rules": "NearlyValidToken TokenIssuer nearly_valid_tokens tokens",
}

__all__ = sorted(name for names in _HOMES.values() for name in names.split())  # noqa: PLE0605 - the table above

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
