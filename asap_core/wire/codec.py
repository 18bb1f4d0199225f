"""Plain JSON values ⇄ the model: every error at once, each with its place, none with what the caller wrote.

cattrs does the walking; what each field may hold is the `Rule` that stands beside it in the model, asked here as a
hook. Envelopes and payloads are read strictly (unknown keys refused); remote documents, which grow with every version,
are read tolerantly (unknown keys kept in `extra`). cattrs costs 30 ms to import, so it's imported when it's first
needed; `warm_up()` is for servers that want that before their first request.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from enum import Enum
from functools import cache, lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import Attribute, fields, has

from asap_core.errors import InvalidDocument, Problem
from asap_core.wire.envelope import Envelope, normalise_payload_type
from asap_core.wire.json import NotJson, read_json
from asap_core.wire.manifest import Endpoints, Health, Manifest, ReceivedEndpoints, is_wrapper
from asap_core.wire.parts import PARTS, Part
from asap_core.wire.payloads import PAYLOADS, Payload
from asap_core.wire.registry import Registry, RegistryEntry
from asap_core.wire.rules import InvalidValue, Rule

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")

# Enough to mend a document by; a list of 50,000 unfit entries would otherwise answer 5 MB to a 1 MB request.
MAX_PROBLEMS: Final = 20


def decode_envelope(value: Any, *, path: tuple[str | int, ...] = ()) -> Envelope:
    """Read an envelope, strictly. Raises `InvalidDocument`; `path` is where the envelope stands in its document."""
    return _decode_flat(value, Envelope, "envelope", path)


def decode_payload(payload_type: str, value: Any, *, path: tuple[str | int, ...] = ()) -> Payload | None:
    """Read a payload of a known type, strictly, or return None where the type isn't known. Raises `InvalidDocument`."""
    return decode_payload_of(normalise_payload_type(payload_type), value, path=path)


def decode_payload_of(normal_type: str, value: Any, *, path: tuple[str | int, ...] = ()) -> Payload | None:
    """`decode_payload` for whoever has normalised the type."""
    kind = PAYLOADS.get(normal_type)
    return None if kind is None else _decode_flat(value, kind, "payload", path)


def decode_part(value: Any, *, path: tuple[str | int, ...] = ()) -> Part:
    """Read a message part by its `type`, strictly. Raises `InvalidDocument`."""
    tag = value.get("type") if type(value) is dict else None
    kind = PARTS.get(tag) if type(tag) is str else None
    if kind is None:
        raise InvalidDocument("part", (Problem((*path, "type"), f"one of {', '.join(PARTS)}"),))
    return _decode({key: item for key, item in value.items() if key != "type"}, kind, "part", path)


def decode_manifest(value: Any) -> Manifest:
    """Read a manifest, tolerantly; a 2.x signed wrapper is opened (`asap_core.wire.signing` verifies its signature).

    Raises `InvalidDocument`.
    """
    if is_wrapper(value):
        return _decode(value["manifest"], Manifest, "manifest", ("manifest",))
    return _decode(value, Manifest, "manifest", ())


def decode_health(value: Any) -> Health:
    """Read a health report, tolerantly. Raises `InvalidDocument`."""
    return _decode(value, Health, "health report", ())


def decode_registry_root(value: Mapping[str, Any]) -> Registry:
    """Read the root of a registry, tolerantly. Its `agents` are left out: `RegistryReader` reads them.

    Raises: InvalidDocument.
    """
    return _decode({**value, "agents": []}, Registry, "registry", ())


def decode_registry_entry(value: Any, *, path: tuple[str | int, ...] = ()) -> RegistryEntry:
    """Read an entry of a registry, tolerantly. Raises `InvalidDocument`; `path` is where it stands in its document."""
    return _decode(value, RegistryEntry, "registry entry", path)


def read_manifest(data: bytes) -> Manifest:
    """Read a manifest from bytes. Raises `InvalidDocument`, whatever the bytes."""
    return read_as(data, decode_manifest, "manifest")


def read_health(data: bytes) -> Health:
    """Read a health report from bytes. Raises `InvalidDocument`, whatever the bytes."""
    return read_as(data, decode_health, "health report")


def read_as(data: bytes, decode: Callable[[Any], T], what: str) -> T:
    """Read a document from bytes: JSON, then what `decode` makes of it. Raises `InvalidDocument`."""
    try:
        value = read_json(data)
    except NotJson as error:
        raise InvalidDocument(what, (Problem((), error.expected, "ill_formed"),)) from None
    return decode(value)


# --- writing ---------------------------------------------------------------------------------------------------------


def encode_envelope(envelope: Envelope) -> dict[str, Any]:
    """Return the envelope as plain JSON values: all eleven keys, nulls included, in the order the reference writes."""
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
    """Write a UTC date as RFC 3339 with `Z`, fractions only where there are any."""
    return moment.isoformat().replace("+00:00", "Z")


def to_json(value: Any) -> Any:
    """Return a value of the model as plain JSON values: every field, nulls included, and what was in `extra`.

    JSON's own values are returned as they are. Raises TypeError for anything else.
    """
    kind: type = type(value)
    if kind in _PLAIN:
        return value
    if has(kind):
        written: dict[str, Any] = {"type": value.type} if kind in PARTS.values() else {}
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


