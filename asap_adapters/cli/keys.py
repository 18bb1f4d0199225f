"""`asap keys` and `asap manifest`: makes and shows keys, signs and verifies manifests."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from asap_adapters.cli.command import command, in_event_loop, nested, repeated, required
from asap_adapters.cli.failures import UserError
from asap_adapters.cli.options import CLI_SENDER, OutboundOptions, backend_option, json_option
from asap_adapters.cli.output import card, complain, print_json, say
from asap_adapters.client.agent_client import AgentClient
from asap_core.errors import InvalidDocument
from asap_core.wire.codec import read_as
from asap_core.wire.signing import OtherKey, PublicKey, Verified, judge, sign, why_not

if TYPE_CHECKING:
    from asap_adapters.auth.signing_key import PrivateKey

# The client's own limit.
_MAX_MANIFEST: Final = 1_048_576


def _private(path: Path) -> "PrivateKey":
    from asap_adapters.auth import PrivateKey  # noqa: PLC0415 - needs an extra

    return PrivateKey.read(path)


# --- keys ------------------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class NewKeyOptions:
    """The options of `asap keys new`."""

    out: Path = required("--out FILE", Path, "write the key to this file, which must not exist yet")
    json: bool = json_option()
    backend: str = backend_option()


async def _new(options: NewKeyOptions) -> int:
    from asap_adapters.auth import PrivateKey  # noqa: PLC0415 - needs an extra

    key = PrivateKey.new()
    try:
        key.write(options.out)
    except FileExistsError:
        raise UserError(f"{options.out} exists, and a key is never overwritten") from None
    _print_key(key.public_key, as_json=options.json)
    if not options.json:
        complain(f"the private key is in {options.out}: keep it secret; the public key, printed above, is for others")
    return 0


@frozen(kw_only=True)
class ShowKeyOptions:
    """The options of `asap keys show`."""

    file: Path = required("FILE", Path, "file of the key")
    json: bool = json_option()
    backend: str = backend_option()


async def _show(options: ShowKeyOptions) -> int:
    _print_key(_private(options.file).public_key, as_json=options.json)
    return 0


def _print_key(key: PublicKey, *, as_json: bool) -> None:
    if as_json:
        print_json({"public_key": str(key)})
    else:
        say(str(key))


# --- manifests -------------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class SignOptions:
    """The options of `asap manifest sign`."""

    file: Path = required("FILE", Path, "file of the manifest")
    key: Path = required("--key FILE", Path, "sign with this private key, made by `asap keys new`")
    backend: str = backend_option()


async def _sign(options: SignOptions) -> int:
    key = _private(options.key)
    document = _document(_read(options.file), str(options.file))
    try:
        signed = sign(document, key.sign, key.public_key)
    except InvalidDocument as error:
        raise UserError(f"{options.file} is {error}") from None
    print_json(signed)
    return 0


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MAX_MANIFEST + 1)
    if len(data) > _MAX_MANIFEST:
        raise UserError(f"{path}: expected at most {_MAX_MANIFEST} bytes")
    return data


def _document(data: bytes, where: str) -> Any:
    try:
        return read_as(data, lambda value: value, "manifest")
    except InvalidDocument as error:
        raise UserError(f"{where} is {error}") from None


@frozen(kw_only=True)
class VerifyOptions:
    """The options of `asap manifest verify`."""

    location: str = required("FILE|URL", str, "file or URL of the manifest")
    key: Sequence[PublicKey] = repeated(
        "--key PUBLIC", PublicKey.read, "trust this public key; several, while a key is being changed"
    )
    json: bool = json_option()
    outbound: OutboundOptions = nested(OutboundOptions, "connections")
    backend: str = backend_option()


async def _verify(options: VerifyOptions) -> int:
    from asap_adapters.auth.ed25519 import verify  # noqa: PLC0415 - needs an extra

    where = options.location
    if "://" in where:
        async with AgentClient(CLI_SENDER, **options.outbound.client_arguments()) as client:
            data = await client.get_document(where)
    else:
        data = _read(Path(where))
    document = _document(data, where)
    try:
        judgement = judge(document, options.key, verify)
    except InvalidDocument as error:
        raise UserError(f"{where}: the signed manifest is {error}") from None
    verified = isinstance(judgement, Verified)
    why = why_not(judgement)
    if isinstance(judgement, OtherKey) and not options.key:
        why = f"it's signed by {judgement.key}; if you know that this is the agent's key, give it as --key"
    if options.json:
        key = judgement.key if isinstance(judgement, Verified | OtherKey) else None
        print_json({"verified": verified, "key": None if key is None else str(key), "why": why})
    elif isinstance(judgement, Verified):
        card("verified", {"id": judgement.manifest.id, "name": judgement.manifest.name, "key": str(judgement.key)})
    else:
        complain(f"{where} isn't verified: {why}")
    return 0 if verified else 1


COMMANDS: Final = (
    command("keys new", NewKeyOptions, in_event_loop(_new), "make an Ed25519 key in a new file that only you may read"),
    command("keys show", ShowKeyOptions, in_event_loop(_show), "print the public key of a key file"),
    command(
        "manifest sign",
        SignOptions,
        in_event_loop(_sign),
        "print a manifest with its signature; an older signature is replaced",
    ),
    command(
        "manifest verify",
        VerifyOptions,
        in_event_loop(_verify),
        "check that a manifest is signed by a key you trust (exit code 1 if not)",
    ),
)
