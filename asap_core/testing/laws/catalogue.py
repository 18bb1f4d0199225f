"""All laws, by group."""

from typing import Final

from asap_core.testing.laws.envelope import ENVELOPE
from asap_core.testing.laws.identity import IDENTITY
from asap_core.testing.laws.law import Law, LawGroup
from asap_core.testing.laws.replay import REPLAY
from asap_core.testing.laws.replies import REPLIES

GROUPS: Final[tuple[LawGroup, ...]] = (REPLIES, ENVELOPE, IDENTITY, REPLAY)
LAWS: Final[tuple[Law, ...]] = tuple(law for group in GROUPS for law in group.laws)
