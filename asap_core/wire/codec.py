"""Plain JSON values ⇄ the model. Errors list every problem at once, each with its path and none with the value.

Each field of the model has a `Rule`, which cattrs calls as a hook while it walks a document. Envelopes and payloads are
read strictly: unknown keys are refused. Remote documents, which grow with every version of the protocol, are read
tolerantly: unknown keys are kept in `extra`.

cattrs takes 30 ms to import, so it's imported on first use; a server calls `warm_up()` when it has started.
"""

from collections.abc import Callable, Iterator
from datetime import datetime
from enum import Enum
from functools import cache, lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import fields, has

from asap_core.arguments import NamedField
from asap_core.errors import InvalidDocument, Problem
from asap_core.wire.envelope import Envelope, normalise_payload_type
from asap_core.wire.json import NotJson, read_json
from asap_core.wire.json_values import Json, JsonObject
from asap_core.wire.manifest import Endpoints, Health, Manifest, ReceivedEndpoints, is_wrapper
from asap_core.wire.payloads import PAYLOADS, Payload
from asap_core.wire.rules import InvalidValue, Rule

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")

# Enough to repair a document. Without a limit, a request of 1 MB with 50,000 invalid items gets an answer of 5 MB.
MAX_PROBLEMS: Final = 20


def decode_envelope(value: object, *, path: tuple[str | int, ...] = ()) -> Envelope:
    """Decode an envelope, strictly.

    path: where the envelope is in its document, for errors.
    Raises: InvalidDocument.
    """
    return _decode_flat(value, Envelope, "envelope", path)


def decode_payload(payload_type: str, value: object, *, path: tuple[str | int, ...] = ()) -> Payload | None:
    """Decode a payload, strictly. Returns None if its type isn't known.

    payload_type: in any spelling.
    path: where the payload is in its document, for errors.
    Raises: InvalidDocument.
    """
    return decode_payload_of(normalise_payload_type(payload_type), value, path)


def decode_payload_of(normal_type: str, value: object, path: tuple[str | int, ...] = ()) -> Payload | None:
    """As `decode_payload`, for a type that is normalised already (`normalise_payload_type`)."""
    kind = PAYLOADS.get(normal_type)
    return None if kind is None else _decode_flat(value, kind, "payload", path)


def decode_manifest(value: object) -> Manifest:
    """Decode a manifest, tolerantly, also from the wrapper of a signed one.

    Signatures aren't verified here: see `asap_core.wire.signing`. Raises `InvalidDocument`.
    """
    if is_wrapper(value):
        return decode_as(value["manifest"], Manifest, "manifest", ("manifest",))
    return decode_as(value, Manifest, "manifest", ())


def decode_health(value: object) -> Health:
    """Decode a health report, tolerantly. Raises `InvalidDocument`."""
    return decode_as(value, Health, "health report", ())


def read_manifest(data: bytes) -> Manifest:
    """Read a manifest from bytes, tolerantly. Raises `InvalidDocument`, and nothing else whatever the bytes."""
    return read_as(data, decode_manifest, "manifest")


def read_health(data: bytes) -> Health:
    """Read a health report from bytes, tolerantly. Raises `InvalidDocument`, and nothing else whatever the bytes."""
    return read_as(data, decode_health, "health report")


def read_as(data: bytes, decode: Callable[[Json], T], what: str) -> T:
    """Read a document from bytes: parse the JSON, then call `decode`.

    what: names the kind of document in errors.
    Raises: InvalidDocument.
    """
    try:
        value = read_json(data)
    except NotJson as error:
        raise InvalidDocument(what, (Problem((), error.expected, "ill_formed"),)) from None
    return decode(value)


# --- writing ---------------------------------------------------------------------------------------------------------


def encode_envelope(envelope: Envelope) -> JsonObject:
    """Return the envelope as plain JSON values: all eleven keys, nulls included, in the reference's order."""
    return {
        "id": envelope.id,
        "asap_version": envelope.asap_version,
        "timestamp": format_timestamp(envelope.timestamp),
        "sender": envelope.sender,
        "recipient": envelope.recipient,
        "payload_type": envelope.payload_type,
        "payload": envelope.payload,
        "correlation_id": envelope.correlation_id,
        "trace_id": envelope.trace_id,
        "requires_ack": envelope.requires_ack,
        "extensions": envelope.extensions,
    }


