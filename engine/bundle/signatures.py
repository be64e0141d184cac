"""Who vouches for a bundle: Ed25519 signatures of its manifest, which names every file by its digest.

``signatures.json`` lies beside the manifest: ``{"format_version": 1, "signatures": {KEY_ID: BASE64}}``.
Signed is one line, CONTEXT, followed by the bytes of ``manifest.json`` as they lie on disk: recserve writes
them in one form (keys sorted, two spaces, ASCII, a newline at the end), and a reader verifies what it read
before it parses any of it, so that nothing has to be written again to be compared.
"""

import base64
import binascii
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from recserve.engine.bundle.plain_files import read_plain
from recserve.engine.bundle.signing_keys import KEY_ID, SigningKey, read_trusted_keys
from recserve.errors import BundleInvalid, BundleReason, ConfigError
from recserve.files import write_whole

log = structlog.get_logger("recserve.bundle")

SIGNATURES_NAME = "signatures.json"
FORMAT_VERSION = 1
CONTEXT = b"recserve bundle manifest v1\n"
MAX_SIGNATURES_BYTES = 1 << 16
OFF, WARN, REQUIRE = "off", "warn", "require"


@dataclass(frozen=True, slots=True)
class SignaturePolicy:
    """Whether a bundle must be signed (``mode`` off, warn or require), and by whom.

    ``trusted_keys``: a file of public keys or a folder of such files, read anew at every load.
    """

    mode: str = OFF
    trusted_keys: Path | None = None

    def __post_init__(self) -> None:
        if self.mode not in (OFF, WARN, REQUIRE):
            raise ConfigError("engine.signatures", found=self.mode, expected=f"{OFF}, {WARN} or {REQUIRE}")
        if self.mode != OFF and self.trusted_keys is None:
            raise ConfigError(
                "engine.trusted_keys",
                found="empty",
                expected=f"a file or folder of public keys where engine.signatures is {self.mode}",
            )


@dataclass(frozen=True, slots=True)
class Trust:
    """What the signatures of a bundle are worth.

    ``signed_by``: the ids of the trusted keys that signed it. ``doubt``: why it is not trusted; the policy
    "warn" lets such a bundle pass. Neither: nobody asked.
    """

    signed_by: tuple[str, ...] = ()
    doubt: BundleReason | None = None

    def __str__(self) -> str:
        return str(self.doubt or ("TRUSTED" if self.signed_by else "UNCHECKED"))


def check_signatures(folder: Path, manifest: bytes, policy: SignaturePolicy) -> Trust:
    """Verifies the signatures in ``folder`` of the manifest with these bytes.

    One trusted key must have signed it, and no signature of a trusted key may be wrong. Raises
    :class:`BundleInvalid` where ``policy`` requires it, :class:`ConfigError` for keys that cannot be read.
    """
    if policy.mode == OFF or policy.trusted_keys is None:
        return Trust()
    trusted = read_trusted_keys(policy.trusted_keys)
    try:
        return Trust(signed_by=_verify(read_signatures(folder), manifest, trusted))
    except BundleInvalid as error:
        if policy.mode == REQUIRE:
            raise
        log.warning("bundle not trusted", folder=str(folder), reason=error.reason, error=str(error))
        return Trust(doubt=error.reason)


def read_signatures(folder: Path) -> dict[str, bytes]:
    """Returns the signatures beside a manifest by key id, unverified; none without the file."""
    if not os.path.lexists(folder / SIGNATURES_NAME):
        return {}
    try:
        raw = json.loads(read_plain(folder / SIGNATURES_NAME, SIGNATURES_NAME, MAX_SIGNATURES_BYTES))
        if raw.keys() != {"format_version", "signatures"} or raw["format_version"] != FORMAT_VERSION:
            raise ValueError("another format")
        return {
            _checked(key): base64.b64decode(text, validate=True) for key, text in raw["signatures"].items()
        }
    except (BundleInvalid, ValueError, AttributeError, TypeError, binascii.Error, RecursionError) as error:
        raise BundleInvalid(
            f"file {SIGNATURES_NAME}",
            found="unreadable",
            expected="signatures by key id",
            cure="Sign the bundle again.",
            reason=BundleReason.SIGNATURE_MALFORMED,
        ) from error


def signatures_with(signatures: Mapping[str, bytes], manifest: bytes, key: SigningKey) -> bytes:
    """Returns the text of ``signatures.json`` with the signature of ``key`` added."""
    every = {**signatures, key.id: key.sign(CONTEXT + manifest)}
    texts = {name: base64.b64encode(signature).decode() for name, signature in every.items()}
    content = {"format_version": FORMAT_VERSION, "signatures": texts}
    return json.dumps(content, indent=2, sort_keys=True).encode() + b"\n"


def add_signature(folder: Path, manifest: bytes, key: SigningKey) -> None:
    """Adds a signature to those in ``folder``; a reader finds the old file or the new one, never a part."""
    text = signatures_with(read_signatures(folder), manifest, key)
    # Beside the bundle: a file that the manifest does not name would spoil it for a reader of this moment.
    partial = folder.resolve().with_name(f".{folder.resolve().name}.{uuid.uuid4().hex[:8]}.signatures")
    write_whole(folder / SIGNATURES_NAME, text, temporary=partial)


def _checked(key: str) -> str:
    if not KEY_ID.fullmatch(key):
        raise ValueError("no key id")
    return key


def _verify(signatures: dict[str, bytes], manifest: bytes, trusted: Mapping[str, Any]) -> tuple[str, ...]:
    from cryptography.exceptions import InvalidSignature

    known = sorted(signatures.keys() & trusted.keys())
    for key in known:
        try:
            trusted[key].verify(signatures[key], CONTEXT + manifest)
        except InvalidSignature as error:
            raise BundleInvalid(
                f"signature of the bundle by key {key}",
                found="not that of its manifest",
                expected="made for it",
                cure="The manifest was changed, or the signature.",
                reason=BundleReason.SIGNATURE_WRONG,
            ) from error
    if not known:
        raise BundleInvalid(
            "bundle",
            found=f"signed by {', '.join(sorted(signatures))} only" if signatures else "not signed",
            expected=f"signed by one of the trusted keys {', '.join(sorted(trusted))}",
            cure="Run: recserve bundle sign BUNDLE --key FILE",
            reason=BundleReason.SIGNATURE_UNKNOWN_KEY if signatures else BundleReason.SIGNATURE_MISSING,
        )
    return tuple(known)
