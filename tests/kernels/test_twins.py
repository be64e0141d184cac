"""The reference has every public kernel with the same signature; nothing compiles at import."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recserve import kernels
from recserve.kernels import reference

FUNCTIONS = [name for name in kernels.__all__ if inspect.isfunction(getattr(kernels, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_kernel_has_a_twin_of_the_same_signature(name: str) -> None:
    assert inspect.signature(getattr(kernels, name)) == inspect.signature(getattr(reference, name))


def test_warmup_runs() -> None:
    kernels.warmup()
    reference.warmup()


def test_import_compiles_nothing_and_survives_without_a_cache_folder(tmp_path: Path) -> None:
    """Numba finds no place to cache: one warning that names the cure, and no failure."""
    code = (
        "import warnings\n"
        "from numba.core import event\n"
        "with event.install_recorder('numba:compile') as compiled:\n"
        "    with warnings.catch_warnings(record=True) as caught:\n"
        "        warnings.simplefilter('always')\n"
        "        from recserve import kernels\n"
        "assert not compiled.buffer, compiled.buffer\n"
        "messages = [str(w.message) for w in caught if w.category is RuntimeWarning]\n"
        "assert len(messages) == 1 and 'NUMBA_CACHE_DIR' in messages[0], messages\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    # The only place allowed is the one that NUMBA_CACHE_DIR would name.
    environment["NUMBA_CACHE_LOCATOR_CLASSES"] = "UserProvidedCacheLocator"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    code = (
        "from recserve import kernels\n"
        "from recserve.kernels import search\n"
        "kernels.warmup()\n"
        "searches = (search.search_rows, search.search_tiles, search.search_planes)\n"
        "stats = [kernel.stats for kernel in searches]\n"
        "print(sum(len(s.cache_hits) for s in stats), sum(len(s.cache_misses) for s in stats))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_DISABLE_JIT"}
    command = [sys.executable, "-c", code]
    for _ in range(2):
        printed = subprocess.run(
            command, check=True, env=environment, cwd=tmp_path, capture_output=True
        ).stdout
    hits, misses = map(int, printed.split())
    assert hits > 0
    assert misses == 0