def format_timestamp(moment: datetime) -> str:
    """Write a UTC datetime as RFC 3339 with `Z`, with fractions only if they aren't zero."""
    return moment.isoformat().replace("+00:00", "Z")


_PLAIN: Final = frozenset({str, int, float, bool, type(None), dict, list})


def to_json(value: object) -> Any:
    """Return a value of the model as plain JSON values: every field, nulls included, and the keys in `extra`.

    JSON's own values are returned unchanged.
    Raises: TypeError for a value that is neither.
    """
    kind: type = type(value)
    if kind in _PLAIN:
        return value
    if has(kind):
        tag = vars(kind).get("type")  # that of a part is text, a field is a descriptor
        written: JsonObject = {"type": tag} if type(tag) is str else {}
        for key, name in _members(kind):
            written[key] = to_json(getattr(value, name))
        written.update(getattr(value, "extra", {}))
        return written
    match value:
        case Enum():
            return value.value
        case datetime():
            return format_timestamp(value)
        case tuple():
            return [to_json(item) for item in value]
        case _:
            raise TypeError(f"expected a value of the model, not {kind.__name__}")


# Fields that aren't keys of the document. Those never read are filled by this library only.
_ASIDE: Final = frozenset({"extra", "skipped"})


@cache
def _members(kind: type) -> tuple[tuple[str, str], ...]:
    """Return the keys that a class has in a document, each with its field's name."""
    return tuple((_key(a), a.name) for a in fields(kind) if a.name not in _ASIDE)


_NEVER_READ: Final = frozenset({"skipped"})


def _key(attribute: NamedField) -> str:
    return attribute.name.rstrip("_")


def etag(body: bytes) -> str:
    """Return a strong entity tag for `body`: only equal bodies have equal tags. Source: RFC 9110 §8.8.3."""
    return f'"{sha256(body).hexdigest()}"'


# --- the fast path: valid envelopes and payloads ---------------------------------------------------------------------


def _decode_flat(value: object, kind: type[T], what: str, path: tuple[str | int, ...]) -> T:
    """Decode a class whose fields are all leaves.

    Nearly every message is valid, and one pass over its rules proves it. Otherwise cattrs finds every problem. (A
    missing key without a default reads as attrs' NOTHING, which no rule accepts.)
    """
    try:
        return _quick(kind)(value)  # type: ignore[no-any-return, arg-type]
    except InvalidValue:
        return decode_as(value, kind, what, path)


@cache
def _quick(kind: type) -> Callable[[object], Any]:
    """Return a reader that checks each rule once and fills the slots: attrs' __init__ would check them again."""
    known = frozenset(_key(a) for a in fields(kind))
    plans = [(_key(a), a.default, _plain_types(a.validator), a.validator, _slot(kind, a.name)) for a in fields(kind)]
    check = getattr(kind, "__attrs_post_init__", None)
    make = object.__new__

    def read(value: object) -> object:
        if type(value) is not dict or not known.issuperset(value):
            # A new exception each time: a shared one would keep every frame it was raised in alive, and their values.
            raise InvalidValue("something else")
        made: object = make(kind)
        get = value.get
        for key, default, types, rule, fill in plans:
            item = get(key, default)
            # Most fields are plain strings, objects or null. Checking that here saves a call for each.
            fill(made, item if type(item) in types else rule.read(item))
        if check is not None:
            check(made)
        return made

    return read


def _plain_types(rule: Rule) -> frozenset[type]:
    """Return the types whose values all obey the rule as they are."""
    null: frozenset[type] = frozenset({type(None)}) if rule.nullable else frozenset()
    return null if rule.exact is None else null | {rule.exact}


def _slot(kind: type, name: str) -> Callable[[object, object], None]:
    fill: Callable[[object, object], None] = kind.__dict__[name].__set__
    return fill


# --- the thorough path: every problem --------------------------------------------------------------------------------


def warm_up() -> None:
    """Import cattrs and build the reader of envelopes: some 20 ms, for which the first bad call would wait."""
    _converter().get_structure_hook(Envelope)


def decode_as(value: object, kind: type[T], what: str, path: tuple[str | int, ...]) -> T:
    """Decode an object of a class, by the rules of its fields.

    what: names the kind of document in errors.
    path: where the object is in its document, for errors.
    Raises: InvalidDocument.
    """
    try:
        return _converter().structure(value, kind)
    except Exception as error:  # noqa: BLE001 - cattrs wraps what rules raise; _problems re-raises other exceptions
        problems = tuple(_problems(error, kind, path))[:MAX_PROBLEMS]
        _let_go(error)
        raise InvalidDocument(what, problems) from None


