"""Time the reference implementation from request bytes to an admitted envelope. Its own interpreter runs this file.

Reads lists of request bodies from standard input (JSON, bodies in hex). Writes microseconds for each list, as JSON.
"""

import json
import logging
import sys
import time

logging.disable(logging.CRITICAL)

from asap.models.envelope import Envelope  # noqa: E402
from asap.transport.jsonrpc import JsonRpcRequest  # noqa: E402
from asap.transport.validators import (  # noqa: E402
    InMemoryNonceStore,
    validate_envelope_nonce,
    validate_envelope_timestamp,
)

REPEATS, STRETCH = 5, 200


def microseconds(bodies: list[bytes]) -> float:
    def once(store, body):
        request = JsonRpcRequest(**json.loads(body))
        envelope = Envelope(**request.params["envelope"])
        validate_envelope_timestamp(envelope)
        validate_envelope_nonce(envelope, store)

    best = float("inf")
    for _ in range(REPEATS):
        store = InMemoryNonceStore()
        for start in range(0, len(bodies), STRETCH):
            began = time.perf_counter()
            for body in bodies[start : start + STRETCH]:
                once(store, body)
            best = min(best, (time.perf_counter() - began) / STRETCH * 1e6)
    return best


if __name__ == "__main__":
    print(json.dumps([microseconds([bytes.fromhex(body) for body in bodies]) for bodies in json.load(sys.stdin)]))
