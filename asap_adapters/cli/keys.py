"""`asap keys` and `asap manifest`: keys made and shown, manifests signed and verified."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from asap_adapters.cli.options import CLI_SENDER, add_backend, add_client_options, reach
from asap_adapters.cli.output import UserError, card, complain, print_json, say
from asap_adapters.client.agent_client import AgentClient
from asap_core.errors import InvalidDocument
from asap_core.wire.codec import read_as
from asap_core.wire.signing import OtherKey, PublicKey, Verified, judge, sign, why_not

if TYPE_CHECKING:
    from asap_adapters.auth.signing_key import PrivateKey

# As large as the client takes one.
_MAX_MANIFEST: Final = 1_048_576


def add_commands(commands: Any) -> None:
    """Add the commands of this module."""
    keys = commands.add_parser("keys", help="make a key to sign manifests with, or show one")
    parts = keys.add_subparsers(title="commands", metavar="COMMAND", required=True)
    new = parts.add_parser("new", help="make an Ed25519 key, in a new file that only you may read")
    new.add_argument("--out", metavar="FILE", type=Path, required=True, help="where to put it; never over another")
    show = parts.add_parser("show", help="show the public key of a key file")
    show.add_argument("file", metavar="FILE", type=Path, help="the key file")
    for command, run in ((new, _new), (show, _show)):
        command.add_argument("--json", action="store_true", help="print JSON")
        add_backend(command)
        command.set_defaults(run=run)

    manifest = commands.add_parser("manifest", help="sign a manifest, or verify a signed one")
    parts = manifest.add_subparsers(title="commands", metavar="COMMAND", required=True)
    signing = parts.add_parser("sign", help="print a manifest signed; one that's signed is signed anew")
    signing.add_argument("file", metavar="FILE", type=Path, help="the manifest")
    signing.add_argument("--key", metavar="FILE", type=Path, required=True, help="the key file (asap keys new)")
    add_backend(signing)
    signing.set_defaults(run=_sign)
    verify = parts.add_parser("verify", help="say whether a manifest is signed by a key you trust (exit 1 if not)")
    verify.add_argument("location", metavar="FILE|URL", help="the manifest, a file or its own URL")
    verify.add_argument(
        "--key", metavar="PUBLIC", type=_public, action="append", default=[], help="a key you trust (repeatable)"
    )
    add_client_options(verify)
    verify.set_defaults(run=_verify)


def _public(text: str) -> PublicKey:
    try:
        return PublicKey.read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _private(path: Path) -> "PrivateKey":
    try:
        from asap_adapters.auth.signing_key import PrivateKey  # noqa: PLC0415 - an extra, which few need
    except ModuleNotFoundError as error:
        raise UserError(str(error)) from None
    return PrivateKey.read(path)


# --- keys ------------------------------------------------------------------------------------------------------------


async def _new(arguments: argparse.Namespace) -> int:
    try:
        from asap_adapters.auth.signing_key import PrivateKey  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise UserError(str(error)) from None
    key = PrivateKey.new()
    try:
        key.write(arguments.out)
    except FileExistsError:
        raise UserError(f"{arguments.out} is there already, and a key is never overwritten") from None
    _tell(key.public_key, as_json=arguments.json)
    if not arguments.json:
        complain(f"the key is in {arguments.out}; keep it secret, and give others what is printed")
    return 0


async def _show(arguments: argparse.Namespace) -> int:
    _tell(_private(arguments.file).public_key, as_json=arguments.json)
    return 0


def _tell(key: PublicKey, *, as_json: bool) -> None:
    if as_json:
        print_json({"public_key": str(key)})
    else:
        say(str(key))


# --- manifests -------------------------------------------------------------------------------------------------------


async def _sign(arguments: argparse.Namespace) -> int:
    key = _private(arguments.key)
    document = _document(_read(arguments.file), str(arguments.file))
    try:
        signed = sign(document, key.sign, key.public_key)
    except InvalidDocument as error:
        raise UserError(f"{arguments.file} is {error}") from None
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


async def _verify(arguments: argparse.Namespace) -> int:
    try:
        from asap_adapters.auth.signing_key import verify  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise UserError(str(error)) from None
    where: str = arguments.location
    if "://" in where:
        async with AgentClient(sender=CLI_SENDER, **reach(arguments)) as client:
            data = await client.get_document(where)
    else:
        data = _read(Path(where))
    document = _document(data, where)
    try:
        judgement = judge(document, arguments.key, verify)
    except InvalidDocument as error:
        raise UserError(f"{where}: what is signed is {error}") from None
    verified = isinstance(judgement, Verified)
    why = why_not(judgement)
    if isinstance(judgement, OtherKey) and not arguments.key:
        why = f"it's signed by {judgement.key}; if you know that to be its agent's key, give it as --key"
    if arguments.json:
        key = judgement.key if isinstance(judgement, Verified | OtherKey) else None
        print_json({"verified": verified, "key": None if key is None else str(key), "why": why})
    elif isinstance(judgement, Verified):
        card("verified", {"id": judgement.manifest.id, "name": judgement.manifest.name, "key": str(judgement.key)})
    else:
        complain(f"{where} isn't verified: {why}")
    return 0 if verified else 1