def _let_go(error: BaseException) -> None:
    error.__traceback__ = None  # breaks a cycle: cattrs' frames hold the error, and the values that were read
    for inner in getattr(error, "exceptions", ()):
        _let_go(inner)


@lru_cache(maxsize=1)
def _converter() -> "Converter":
    from cattrs import Converter  # noqa: PLC0415 - see the module's docstring

    converter = Converter(detailed_validation=True)
    converter.register_structure_hook_factory(has, lambda kind: _object_hook(kind, converter))
    converter.register_structure_hook_factory(
        lambda kind: getattr(kind, "__origin__", None) is tuple, lambda kind: _array_hook(kind, converter)
    )
    converter.register_structure_hook(Endpoints, lambda value, _: converter.structure(value, ReceivedEndpoints).taken())
    return converter


def _object_hook(kind: type, converter: "Converter") -> Callable[[object, object], object]:
    from cattrs.gen import make_dict_structure_fn, override  # noqa: PLC0415

    tolerant = "extra" in {a.name for a in fields(kind)}
    known = frozenset(_key(a) for a in fields(kind) if a.name not in _ASIDE)
    overrides = {
        a.name: override(rename=_key(a), struct_hook=a.validator.read)
        for a in fields(kind)
        if isinstance(a.validator, Rule) and a.validator.leaf
    }
    overrides |= {name: override(omit=True) for name in _NEVER_READ if name in {a.name for a in fields(kind)}}
    make: Any = make_dict_structure_fn  # typed for keywords it names; fields come as keywords too
    read = make(kind, converter, _cattrs_forbid_extra_keys=not tolerant, **overrides)

    def hook(value: object, _kind: object) -> object:
        if type(value) is not dict:
            raise InvalidValue("an object")
        if tolerant and not known.issuperset(value):
            extra = {key: item for key, item in value.items() if key not in known}
            value = {key: item for key, item in value.items() if key in known} | {"extra": extra}
        return read(value, kind)

    return hook


def _array_hook(kind: Any, converter: "Converter") -> Callable[[object, object], object]:
    from cattrs import IterableValidationError, IterableValidationNote  # noqa: PLC0415

    item_kind = kind.__args__[0]
    read = converter.get_structure_hook(item_kind)

    def hook(value: object, _kind: object) -> object:
        """Read each item, up to MAX_PROBLEMS errors. cattrs' own hook would collect 100,000, which takes seconds."""
        if type(value) is not list:
            raise InvalidValue("an array")
        items, errors = [], []
        for index, item in enumerate(value):
            try:
                items.append(read(item, item_kind))
            except Exception as error:  # noqa: BLE001 - as cattrs does; _problems re-raises what isn't a rule's
                error.add_note(IterableValidationNote("an item", index, item_kind))
                errors.append(error)
                if len(errors) == MAX_PROBLEMS:
                    break
        if errors:
            raise IterableValidationError("unfit items", errors, kind)
        return tuple(items)

    return hook


def _problems(error: BaseException, kind: type, path: tuple[str | int, ...]) -> Iterator[Problem]:
    from cattrs import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError  # noqa: PLC0415

    match error:
        case InvalidValue():
            yield Problem(path, error.expected)
        case ForbiddenExtraKeysError():
            names = ", ".join(_key(a) for a in fields(error.cl))
            yield Problem(path, f"no keys but {names}", "unknown_keys")
        case ClassValidationError():
            for name, inner in _noted(error):
                if name is None:
                    yield from _problems(inner, error.cl, path)
                elif isinstance(inner, KeyError):
                    attribute = getattr(fields(error.cl), name)
                    yield Problem((*path, _key(attribute)), attribute.validator.expected, "missing")
                else:
                    yield from _problems(inner, kind, (*path, name.rstrip("_")))
        case IterableValidationError():
            for index, inner in _noted(error):
                yield from _problems(inner, kind, (*path, index))
        case _:
            raise error


def _noted(group: "BaseExceptionGroup[BaseException]") -> Iterator[tuple[Any, BaseException]]:
    """Yield a group's exceptions, each with the field or index that cattrs noted on it, or None for the whole."""
    with_notes, without = group.group_exceptions()  # type: ignore[attr-defined]
    for inner, note in with_notes:
        yield getattr(note, "name", getattr(note, "index", None)), inner
    for inner in without:
        yield None, inner
