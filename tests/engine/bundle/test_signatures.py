"""Who signed a bundle: every policy against every state of the signatures, keys, rotation, the verbs."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from recserve.engine import Engine
from recserve.engine.bundle import open_bundle
from recserve.engine.bundle.reader import sign_bundle
from recserve.engine.bundle.signatures import CONTEXT, SIGNATURES_NAME, SignaturePolicy
from recserve.engine.bundle.signing_keys import create_key, read_signing_key, read_trusted_keys
from recserve.engine.config import EngineConfig
from recserve.errors import BundleInvalid, BundleReason, ConfigError, InvalidRequest
from tests.engine.bundle.conftest import ITEMS, BundleCopy


class Keys:
    """Key pairs by name; the public halves of some of them are trusted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trusted = folder / "trusted"
        self.trusted.mkdir()
        self.ids = {name: create_key(folder / name) for name in ("ours", "next", "stranger")}

    def trust(self, *names: str) -> None:
        for old in self.trusted.iterdir():
            old.unlink()
        for name in names:
            shutil.copy(self.folder / f"{name}.pub", self.trusted)

    def sign(self, bundle: BundleCopy, *names: str) -> None:
        for name in names:
            sign_bundle(bundle.folder, read_signing_key(self.folder / name))

    def policy(self, mode: str = "require") -> SignaturePolicy:
        return SignaturePolicy(mode, self.trusted)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    (tmp_path / "keys").mkdir()
    keys = Keys(tmp_path / "keys")
    keys.trust("ours")
    return keys


