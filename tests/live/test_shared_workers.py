"""Four workers and one server: each envelope goes to all of them at once. At full size: `shared_proof`."""

import pytest

from tests.live import shared_proof

pytestmark = pytest.mark.live

# The proof in full takes minutes.
COUNT = 600
DYING = 300


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_each_envelope_is_accepted_once_if_workers_or_the_server_die(backend: str) -> None:
    with shared_proof.prove(backend) as proof:
        shared_proof.everything_once(proof, COUNT)
        shared_proof.a_worker_dies(proof, DYING)
        shared_proof.the_server_dies(proof, DYING)
