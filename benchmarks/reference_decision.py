"""Run by the reference implementation's interpreter: how long it takes from bytes to an admitted envelope, as JSON.

Reads request bodies, one hex line each, from standard input; answers microseconds for each.
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

ROUNDS, REPEATS = 2_000, 5


def microseconds(body: bytes) -> float:
    def once(store, number):
        request = JsonRpcRequest(**json.loads(body))
        envelope = Envelope(**request.params["envelope"])
        validate_envelope_timestamp(envelope)
        envelope.extensions["nonce"] = f"n{number}"
        validate_envelope_nonce(envelope, store)

    best = float("inf")
    for _ in range(REPEATS):
        store = InMemoryNonceStore()
        began = time.perf_counter()
        for number in range(ROUNDS):
            once(store, number)
        best = min(best, (time.perf_counter() - began) / ROUNDS * 1e6)
    return best


if __name__ == "__main__":
    print(json.dumps([microseconds(bytes.fromhex(line)) for line in sys.stdin.read().split()]))