def edit_signatures(bundle: BundleCopy, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle.folder / SIGNATURES_NAME
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def swap_signature(bundle: BundleCopy, keys: Keys) -> None:
    """Shows what a stranger signed under the id of a trusted key."""
    keys.sign(bundle, "stranger")
    edit_signatures(
        bundle,
        lambda content: content.update(
            signatures={keys.ids["ours"]: content["signatures"][keys.ids["stranger"]]}
        ),
    )


def tamper(bundle: BundleCopy, keys: Keys) -> None:
    """Changes an item and the digests with it: all is consistent but the signature."""
    keys.sign(bundle, "ours")
    bundle.write(ITEMS, bundle.read(ITEMS))
    bundle.edit(lambda manifest: manifest.update(bundle_version="v666"))


def write_signatures(text: str) -> Callable[[BundleCopy, Keys], object]:
    return lambda bundle, keys: (bundle.folder / SIGNATURES_NAME).write_text(text)


def link_signatures(bundle: BundleCopy, keys: Keys) -> None:
    keys.sign(bundle, "ours")
    path = bundle.folder / SIGNATURES_NAME
    path.rename(bundle.folder.with_name("elsewhere"))
    path.symlink_to(bundle.folder.with_name("elsewhere"))


def one_signature(key: str = "0" * 16, text: str = "") -> str:
    return json.dumps({"format_version": 1, "signatures": {key: text}})


UNTRUSTED: dict[str, tuple[BundleReason, Callable[[BundleCopy, Keys], object]]] = {
    "not signed": (BundleReason.SIGNATURE_MISSING, lambda bundle, keys: None),
    "no signature left": (
        BundleReason.SIGNATURE_MISSING,
        write_signatures('{"format_version": 1, "signatures": {}}'),
    ),
    "an unknown key": (
        BundleReason.SIGNATURE_UNKNOWN_KEY,
        lambda bundle, keys: keys.sign(bundle, "stranger"),
    ),
    "a stranger under our id": (BundleReason.SIGNATURE_WRONG, swap_signature),
    "a manifest changed since": (BundleReason.SIGNATURE_WRONG, tamper),
    "white space added since": (
        BundleReason.SIGNATURE_WRONG,
        lambda bundle, keys: [
            keys.sign(bundle, "ours"),
            bundle.manifest_path.write_text(bundle.manifest_path.read_text() + "\n"),
        ],
    ),
    "torn": (BundleReason.SIGNATURE_MALFORMED, write_signatures('{"format_version": 1,')),
    "empty file": (BundleReason.SIGNATURE_MALFORMED, write_signatures("")),
    "a list": (BundleReason.SIGNATURE_MALFORMED, write_signatures("[]")),
    "nested without end": (BundleReason.SIGNATURE_MALFORMED, write_signatures("[" * 50_000)),
    "too large": (BundleReason.SIGNATURE_MALFORMED, write_signatures(" " * 100_000)),
    "another format": (
        BundleReason.SIGNATURE_MALFORMED,
        write_signatures('{"format_version": 2, "signatures": {}}'),
    ),
    "an id that is none": (BundleReason.SIGNATURE_MALFORMED, write_signatures(one_signature("../x"))),
    "no base64": (BundleReason.SIGNATURE_MALFORMED, write_signatures(one_signature(text="!"))),
    "a number for a signature": (
        BundleReason.SIGNATURE_MALFORMED,
        write_signatures('{"format_version": 1, "signatures": {"%s": 1}}' % ("0" * 16)),
    ),
    "behind a link": (BundleReason.SIGNATURE_MALFORMED, link_signatures),
    "a folder": (
        BundleReason.SIGNATURE_MALFORMED,
        lambda bundle, keys: (bundle.folder / SIGNATURES_NAME).mkdir(),
    ),
    "a pipe": (
        BundleReason.SIGNATURE_MALFORMED,
        lambda bundle, keys: os.mkfifo(bundle.folder / SIGNATURES_NAME),
    ),
}


@pytest.mark.parametrize("label", UNTRUSTED)
def test_what_no_trusted_key_signed(bundle: BundleCopy, keys: Keys, label: str) -> None:
    reason, change = UNTRUSTED[label]
    change(bundle, keys)
    with pytest.raises(BundleInvalid) as caught:
        open_bundle(bundle.folder, keys.policy("require"))
    assert caught.value.reason is reason
    trust = open_bundle(bundle.folder, keys.policy("warn")).trust
    assert (trust.doubt, trust.signed_by) == (reason, ())
    assert str(open_bundle(bundle.folder).trust) == "UNCHECKED"


@pytest.mark.parametrize("mode", ["warn", "require"])
def test_what_a_trusted_key_signed(bundle: BundleCopy, keys: Keys, mode: str) -> None:
    keys.sign(bundle, "ours", "stranger")
    trust = open_bundle(bundle.folder, keys.policy(mode)).trust
    assert (str(trust), trust.signed_by) == ("TRUSTED", (keys.ids["ours"],))
    bundle.flip_bit(ITEMS)
    with pytest.raises(BundleInvalid, match=f"SHA-256 of {ITEMS}"):
        open_bundle(bundle.folder, keys.policy(mode))


def test_a_wrong_signature_counts_more_than_a_right_one(bundle: BundleCopy, keys: Keys) -> None:
    keys.trust("ours", "next")
    keys.sign(bundle, "ours", "next")
    wrong = base64.b64encode(bytes(64)).decode()
    edit_signatures(bundle, lambda content: content["signatures"].update({keys.ids["next"]: wrong}))
    with pytest.raises(BundleInvalid, match=keys.ids["next"]):
        open_bundle(bundle.folder, keys.policy())


def test_keys_rotate_without_a_gap(bundle: BundleCopy, keys: Keys) -> None:
    """Servers trust the old key, then both, then the new one; bundles follow in any order."""
    keys.sign(bundle, "ours")
    keys.trust("ours", "next")
    open_bundle(bundle.folder, keys.policy())
    keys.sign(bundle, "next")
    assert set(open_bundle(bundle.folder, keys.policy()).trust.signed_by) == {
        keys.ids["ours"],
        keys.ids["next"],
    }
    keys.trust("next")
    assert open_bundle(bundle.folder, keys.policy()).trust.signed_by == (keys.ids["next"],)
    one_file = keys.folder / "both.pem"
    one_file.write_bytes(b"".join((keys.folder / f"{name}.pub").read_bytes() for name in ("ours", "next")))
    assert set(read_trusted_keys(one_file)) == {keys.ids["ours"], keys.ids["next"]}


def test_the_signed_bytes_are_those_that_are_documented(bundle: BundleCopy, keys: Keys) -> None:
    """OpenSSL agrees, which knows nothing of us but the context line."""
    keys.sign(bundle, "ours")
    signature = json.loads((bundle.folder / SIGNATURES_NAME).read_text())["signatures"][keys.ids["ours"]]
    (keys.folder / "signature").write_bytes(base64.b64decode(signature))
    assert CONTEXT == b"recserve bundle manifest v1\n"
    (keys.folder / "signed").write_bytes(CONTEXT + bundle.manifest_path.read_bytes())
    command = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(keys.folder / "ours.pub")]
    command += ["-sigfile", str(keys.folder / "signature"), "-in", str(keys.folder / "signed")]
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    assert b"Verified Successfully" in subprocess.run(command, capture_output=True, check=True).stdout