_PLAIN: Final = frozenset({str, int, float, bool, type(None), dict, list})


@cache
def _members(kind: type) -> tuple[tuple[str, str], ...]:
    """The keys that a class has in a document, each with the field it comes from."""
    return tuple((_key(a), a.name) for a in fields(kind) if a.name not in _ASIDE)


# Fields that aren't keys of the document; of them, those that only this library fills.
_ASIDE: Final = frozenset({"extra", "skipped"})
_NEVER_READ: Final = frozenset({"skipped"})


def _key(attribute: "Attribute[Any]") -> str:
    return attribute.name.rstrip("_")


def etag(body: bytes) -> str:
    """Return a strong entity tag for `body` (RFC 9110 §8.8.3): equal bodies, and only they, share it."""
    return f'"{sha256(body).hexdigest()}"'


# --- reading what is right, quickly ----------------------------------------------------------------------------------


def _decode_flat(value: Any, kind: type[T], what: str, path: tuple[str | int, ...]) -> T:
    """Read a class whose fields are all leaves.

    Nearly every message is right, and one pass over its rules says so. If not (NOTHING, a missing key, fits no rule),
    the thorough way finds everything that's wrong.
    """
    try:
        return _quick(kind)(value)  # type: ignore[no-any-return, arg-type]
    except InvalidValue:
        return _decode(value, kind, what, path)


@cache
def _quick(kind: type) -> Callable[[Any], Any]:
    """A reader that asks each field's rule once and fills the slots itself: attrs would ask the same rules again."""
    known = frozenset(_key(a) for a in fields(kind))
    steps = [(_key(a), a.default, a.validator, _slot(kind, a.name)) for a in fields(kind)]
    plans = [
        (key, default, rule.exact, rule.nullable, rule.convert, rule.fits, fill) for key, default, rule, fill in steps
    ]
    check = getattr(kind, "__attrs_post_init__", None)
    make = object.__new__

    def read(value: Any) -> Any:
        if type(value) is not dict or not known.issuperset(value):
            # Made anew: a shared exception would keep every frame that it was ever raised in, and all that was read.
            raise InvalidValue("something else")
        made: Any = make(kind)
        for key, default, exact, nullable, convert, fits, fill in plans:
            item = value.get(key, default)
            # Most fields are plain strings or objects, or null: asked here, that saves a call for each.
            if type(item) is not exact and not (nullable and item is None):
                if convert is not None:
                    item = convert(item)
                if exact is not None or not fits(item):
                    raise InvalidValue("something else")
            fill(made, item)
        if check is not None:
            check(made)
        return made

    return read


def _slot(kind: type, name: str) -> Callable[[Any, Any], None]:
    fill: Callable[[Any, Any], None] = kind.__dict__[name].__set__
    return fill


# --- reading with every error ----------------------------------------------------------------------------------------


def warm_up() -> None:
    """Import cattrs and build the readers now, so that no request waits the tens of milliseconds that it takes."""
    for kind in (Envelope, Manifest, Health, Registry, RegistryEntry, *PAYLOADS.values()):
        _converter().get_structure_hook(kind)


def _decode(value: Any, kind: type[T], what: str, path: tuple[str | int, ...]) -> T:
    try:
        return _converter().structure(value, kind)
    except Exception as error:  # noqa: BLE001 - cattrs wraps whatever a rule raises; _problems re-raises the rest
        problems = tuple(_problems(error, kind, path))[:MAX_PROBLEMS]
        _let_go(error)
        raise InvalidDocument(what, problems) from None


def _let_go(error: BaseException) -> None:
    error.__traceback__ = None  # cattrs' frames hold it, and what was read: a cycle
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


def _object_hook(kind: type, converter: "Converter") -> Callable[[Any, Any], Any]:
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

    def hook(value: Any, _kind: Any) -> Any:
        if type(value) is not dict:
            raise InvalidValue("an object")
        if tolerant and not known.issuperset(value):
            extra = {key: item for key, item in value.items() if key not in known}
            value = {key: item for key, item in value.items() if key in known} | {"extra": extra}
        return read(value, kind)

    return hook


def _array_hook(kind: Any, converter: "Converter") -> Callable[[Any, Any], Any]:
    from cattrs import IterableValidationError, IterableValidationNote  # noqa: PLC0415

    item_kind = kind.__args__[0]
    read = converter.get_structure_hook(item_kind)

    def hook(value: Any, _kind: Any) -> Any:
        """Read each item. cattrs' own hook would collect 100,000 errors where 20 are told, which takes seconds."""
        if type(value) is not list:
            raise InvalidValue("an array")
        items, errors = [], []
        for index, item in enumerate(value):
            try:
                items.append(read(item, item_kind))
            except Exception as error:  # noqa: BLE001 - as cattrs does: _problems re-raises what isn't a rule's
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


def _noted(group: "BaseExceptionGroup[Any]") -> Iterator[tuple[Any, BaseException]]:
    """The exceptions in a group, each with the field or index that cattrs noted on it, or None for the whole."""
    with_notes, without = group.group_exceptions()  # type: ignore[attr-defined]
    for inner, note in with_notes:
        yield getattr(note, "name", getattr(note, "index", None)), inner
    for inner in without:
        yield None, inner
