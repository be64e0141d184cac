"""The verbs ``recserve bundle``: keys that sign, and who signed what."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from recserve import console

BundleArgument = Annotated[Path, typer.Argument(help="Bundle folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(add: Callable[..., Any]) -> None:
    """Adds the verbs to the command line."""
    for verb in (keygen, sign, verify):
        add(verb, group="bundle")


def keygen(
    file: Annotated[Path, typer.Argument(help="File of the private key; FILE.pub gets the public one.")],
) -> None:
    """Make an Ed25519 key that signs bundles, and print its id."""
    from recserve.engine.bundle.signing_keys import PUBLIC_SUFFIX, create_key

    console.stdout.file.write(f"{create_key(file)}\n")
    console.note(f"{file} signs: keep it secret; {file}{PUBLIC_SUFFIX} is for engine.trusted_keys")


def sign(
    bundle: BundleArgument,
    key: Annotated[
        Path | None,
        typer.Option(help="File of the private key. Default: RECSERVE_SIGNING_KEY in the environment."),
    ] = None,
) -> None:
    """Check a bundle and add a signature to it; signatures of other keys stay."""
    from recserve.engine.bundle.reader import sign_bundle
    from recserve.engine.bundle.signing_keys import read_signing_key

    signing_key = read_signing_key(key)
    sign_bundle(bundle, signing_key)
    console.note(f"{bundle} is signed by {signing_key.id}")


def verify(
    bundle: BundleArgument,
    trusted_keys: Annotated[Path, typer.Option(help="File of public keys (PEM), or folder of such files.")],
    json: JsonOption = False,
) -> None:
    """Check every file of a bundle and that a trusted key signed it; exit code 5 where not."""
    from recserve.engine.bundle import open_bundle
    from recserve.engine.bundle.signatures import REQUIRE, SignaturePolicy

    opened = open_bundle(bundle, SignaturePolicy(REQUIRE, trusted_keys))
    version, signed_by = opened.manifest.bundle_version, opened.trust.signed_by
    if json:
        console.print_json({"bundle_version": version, "signed_by": list(signed_by)})
        return
    console.print_table(
        f"{bundle}: signed, and every file is what the manifest says",
        ["what", "value"],
        [["bundle version", version], *(["signed by", key] for key in signed_by)],
    )
