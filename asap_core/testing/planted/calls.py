"""One call, from its JSON-RPC request to its answer: checked, admitted once, run, answered.

The order matters. What could refuse a call comes before its nonce is claimed, so that no nonce is used up by a call
that can't run. An idempotency key is looked up before the nonce, since a retry isn't a replay.
"""

import json
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final

from asap_core.testing.planted.envelopes import (
    check_envelope,
    check_task,
    normal_type,
    read_timestamp,
    written_timestamp,
)
from asap_core.testing.planted.memory import Keys, Nonces, Seen, compared_key, with_numbers
from asap_core.testing.planted.messages import PlantedOptions
from asap_core.testing.planted.refusals import CallFault, Misfit, error_object
from asap_core.testing.planted.replies import reply_object, result_of
from asap_core.testing.planted.rpc import read_call, readable_id
from asap_core.testing.planted.switches import Breaks

_LONGEST_KEY: Final = 256
# Seconds that the skill `sleep` takes at most.
_LONGEST_SLEEP: Final = 2.0
# Seconds in which other threads come here too.
_A_MOMENT: Final = 0.02


# Of an agent that loses one with each failure.
_WORKERS: Final = 8
# With these the nonce of a call with a key was claimed before, or isn't at all.
_CLAIMED_ELSEWHERE: Final = (
    "idempotency.replay_first",
    "replay.unchecked_with_a_key",
    "replay.burnt_by_refused_calls",
)


@dataclass(frozen=True)
class PlantedCaller:
    """Who calls. urn: the agent that the token stands for, None without one. peer: the address."""

    urn: str | None
    peer: str


