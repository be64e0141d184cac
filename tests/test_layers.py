"""The house rules that a machine can hold: layers, cycles, file and function sizes."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("proto", "engine", "kernels", "training", "exporters", "benchmarks")
# A layer may import the layers named here, itself, and the root modules of `recserve` (ROOT_MODULES).
ALLOWED: dict[str, set[str]] = {
    "proto": set(),
    "kernels": set(),
    "engine.bundle": {"proto"},
    "engine": {
        "engine.bundle",
        "engine.online",
        "engine.state",
        "engine.threads",
        "engine.wire",
        "kernels",
        "proto",
    },
    "engine.online": {"engine.bundle", "engine.state", "kernels"},
    "engine.state": {"engine.bundle", "engine.threads"},
    "engine.threads": set(),
    "engine.models": {"engine", "engine.bundle", "engine.threads"},
    "engine.wire": {"engine", "engine.bundle", "engine.models", "engine.state", "kernels", "proto"},
    "engine.server": {
        "engine",
        "engine.bundle",
        "engine.models",
        "engine.online",
        "engine.state",
        "engine.threads",
        "engine.wire",
        "proto",
    },
    "training": {"kernels", "proto"},
    "exporters": {"training", "kernels", "engine.bundle", "exporters.retraining"},
    "exporters.retraining": {
        "exporters",
        "training",
        "engine",
        "engine.bundle",
        "engine.models",
        "engine.state",
        "proto",
    },
    "benchmarks": {
        "training",
        "kernels",
        "engine",
        "engine.bundle",
        "engine.models",
        "engine.online",
        "engine.server",
        "engine.state",
        "exporters",
        "proto",
        "engine.wire",
    },
}
# The command line starts the server: the one place where the engine's folder looks up.
MAY_LOOK_UP = {"engine/commands.py", "engine/settings.py"}
ROOT_MODULES = {"errors", "console", "files", "permissions", "texts", "words"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 120
# Verbs: their length is that of their option list.
LONG_SIGNATURES = {"train", "evaluate", "serve", "load", "export", "scale", "recommend", "retrain"}


def python_files() -> list[Path]:
    return [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "_pb2" not in path.name
    ]


def layer_of(module: str) -> str:
    """Returns the layer of a module name without the leading ``recserve.``."""
    for layer in sorted(ALLOWED, key=len, reverse=True):
        if module == layer or module.startswith(layer + "."):
            return layer
    return ""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.removeprefix("recserve.").split("."))
    if name.count(".") == 1 and name.startswith("recserve.") and path.name in ROOT_MODULES:
        return True
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Yields the recserve modules that a file imports; ``top_level`` leaves out those inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            # `from package import module` imports the module, `from module import name` the module.
            names = [name if is_module(name) else node.module or "" for name in submodules]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("recserve.") for name in names if name.startswith("recserve."))


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    if str(path.relative_to(ROOT)) in MAY_LOOK_UP or "_root" in path.parts:
        return
    layer = layer_of(module_of(path))
    for module in imports(path):
        if module.split(".")[0] in ROOT_MODULES:
            continue
        other = layer_of(module)
        assert other == layer or other in ALLOWED[layer], f"{path} ({layer}) imports {module} ({other})"


def test_no_cycles() -> None:
    known = {module_of(path): path for path in python_files()}
    graph = {
        module: {name for name in imports(path, top_level=True) if name in known}
        for module, path in known.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join((*trail, module))
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_files_and_functions_stay_readable() -> None:
    for path in python_files():
        source = path.read_text(encoding="utf-8")
        assert len(source.splitlines()) <= MAX_FILE_LINES, path
        limit = MAX_KERNEL_LINES if path.is_relative_to(ROOT / "kernels") else MAX_FUNCTION_LINES
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in LONG_SIGNATURES:
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= limit, f"{path}:{node.lineno} {node.name} has {length} lines"


def test_tracked_files_hold_no_data() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    suffixes = {
        ".parquet",
        ".inter",
        ".onnx",
        ".npy",
        ".npz",
        ".safetensors",
        ".arrow",
        ".zip",
        ".whl",
        ".gz",
    }
    assert [name for name in listed.stdout.splitlines() if Path(name).suffix in suffixes] == []
