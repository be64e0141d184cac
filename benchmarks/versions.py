"""Versions of one bundle that a reply tells apart: every item id of one starts with its version."""

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from recserve.engine.bundle import BundleWriter, Vocabulary, layout
from recserve.engine.bundle.reader import read_manifest


def make_version(source: Path, target: Path, version: str, *, day: int = 1) -> Path:
    """Writes the bundle ``source`` to ``target`` as ``version``, created on that day of a month.

    Every item id gets the prefix "VERSION:", so that a reply that mixes two versions shows at once.
    """
    manifest = read_manifest(source)
    with pa.OSFile(str(source / layout.ITEMS)) as file:
        items = pa.ipc.open_file(file).read_all()
    ids = [f"{version}:{id_}" for id_ in items.column("item_id").to_pylist()]
    column = pa.array(ids, pa.large_string())
    with BundleWriter(target) as writer:
        for name in manifest.files:
            if name == layout.ITEMS:
                place = items.column_names.index("item_id")
                writer.add_table(name, items.set_column(place, "item_id", column))
            elif name == layout.ITEM_LOOKUP:
                writer.add_table(name, Vocabulary.build(ids).lookup_table())
            else:
                shutil.copyfile(source / name, writer.path(name))
                writer.seal(name)
        created_at = f"2026-01-{day:02}T00:00:00+00:00"
        writer.commit(replace(manifest, bundle_version=version, created_at=created_at, files=writer.files))
    return target


def is_of(version: str, item_ids: list[str]) -> bool:
    """Whether all items are of one version's catalogue (and there are any)."""
    return bool(item_ids) and all(item_id.startswith(f"{version}:") for item_id in item_ids)
