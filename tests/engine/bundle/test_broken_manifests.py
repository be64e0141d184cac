"""Manifests and folders that are not what they should be: each is refused, naming the part."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recserve.engine import Engine
from recserve.errors import BundleInvalid
from tests.engine.bundle.conftest import FILES, GRAPH, ITEMS, VECTORS, BundleCopy, refused

Break = Callable[[BundleCopy], object]
CASES: dict[str, tuple[str, Break]] = {}


def broken(names: str) -> Callable[[Break], Break]:
    """Registers a way to break a bundle; ``names`` must stand in the sentence."""

    def register(change: Break) -> Break:
        CASES[change.__name__] = (names, change)
        return change

    return register


def case(label: str, names: str, change: Break) -> None:
    CASES[label] = (names, change)


def in_manifest(label: str, names: str, change: Callable[[dict[str, Any]], object]) -> None:
    case(label, names, lambda bundle: bundle.edit(change))


def text_of_manifest(label: str, names: str, change: Callable[[str], str]) -> None:
    case(
        label,
        names,
        lambda bundle: bundle.manifest_path.write_text(change(bundle.manifest_path.read_text())),
    )


def rename_file(new: str) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["files"].update({new: manifest["files"].pop(ITEMS)})


# The manifest.
in_manifest("an unknown rule", "cap", lambda manifest: manifest.update(pipeline={"cap": {}}))
in_manifest(
    "a rule out of range", "pipeline.diversity", lambda manifest: manifest.update(pipeline={"diversity": 7.0})
)
in_manifest(
    "a rule of another type", "caps.a", lambda manifest: manifest.update(pipeline={"caps": {"a": "b"}})
)
text_of_manifest("torn manifest", "manifest.json", lambda text: text[: len(text) // 2])
text_of_manifest("empty manifest", "manifest.json", lambda text: "")
text_of_manifest("duplicate keys", "model", lambda text: '{"model": "a", ' + text[1:])
text_of_manifest("NaN", "NaN", lambda text: re.sub(r'"seed": \d+', '"seed": NaN', text))
text_of_manifest("a number beyond float", "1e999", lambda text: re.sub(r'"seed": \d+', '"seed": 1e999', text))
text_of_manifest(
    "5,000 digits", "manifest.json", lambda text: re.sub(r'"seed": \d+', '"seed": ' + "9" * 5000, text)
)
text_of_manifest("nested without end", "manifest.json", lambda text: "[" * 200_000)
text_of_manifest("a list for a manifest", "manifest.json", lambda text: "[]")
text_of_manifest("lone surrogate", "model", lambda text: text.replace('"sasrec"', r'"\ud800"'))
in_manifest("unknown field", "modell", lambda m: m.update(modell="x"))
in_manifest("unknown nested field", "max_histroy", lambda m: m["inputs"].update(max_histroy=1))
in_manifest("missing field", "created_at", lambda m: m.pop("created_at"))
in_manifest("wrong type", "n_items", lambda m: m.update(n_items="many"))
in_manifest("boolean for a number", "embedding_size", lambda m: m.update(embedding_size=True))
in_manifest("format of the future", "format_version", lambda m: m.update(format_version=2))
in_manifest("no format", "format_version", lambda m: m.pop("format_version"))
in_manifest("unknown default variant", "default_variant", lambda m: m.update(default_variant="int8"))
in_manifest("no variants", "default_variant", lambda m: m.update(variants={}))
in_manifest("variant without its file", "fp32", lambda m: m["variants"]["fp32"].update(golden="x.npz"))
in_manifest("no items", "n_items", lambda m: m.update(n_items=0))
in_manifest("endless history", "max_history", lambda m: m["inputs"].update(max_history=1 << 30))
in_manifest("history that the graph cannot take", "max_history", lambda m: m["inputs"].update(max_history=64))
in_manifest("parent folder", "../items.arrow", rename_file("../items.arrow"))
in_manifest("absolute path", "/etc/passwd", rename_file("/etc/passwd"))
in_manifest("backslash", "..\\", rename_file("..\\items.arrow"))
in_manifest("NUL in a path", "file name", rename_file("items\0.arrow"))
in_manifest("short digest", ITEMS, lambda m: m["files"][ITEMS].update(sha256="00"))
in_manifest("negative size", ITEMS, lambda m: m["files"][ITEMS].update(size_bytes=-1))
in_manifest("forged log line", "field", lambda m: m.update({"x\nERROR all is lost": 1}))
in_manifest("unknown feature", "features", lambda m: m["inputs"].update(features=["history", "mood"]))
in_manifest("feature without a graph input", GRAPH, lambda m: m["inputs"]["features"].append("time_gaps"))
in_manifest("more items than vectors", "1001", lambda m: m.update(n_items=1001))
in_manifest("wider embeddings", VECTORS, lambda m: m.update(embedding_size=17))


@broken("manifest.json")
def manifest_not_utf8(bundle: BundleCopy) -> None:
    bundle.manifest_path.write_bytes(b'{"model": "\xff"}')


@broken("manifest.json")
def no_manifest(bundle: BundleCopy) -> None:
    bundle.manifest_path.unlink()


@broken("manifest.json")
def manifest_through_a_link(bundle: BundleCopy) -> None:
    bundle.manifest_path.rename(bundle.folder.with_name("elsewhere.json"))
    bundle.manifest_path.symlink_to(bundle.folder.with_name("elsewhere.json"))


@broken("manifest.json")
def manifest_is_a_pipe(bundle: BundleCopy) -> None:
    bundle.manifest_path.unlink()
    os.mkfifo(bundle.manifest_path)


# Files as the directory has them.
for name in FILES:
    case(f"flipped bit in {name}", f"SHA-256 of {name}", lambda bundle, name=name: bundle.flip_bit(name))
    case(f"missing {name}", name, lambda bundle, name=name: (bundle.folder / name).unlink())
    if not name.startswith("variants"):
        in_manifest(f"unlisted {name}", name, lambda m, name=name: m["files"].pop(name))
case(
    "longer file",
    f"size of {ITEMS}",
    lambda bundle: (bundle.folder / ITEMS).write_bytes(bundle.read(ITEMS) + b"x"),
)
case("extra file", "readme.txt", lambda bundle: (bundle.folder / "readme.txt").write_text("x"))
case("extra link to a folder", "more", lambda bundle: (bundle.folder / "more").symlink_to("/tmp"))


@broken(ITEMS)
def symlink_for_a_file(bundle: BundleCopy) -> None:
    (bundle.folder / ITEMS).rename(bundle.folder.with_name("outside"))
    (bundle.folder / ITEMS).symlink_to(bundle.folder.with_name("outside"))


@broken(ITEMS)
def hardlink_from_outside(bundle: BundleCopy) -> None:
    (bundle.folder.with_name("outside")).hardlink_to(bundle.folder / ITEMS)


@broken("variants")
def symlink_for_a_folder(bundle: BundleCopy) -> None:
    (bundle.folder / "variants").rename(bundle.folder.with_name("outside"))
    (bundle.folder / "variants").symlink_to(bundle.folder.with_name("outside"))


@broken(VECTORS)
def pipe_for_a_file(bundle: BundleCopy) -> None:
    (bundle.folder / VECTORS).unlink()
    os.mkfifo(bundle.folder / VECTORS)


@broken(VECTORS)
def folder_for_a_file(bundle: BundleCopy) -> None:
    (bundle.folder / VECTORS).unlink()
    (bundle.folder / VECTORS).mkdir()


case(
    "extra file in a folder",
    "variants/x",
    lambda bundle: (bundle.folder / "variants" / "x").write_text("x"),
)


@pytest.mark.parametrize("label", CASES)
def test_a_wrong_manifest_or_folder_is_refused(bundle: BundleCopy, label: str) -> None:
    names, change = CASES[label]
    change(bundle)
    refused(bundle, names)


@pytest.mark.parametrize("found", ["nowhere", "a file", "a folder"])
def test_a_path_without_a_bundle_is_named(tmp_path: Path, found: str) -> None:
    path = tmp_path / "bundle"
    if found == "a file":
        path.write_text("x")
    elif found == "a folder":
        path.mkdir()
    with pytest.raises(BundleInvalid, match=r"bundle .* is .*Check the path"):
        Engine.load(path)
