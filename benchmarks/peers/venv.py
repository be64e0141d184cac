"""One virtual environment per peer, made on first use and kept."""

import subprocess
import sys
from pathlib import Path

from recserve import console
from recserve.errors import CheckFailed

PEERS = Path(__file__).resolve().parent


def peer_python(name: str, cache: Path) -> Path:
    """Returns the interpreter of the environment that ``peers/NAME.txt`` describes, making it if needed."""
    requirements = PEERS / f"{name}.txt"
    folder = cache / name
    done = folder / "installed.txt"
    python = folder / "bin" / "python"
    if not done.is_file() or done.read_bytes() != requirements.read_bytes():
        console.note(f"installing {name} into {folder}")
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)])
        done.write_bytes(requirements.read_bytes())
    return python


def _run(command: list[str]) -> None:
    finished = subprocess.run(command, check=False, stdout=sys.stderr)
    if finished.returncode != 0:
        raise CheckFailed(" ".join(command[1:4]), found=f"exit code {finished.returncode}", expected="0")
