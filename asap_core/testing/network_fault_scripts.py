"""Scripts of a network's faults: what happens to its first connection, its second one, and so on."""

from collections.abc import Sequence
from typing import Final

from hypothesis import strategies as st

from asap_core.testing.network_faults import ConnectionFaults, Cut, DirectionFaults

# At once, within the time-outs of a client, and past them.
_DELAYS: Final = st.sampled_from([0.0, 0.0, 0.0, 0.2, 3.0, 100.0])
_PIECES: Final = st.sampled_from([65_536, 65_536, 100, 7, 1])


def network_scripts(*, most: int = 4, largest: int = 1_500) -> st.SearchStrategy[Sequence[ConnectionFaults]]:
    """What happens to the connections of a network, in the order in which they're made: delay, loss, cuts, refusals.

    Those after the last have no faults. Since delays differ, requests on several connections overtake each other.

    most: how many connections have faults.
    largest: about how many bytes a connection carries in one direction: at up to so many it's cut.
    """
    cuts = st.none() | st.none() | st.integers(0, largest)
    direction = st.builds(DirectionFaults, delay=_DELAYS, piece=_PIECES, cut_after=cuts, cut=st.sampled_from(Cut))
    faults = st.builds(
        ConnectionFaults,
        refused=st.sampled_from([False, False, False, True]),
        connect_delay=_DELAYS,
        to_server=direction,
        to_client=direction,
    )
    return st.lists(faults, max_size=most).map(tuple)