def test_the_engine_requires_warns_or_does_not_ask(bundle: BundleCopy, keys: Keys) -> None:
    with pytest.raises(BundleInvalid, match="not signed"):
        Engine.load(bundle.folder, EngineConfig(signatures="require", trusted_keys=keys.trusted))
    with structlog.testing.capture_logs() as logs:
        with Engine.load(bundle.folder, EngineConfig(signatures="warn", trusted_keys=keys.trusted)) as engine:
            assert str(engine.loaded.bundle.trust) == "BUNDLE_SIGNATURE_MISSING"
        Engine.load(bundle.folder, EngineConfig(trusted_keys=keys.trusted)).close()
    [line] = [line for line in logs if line["event"] == "bundle not trusted"]
    assert (line["log_level"], line["reason"]) == ("warning", "BUNDLE_SIGNATURE_MISSING")


def test_settings_that_would_check_nothing_are_refused(keys: Keys) -> None:
    with pytest.raises(ConfigError, match=r"engine\.signatures is required; expected off, warn or require"):
        EngineConfig(signatures="required", trusted_keys=keys.trusted)
    for mode in ("warn", "require"):
        with pytest.raises(ConfigError, match=r"engine\.trusted_keys is empty"):
            EngineConfig(signatures=mode)


def private_key_as_public(keys: Keys) -> None:
    shutil.copy(keys.folder / "ours", keys.trusted / "ours.pub")


def key_that_anybody_may_change(keys: Keys) -> None:
    (keys.trusted / "ours.pub").chmod(0o666)


BAD_TRUST: dict[str, Callable[[Keys], object]] = {
    "no folder": lambda keys: shutil.rmtree(keys.trusted),
    "empty folder": lambda keys: keys.trust(),
    "text": lambda keys: (keys.trusted / "x.pub").write_text("x"),
    "another kind of key": lambda keys: (keys.trusted / "x.pem").write_bytes(rsa_public_key()),
    "private key": private_key_as_public,
    "writable by all": key_that_anybody_may_change,
    "folder writable by all": lambda keys: keys.trusted.chmod(0o777),
}


def rsa_public_key() -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 1024).public_key()
    pem, info = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_bytes(pem, info))


@pytest.mark.parametrize("mode", ["warn", "require"])
@pytest.mark.parametrize("label", BAD_TRUST)
def test_trusted_keys_that_cannot_be_trusted(bundle: BundleCopy, keys: Keys, label: str, mode: str) -> None:
    keys.sign(bundle, "ours")
    BAD_TRUST[label](keys)
    with pytest.raises(ConfigError, match="trusted"):
        open_bundle(bundle.folder, keys.policy(mode))


def test_a_signing_key_is_a_secret(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    file = keys.folder / "ours"
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InvalidRequest, match="there already"):
        create_key(file)
    text = file.read_text()
    monkeypatch.setenv("RECSERVE_SIGNING_KEY", text)
    assert read_signing_key().id == keys.ids["ours"]
    monkeypatch.setenv("RECSERVE_SIGNING_KEY", text.replace("PRIVATE", "SECRET"))
    with pytest.raises(
        ConfigError, match="RECSERVE_SIGNING_KEY in the environment is something else"
    ) as caught:
        read_signing_key()
    assert text.splitlines()[1] not in str(caught.value)
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="mode 0644"):
        read_signing_key(file)


def test_the_verbs(bundle: BundleCopy, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    key, public = tmp_path / "release", tmp_path / "release.pub"
    code, out, _ = run_cli("bundle", "keygen", key)
    assert code == 0
    key_id = out.strip()
    code, _, err = run_cli("bundle", "verify", bundle.folder, "--trusted-keys", public)
    assert code == 5
    assert err.strip().endswith("[BUNDLE_SIGNATURE_MISSING]")
    assert run_cli("bundle", "sign", bundle.folder)[0] == 3, "no key given"
    assert run_cli("bundle", "sign", bundle.folder, "--key", key)[0] == 0
    code, out, _ = run_cli("bundle", "verify", bundle.folder, "--trusted-keys", public, "--json")
    assert code == 0
    assert json.loads(out)["signed_by"] == [key_id]
    assert key_id in run_cli("inspect", bundle.folder)[1]
    assert not list(bundle.folder.parent.glob(".*")), "a partial file was left"
    bundle.flip_bit(ITEMS)
    assert run_cli("bundle", "sign", bundle.folder, "--key", key)[0] == 5, "signed what is broken"
