"""Maps the fixed top-level folders to one import package, ``recserve`` (metadata lives in pyproject.toml)."""

from setuptools import find_packages, setup

FOLDERS = ["proto", "engine", "kernels", "training", "exporters", "benchmarks"]

# The root package (version, errors, py.typed) lives in engine/_root: nothing named `proto` or
# `engine` may land at the top of anybody's site-packages.
packages = ["recserve"]
package_dir = {"recserve": "engine/_root"}
for folder in FOLDERS:
    packages.append(f"recserve.{folder}")
    packages += [f"recserve.{folder}.{sub}" for sub in find_packages(folder, exclude=["_root*"])]
    package_dir[f"recserve.{folder}"] = folder

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={
        "recserve": ["py.typed"],
        "recserve.proto": ["*.proto", "*.pyi", "*.json"],
        "recserve.engine.explain": ["messages/*.toml"],
        "recserve.engine.server.http": ["*.css", "*.js"],
        "recserve.benchmarks.peers": ["*.txt"],
    },
)
