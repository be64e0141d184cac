"""A bundle is written whole or not at all, whatever happens to the writer."""

import ctypes
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recserve.engine.bundle import BundleWriter, Manifest, open_bundle
from recserve.engine.bundle.writer import sha256_of
from recserve.errors import InvalidRequest

TIMEOUT_SECONDS = 60

# For each n: a child process copies a bundle through the writer and dies by SIGKILL at its n-th step. Steps
# are what an audit hook sees (every open, mkdir, rename, remove) and every flush to disk.
KILLED_WRITERS = """
import dataclasses, os, signal, sys
from pathlib import Path
from recserve.engine.bundle import BundleWriter
from recserve.engine.bundle.reader import read_manifest

source, root, replace = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "replace"
STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "ctypes.dlsym")
left, fsync, manifest = None, os.fsync, read_manifest(source)
data = {name: (source / name).read_bytes() for name in manifest.files}

def step(event, arguments=None):
    global left
    if left is not None and event in STEPS:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

def flush(descriptor):
    step("open")
    fsync(descriptor)

def write(target, version):
    with BundleWriter(target, replace=replace) as writer:
        for name in manifest.files:
            writer.add_bytes(name, data[name])
        writer.commit(dataclasses.replace(manifest, bundle_version=version, files=writer.files))

sys.addaudithook(step)
os.fsync = flush
for n in map(int, sys.argv[4:]):
    target = root / str(n) / "bundle"
    target.parent.mkdir()
    if replace:
        write(target, "old")
    child = os.fork()
    if not child:
        left = n
        write(target, "new")
        os._exit(0)
    print(n, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
# A write has 56 steps, with the removal of a replaced bundle 72; it is published in the 54th. Those
# around that one are tried, and a sample of the others.
STEPS = [*sorted(random.Random(5).sample(range(50), 8)), *range(50, 58), 62, 70, 100]


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    def write_and_fail() -> None:
        with BundleWriter(tmp_path / "bundle") as writer:
            writer.add_array("a.npy", np.arange(3))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_files_are_recorded_as_they_are(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "bundle") as writer:
        writer.add_bytes("folder/file.bin", b"12345")
        entry = writer.files["folder/file.bin"]
        assert entry.size_bytes == 5
        assert entry.sha256 == sha256_of(writer.path("folder/file.bin"))


def test_only_a_bundle_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for replace in (False, True):
        with pytest.raises(InvalidRequest, match="there already"):
            BundleWriter(tmp_path / "mine", replace=replace)


def test_a_manifest_survives_the_round_trip(bundle_folder: Path) -> None:
    manifest = open_bundle(bundle_folder).manifest
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest
    assert dataclasses.asdict(again) == dataclasses.asdict(manifest)


@pytest.mark.parametrize("mode", ["new", "replace"])
def test_a_killed_writer_leaves_a_whole_bundle_or_none(
    bundle_folder: Path, tmp_path: Path, mode: str
) -> None:
    command = [sys.executable, "-c", KILLED_WRITERS, str(bundle_folder), str(tmp_path), mode]
    finished = subprocess.run(
        [*command, *map(str, STEPS)], check=True, timeout=TIMEOUT_SECONDS, capture_output=True, text=True
    )
    codes = dict(tuple(map(int, line.split())) for line in finished.stdout.splitlines())
    assert list(codes) == STEPS
    assert set(codes.values()) == {0, -signal.SIGKILL}
    assert codes[STEPS[-1]] == 0
    found = set()
    for n in STEPS:
        target = tmp_path / str(n) / "bundle"
        version = open_bundle(target).manifest.bundle_version if target.exists() else "none"
        assert version == "new" or (codes[n] and version == ("old" if mode == "replace" else "none"))
        found.add(version)
    # Killed before and after the moment of publication.
    assert len(found) == 2


def test_an_open_bundle_outlives_its_replacement(bundle_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    shutil.copytree(bundle_folder, target)
    opened = open_bundle(target)
    before = np.array(opened.item_embeddings)
    copy_through_writer(bundle_folder, target, "second", replace=True)
    np.testing.assert_array_equal(opened.item_embeddings, before)
    assert open_bundle(target).manifest.bundle_version == "second"
    assert os.listdir(tmp_path) == ["bundle"]


@pytest.mark.parametrize("swap", ["in one step", "in three"])
def test_replacing_works_where_names_cannot_be_swapped(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: str
) -> None:
    if swap == "in three":
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    copy_through_writer(bundle_folder, tmp_path / "bundle", "first")
    copy_through_writer(bundle_folder, tmp_path / "bundle", "second", replace=True)
    assert open_bundle(tmp_path / "bundle").manifest.bundle_version == "second"
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_target_that_appears_meanwhile_is_left_alone(bundle_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with BundleWriter(target) as writer:
        target.mkdir()
        (target / "mine.txt").write_text("x")
        with pytest.raises(InvalidRequest, match="there already"):
            writer.commit(open_bundle(bundle_folder).manifest)
    assert os.listdir(tmp_path) == ["bundle"]
    assert os.listdir(target) == ["mine.txt"]


def copy_through_writer(source: Path, target: Path, version: str, *, replace: bool = False) -> None:
    manifest = open_bundle(source).manifest
    with BundleWriter(target, replace=replace) as writer:
        for name in manifest.files:
            writer.add_bytes(name, (source / name).read_bytes())
        writer.commit(dataclasses.replace(manifest, bundle_version=version, files=writer.files))


def test_a_link_is_not_replaced(bundle_folder: Path, tmp_path: Path) -> None:
    current = tmp_path / "current"
    current.symlink_to(bundle_folder)
    with pytest.raises(InvalidRequest, match="Export to a new folder and move the link"):
        BundleWriter(current, replace=True)
    assert current.is_symlink()
    assert [path.name for path in tmp_path.iterdir()] == ["current"]
