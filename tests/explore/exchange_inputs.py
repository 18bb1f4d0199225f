"""The alphabet of the exchange: heads, bodies, and the answers of limiter, authenticator, store and handler."""

import json
from typing import Any, Final

from asap_core import (
    Admit,
    Answered,
    Authenticate,
    Authenticated,
    ClaimProof,
    Dispatch,
    Done,
    Fork,
    Hold,
    InsufficientScope,
    ReadBody,
    Record,
    Refusal,
    Replied,
    Respond,
    TakeLimit,
)
from asap_core.admission import admission
from asap_core.admission.replay import Floored, Replayed, Saturated
from asap_core.auth.principal import ProofRefused, Proven
from asap_core.clock import WallTime
from asap_core.refusals import BUSY
from tests.builders import ALICE, call

# Bytes: the first 64 KiB of a body don't count. Others have left room for 50 of those that do.
FREE, ROOM, MOST = 65_536, 50, 66_000
_HOST: Final = "Host: a.example\r\n"
_TOKEN: Final = f"{_HOST}Authorization: Bearer x\r\n"
_CHUNKED: Final = f"{_TOKEN}Transfer-Encoding: chunked\r\n"
HEADS: Final = {
    "good head": f"POST /asap HTTP/1.1\r\n{_CHUNKED}\r\n",
    "gzip head": f"POST /asap HTTP/1.1\r\n{_CHUNKED}Content-Encoding: gzip\r\nExpect: 100-continue\r\n\r\n",
    "head without token": f"POST /asap HTTP/1.1\r\n{_HOST}Content-Length: 5\r\n\r\n",
    "head of another version": f"POST /asap HTTP/1.1\r\n{_CHUNKED}ASAP-Version: 9\r\n\r\n",
    "head of a large body": f"POST /asap HTTP/1.1\r\n{_TOKEN}Content-Length: 99999999999\r\n\r\n",
    "head of a foreign page": f"POST /asap HTTP/1.1\r\n{_CHUNKED}Origin: https://b.example\r\n\r\n",
    "head for a document": f"GET /health HTTP/1.1\r\n{_HOST}\r\n",
    "head for nothing": f"GET /nothing HTTP/1.1\r\n{_HOST}\r\n",
    "bad head": "POST /asap HTTP/1.1\r\nHost : a.example\r\n\r\n",
}  # fmt: skip
_CALL: Final = json.dumps(call(key="k")).encode()
_BATCH: Final = json.dumps([call(1, key="k"), call(2, key="k"), 5]).encode()
BODIES: Final = {
    "call": _CALL, "batch": _BATCH, "rubbish": b"{", "nothing": b"",
    "large call": _CALL.ljust(FREE + ROOM), "call without room": _CALL.ljust(FREE + ROOM + 1),
    "too large call": _CALL.ljust(MOST + 1),
}  # fmt: skip
ANSWERS: Final = {
    "admitted": admission.Admitted(admission.Reservation(b"r")), "admitted without key": admission.Admitted(None),
    "stored": admission.Stored(Replied("task.response", {"task_id": "t", "status": "completed"})),
    "running": admission.Running(0.5), "mismatch": admission.Mismatch(), "unknown": admission.OutcomeUnknown(),
    "gone": admission.AnswerGone(), "replayed": Replayed(), "saturated": Saturated(1.0), "floored": Floored(1.0),
    "stale": admission.Stale(WallTime(2e9)), "future": admission.Future(WallTime(1e9)),
    "store unavailable": admission.StoreUnavailable(1.0),
}  # fmt: skip
ALICE_PROVEN: Final = Proven(
    principal=Authenticated(ALICE), holder="holder", proof_id="proof", issued=WallTime(1_750_000_000.0)
)
# Of each state the inputs: a name, the move, and its arguments.
MOVES: Final[dict[type, dict[str, tuple[str, tuple[Any, ...]]]]] = {
    TakeLimit: {
        "taken": ("taken", ()), "none taken": ("taken", (0,)), "limited": ("limited", (1.0, "1 per second")),
        "no limiter": ("unavailable", ()),
    },
    Authenticate: {
        "verified": ("verified", (Authenticated(ALICE),)), "proven": ("verified", (ALICE_PROVEN,)),
        "refused": ("refused", ()), "proof refused": ("refused", (ProofRefused("a nonce", nonce="n"),)),
        "insufficient": ("insufficient", (InsufficientScope(frozenset({"a"})),)), "no provider": ("unavailable", ()),
    },
    ClaimProof: {name: ("answered", (answer,)) for name, answer in ANSWERS.items()} | {"no store": ("unavailable", ())},
    Admit: {name: ("answered", (answer,)) for name, answer in ANSWERS.items()},
    Hold: {"again": ("again", ()), "expired": ("expired", ())},
    Dispatch: {
        "replied": ("replied", (Replied("task.response", {"task_id": "t", "status": "completed"}),)),
        "replied at length": ("replied", (Replied("task.response", {"task_id": "t" * FREE, "status": "completed"}),)),
        "replied wrongly": ("replied", (5,)), "failed": ("failed", (Refusal(kind=BUSY),)),
        "turned away": ("turned_away", (Refusal(kind=BUSY),)), "lost": ("lost", ()),
    },
    Record: {"recorded": ("recorded", ())},
    Respond: {"sent": ("sent", ())},
    ReadBody: {}, Fork: {}, Answered: {}, Done: {},
}  # fmt: skip