@dataclass
class Calls:
    """Answers calls, and remembers what was accepted."""

    options: PlantedOptions
    broken: Breaks
    monotonic: Callable[[], float]
    wall: Callable[[], float]
    ids: Callable[[], str]
    lock: Lock = field(default_factory=Lock)
    last: dict[str, Any] | None = None
    """The input of the last call: only a broken agent remembers it."""
    first_asked: dict[Seen, dict[str, Any]] = field(default_factory=dict)
    first_ids: dict[Seen, Any] = field(default_factory=dict)
    first_reply: float | None = None
    """When the first reply was dated: only a broken agent remembers it."""
    first_sender: str = ""
    """Who called first: only a broken agent remembers it."""
    failures: int = 0
    """How often a skill has failed: only a broken agent counts them."""
    line_feeds: int = 0
    """In the body that is answered: only a broken agent counts them."""
    nonces: Nonces = field(init=False)
    keys: Keys = field(init=False)

    def __post_init__(self) -> None:
        self.first_wall = self.wall()
        self.nonces = Nonces(self.options, self.broken)
        self.keys = Keys(self.options, self.broken)

    def answer(
        self, value: Any, caller: PlantedCaller, header_key: str | None = None, *, streamed: bool = False
    ) -> tuple[dict[str, object], CallFault | None]:
        """Answer one request object. Returns the response object, and the refusal if it is one."""
        call_id = readable_id(value, self.broken)
        whole: dict[str, Any] = {}
        key = None
        try:
            envelope, key = read_call(value, self.broken)
            key = self._key(key, header_key)
            whole = check_envelope(envelope, self.broken)
            outcome = self._outcome(whole, key, caller, streamed=streamed)
        except CallFault as fault:
            if self.broken("idempotency.refusals_kept") and whole and key:
                self._keep_refusal(self._scope(whole, key, caller), whole, fault)
            return error_object(call_id, self._as_sent(fault), self.broken), fault
        except Exception:
            if not self.broken.any:
                raise
            # A break may lead here; a server answers what it didn't expect so.
            internal = CallFault("internal", note="Internal server error")
            return error_object(call_id, internal, self.broken), internal
        if isinstance(outcome, CallFault):
            self._forget_failed(whole, key, caller)
            return error_object(call_id, outcome, self.broken), outcome
        if key is not None and self.broken("idempotency.reply_repeated"):
            whole = self.first_asked.setdefault(self._scope(whole, key, caller), whole)
        if key is not None and self.broken("idempotency.trace_repeated"):
            first = self.first_asked.setdefault(self._scope(whole, key, caller), whole)
            whole = {**whole, "trace_id": first["trace_id"]}
        if key is not None and self.broken("idempotency.rpc_id_repeated"):
            call_id = self.first_ids.setdefault(self._scope(whole, key, caller), call_id)
        wall = self.wall()
        if self.broken("replies.timestamp_once"):
            wall = self.first_reply = self.first_reply or wall
        if self.broken("replies.recipient_of_the_first"):
            self.first_sender = self.first_sender or str(whole["sender"])
            whole = {**whole, "sender": self.first_sender}
        reply = reply_object(call_id, whole, outcome, self.options.urn, wall, self.ids(), self.broken)
        return reply, None

    def _as_sent(self, fault: CallFault) -> CallFault:
        """Return the refusal as it's sent: with a switch some become internal errors."""
        if fault.kind == "malformed" and self.broken("errors.malformed_is_internal"):
            return CallFault("internal", note="Internal server error")
        if fault.kind == "handler" and self.broken("errors.unknown_skill_is_internal"):
            return CallFault("internal", note="Internal server error")
        return fault

    def _key(self, key: Any, header_key: str | None) -> str | None:
        place = ("params", "idempotency_key")
        if key is not None and not self._is_key(key):
            expected = f"a non-empty string of at most {_LONGEST_KEY} characters"
            raise CallFault("malformed", Misfit(place, expected, value=key), note="Invalid idempotency key")
        if header_key is not None and not self.broken("idempotency.header_ignored"):
            if not header_key:
                raise CallFault("malformed", Misfit(place, "one X-Idempotency-Key"), note="Invalid idempotency key")
            if key not in (None, header_key) and not self.broken("idempotency.header_and_body_differ"):
                expected = "the same key as in the header X-Idempotency-Key"
                raise CallFault("malformed", Misfit(place, expected), note="Invalid idempotency key")
            key = header_key
        return None if self.broken("idempotency.ignored") else key

    def _is_key(self, key: Any) -> bool:
        if not isinstance(key, str):
            return self.broken("idempotency.key_type")
        if not key:
            return self.broken("idempotency.empty_key")
        if len(key) == _LONGEST_KEY and self.broken("idempotency.key_below"):
            return False
        return len(key) <= _LONGEST_KEY or self.broken("idempotency.long_key")

    def _outcome(self, envelope: dict[str, Any], key: str | None, caller: PlantedCaller, *, streamed: bool) -> Any:
        """Return the reply's payload, or the refusal that is kept like one. Raises CallFault."""
        issued = self._issued(envelope)
        early = self.broken("replay.burnt_by_refused_calls")
        if self.broken("replay.burnt_by_foreign_calls"):
            self._claim_once(envelope, issued, caller)
        self._check_sender(envelope, caller)
        if early:
            self._claim(envelope, issued)
        self._check_version(envelope)
        self._check_recipient(envelope)
        if not self._is_kept(envelope, key, caller):
            self._check_date(issued)
        task = self._task(envelope, streamed=streamed)
        self._check_nonce(envelope)
        if key is None:
            if not early:
                self._claim(envelope, issued)
            return self._run(task)
        return self._once(self._scope(envelope, key, caller), envelope, issued, task)

    def _is_kept(self, envelope: dict[str, Any], key: str | None, caller: PlantedCaller) -> bool:
        """Whether the answer is kept already, and so the date doesn't matter. Only to a broken agent."""
        if key is None or not self.broken("idempotency.key_before_date"):
            return False
        return self._scope(envelope, key, caller) in self.keys.kept

    def _issued(self, envelope: dict[str, Any]) -> float:
        issued = read_timestamp(envelope["timestamp"], self.broken)
        return self.wall() if issued is None else issued

    def _claim_once(self, envelope: dict[str, Any], issued: float, caller: PlantedCaller) -> None:
        """Claim the nonce of another agent's envelope, before it's found that the caller isn't that agent."""
        if caller.urn not in (None, envelope["sender"]):
            self._claim(envelope, issued)

    def _claim(self, envelope: dict[str, Any], issued: float) -> None:
        if self.broken("replay.race") and not self.nonces.knows(envelope):
            time.sleep(_A_MOMENT)
            self.nonces.forget(envelope)  # what another call has claimed meanwhile
        with self.lock:
            self.nonces.claim(envelope, issued, now=self.monotonic(), wall=self.wall())

    # --- the checks, in their order ----------------------------------------------------------------------------------

    def _check_sender(self, envelope: dict[str, Any], caller: PlantedCaller) -> None:
        if caller.urn is None or self.broken("identity.sender_unbound"):
            return
        sender = str(envelope["sender"] or caller.urn)  # without a sender only with a switch
        if self.broken("identity.sender_prefix") and sender.startswith(caller.urn):
            return
        if self.broken("identity.sender_segment") and sender.startswith(f"{caller.urn}:"):
            return
        if sender != caller.urn:
            details: dict[str, object] = {"sender": sender} if self.broken("errors.echo_sender") else {}
            if self.broken("errors.tells_the_tokens_agent"):
                details["expected"] = caller.urn
            raise CallFault("sender", details=details)

    def _check_version(self, envelope: dict[str, Any]) -> None:
        version = envelope["asap_version"]
        known = version.startswith("0.")
        if not known and not self.broken("versions.envelope"):
            raise CallFault("version", details={"supported": ["0.1"]})

    def _check_recipient(self, envelope: dict[str, Any]) -> None:
        own = self.options.urn
        recipient = envelope["recipient"] or own  # without a recipient only with a switch
        if self.broken("envelope.recipient_unchecked_here") or recipient == own:
            return
        if self.broken("envelope.recipient_prefix") and str(recipient).startswith(own):
            return
        if self.broken("envelope.recipient_segment") and str(recipient).startswith(f"{own}:"):
            return
        named = recipient if self.broken("errors.echo_recipient") else own
        raise CallFault("misaddressed", details={"agent_id": named})

    def _check_date(self, issued: float) -> None:
        age = (self.first_wall if self.broken("time.clock_stopped") else self.wall()) - issued
        most, least = self.options.max_age, -self.options.skew
        if self.broken("time.old") or (self.broken("time.window_doubled") and age <= 2 * most):
            most = float("inf")
        if self.broken("time.ahead") or (self.broken("time.ahead_doubled") and age >= 2 * least):
            least = float("-inf")
        if self.broken("time.narrow_window"):
            most = 60.0
        if self.broken("time.window_of_290"):
            most = 290.0
        if self.broken("time.ahead_27"):
            least = -27.0
        if self.broken("time.no_tolerance"):
            least = 0.0
        if least <= age <= most:
            return
        details: dict[str, object] = {"age_seconds": round(age, 3)} if age > 0 else {}
        if not self.broken("time.server_time"):
            details["server_time"] = written_timestamp(self.wall())
        raise CallFault("timestamp", details=details, retry_after=5.0, note="Invalid envelope timestamp")

    def _task(self, envelope: dict[str, Any], *, streamed: bool) -> dict[str, Any]:
        kind = normal_type(envelope["payload_type"], self.broken)
        if streamed or (kind != "taskrequest" and not self.broken("envelope.any_payload_type")):
            details: dict[str, object] = {"supported": [] if streamed else ["taskrequest"]}
            if self.broken("errors.echo_payload_type"):
                details["payload_type"] = envelope["payload_type"]
            raise CallFault("handler", details=details)
        task = check_task(envelope["payload"], self.broken)
        task = {**task, "skill_id": self._skill(task["skill_id"])}
        if task["skill_id"] not in self.options.skills and not self.broken("envelope.any_skill"):
            named = [task["skill_id"]] if self.broken("errors.echo_skill") else []
            raise CallFault("handler", details={"skills": [*sorted(self.options.skills), *named]})
        return task

    def _skill(self, name: str) -> str:
        """Return the name of a skill as it's compared."""
        if self.broken("envelope.skill_case"):
            name = name.lower()
        return unicodedata.normalize("NFKC", name) if self.broken("envelope.skill_normalised") else name

    def _check_nonce(self, envelope: dict[str, Any]) -> None:
        extensions = envelope["extensions"]
        nonce = extensions.get("nonce") if isinstance(extensions, dict) else None
        fits = nonce is None or (isinstance(nonce, str) and nonce != "")
        if fits or (self.broken("replay.empty_nonce") and nonce == ""):
            return
        if self.broken("replay.nonce_type"):
            extensions["nonce"] = str(nonce)
            return
        place = ("params", "envelope", "extensions", "nonce")
        raise CallFault("malformed", Misfit(place, "a non-empty string", value=nonce), note="Invalid envelope nonce")

    # --- work --------------------------------------------------------------------------------------------------------

    def _scope(self, envelope: dict[str, Any], key: str, caller: PlantedCaller) -> Seen:
        key = compared_key(key, self.broken)
        if self.broken("idempotency.shared_by_senders"):
            return "", key
        return (str(envelope["sender"]), key) if caller.urn else (caller.peer, envelope["sender"], key)

    def _asked(self, envelope: dict[str, Any]) -> str:
        names = ["sender", "recipient", "payload"]
        if self.broken("idempotency.type_spelling"):
            names.append("payload_type")
        if self.broken("idempotency.fresh_timestamp"):
            names.append("timestamp")
        if self.broken("idempotency.fresh_nonce"):
            names.append("extensions")
        if self.broken("idempotency.other_input"):
            return str(envelope["payload"]["skill_id"])
        if self.broken("idempotency.blanks"):
            return f"{self.line_feeds} {envelope['payload']}"
        if self.broken("idempotency.true_is_one"):
            return str([with_numbers(envelope[name]) for name in names])
        asked = json.dumps([envelope[name] for name in names], sort_keys=not self.broken("idempotency.key_order"))
        if self.broken("idempotency.input_normalised"):
            asked = unicodedata.normalize("NFC", json.dumps(json.loads(asked), ensure_ascii=False))
        if self.broken("idempotency.input_as_text"):
            asked = asked.replace('"', "")
        return asked.replace('"n": null', "") if self.broken("idempotency.input_nulls") else asked

    def _once(self, scope: Seen, envelope: dict[str, Any], issued: float, task: dict[str, Any]) -> Any:
        if self.broken("idempotency.replay_first"):
            self._claim(envelope, issued)
        with self.lock:
            now = self.monotonic()
            try:
                kept = self.keys.begin(scope, self._asked(envelope), now=now)
            except CallFault:
                if self.broken("idempotency.nonce_of_a_mismatch"):
                    self.nonces.claim(envelope, issued, now=now, wall=self.wall())
                raise
            if kept.outcome is not None:
                return self._again(kept.outcome, task)
            try:
                if not any(map(self.broken, _CLAIMED_ELSEWHERE)):
                    self.nonces.claim(envelope, issued, now=now, wall=self.wall())
            except CallFault:
                self.keys.free(scope)
                raise
            if self.broken("idempotency.while_running"):
                self.keys.free(scope)
        if self.broken("idempotency.while_running"):
            time.sleep(_A_MOMENT)
        outcome = self._run(task)
        with self.lock:
            if self.broken("idempotency.while_running"):
                self.keys.begin(scope, self._asked(envelope), now=self.monotonic())
            self.keys.finish(scope, outcome, now=self.monotonic())
        return outcome

    def _keep_refusal(self, scope: Seen, envelope: dict[str, Any], fault: CallFault) -> None:
        with self.lock:
            if scope not in self.keys.kept:
                self.keys.begin(scope, self._asked(envelope), now=self.monotonic())
                self.keys.finish(scope, fault, now=self.monotonic())

    def _again(self, outcome: Any, task: dict[str, Any]) -> Any:
        if self.broken("idempotency.runs_again"):
            return self._run(task)
        if self.broken("idempotency.failure_runs_again") and isinstance(outcome, CallFault):
            return self._run(task)
        if self.broken("idempotency.refuses_retries"):
            raise CallFault("replayed", note="Invalid envelope nonce")
        return outcome

    def _run(self, task: dict[str, Any]) -> Any:
        """Do the work of a skill. A skill that fails is an internal error, whose cause stays here."""
        asked = task["input"]
        if self.failures >= _WORKERS and self.broken("failures.use_up_workers"):
            raise CallFault("saturated", retry_after=1.0)
        match task["skill_id"]:
            case "fail" if not self.broken("failures.as_a_reply"):
                return self._failure(asked)
            case "sleep":
                seconds = asked.get("seconds")
                time.sleep(min(seconds, _LONGEST_SLEEP) if isinstance(seconds, int | float) and seconds > 0 else 0)
        result, self.last = result_of(asked, self.last, self.broken), asked
        return {
            "task_id": task["conversation_id"] if self.broken("replies.task_id_reused") else self.ids(),
            "status": "completed",
            "result": result,
            "final_state": None,
            "metrics": None,
        }

    def _failure(self, asked: dict[str, Any]) -> CallFault:
        self.failures += 1
        note = "Internal server error"
        if self.broken("failures.cause"):
            note = f"it failed at {asked}"
        if self.broken("failures.type_told"):
            note = "RuntimeError"
        return CallFault("internal", note=note)

    def _forget_failed(self, envelope: dict[str, Any], key: str | None, caller: PlantedCaller) -> None:
        """Forget what a call has used whose skill failed. Only a broken agent does."""
        if self.broken("failures.nonce_freed"):
            self.nonces.forget(envelope)
        if key is not None and self.broken("failures.key_freed"):
            self.keys.free(self._scope(envelope, key, caller))
