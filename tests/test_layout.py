"""The packaging: what the checkout holds, what ships, and which module may import which.

The checkout has `backends/` and `conformance/` at its top, and inside `coatref/` a link to each, so that an uninstalled
or editable checkout imports them by the names that they have once installed: `coatref.backends`, `coatref.conformance`.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAPPED = ("backends", "conformance")  # top-level folders that are installed inside coatref
PACKAGE = ("coatref", *MAPPED)
CACHES = {"__pycache__", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
OPTIONAL = ("array_api_strict", "cupy", "cupyx", "jax", "jaxlib", "sklearn", "timm", "torch", "torchvision")
SLOW_TO_IMPORT = (*OPTIONAL, "PIL", "click", "rich", "safetensors", "scipy", "typer")


def _files(folder: str) -> Iterator[str]:
    """Every real file in a top-level folder, as a path from the root; links to folders are not followed."""
    for parent, folders, names in os.walk(ROOT / folder):
        folders[:] = [name for name in folders if name not in CACHES]
        for name in names:
            if not name.endswith((".pyc", ".pyo")):
                yield (Path(parent) / name).relative_to(ROOT).as_posix()


def _installed(path: str) -> str:
    """Where a file of the package, named by its path from the root, lies once installed."""
    return f"coatref/{path}" if path.split("/")[0] in MAPPED else path


def _modules() -> Iterator[str]:
    """The installed name of every module of the package."""
    for path in (path for folder in PACKAGE for path in _files(folder) if path.endswith(".py")):
        yield _installed(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imports(folder: str) -> Iterator[tuple[str, str]]:
    """For every import statement in a folder, at any depth of the code: where it is, and each name it may mean."""
    for path in _files(folder):
        if not path.endswith(".py"):
            continue
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"), path)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                origin = "." * node.level + (node.module or "")
                names = [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
            else:
                continue
            for name in names:
                yield f"{path}:{node.lineno}", name


def _offences(folder: str, *forbidden: str) -> list[str]:
    """The imports in a folder of a forbidden module or of anything inside one."""
    return [
        f"{where} imports {name}"
        for where, name in _imports(folder)
        if any(name == module or name.startswith(f"{module}.") for module in forbidden)
    ]


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter at the root, which imports the tree unless this run was told (-P) not to."""
    safe_path = ["-P"] if sys.flags.safe_path else []
    command = [sys.executable, *safe_path, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


# --- the checkout ---


@pytest.mark.parametrize("folder", MAPPED)
def test_link_leads_from_the_package_to_the_real_folder(folder: str) -> None:
    if (ROOT / "PKG-INFO").exists():
        pytest.skip("an unpacked source distribution has no links; they serve the checkout only")
    link = ROOT / "coatref" / folder
    assert link.is_symlink(), f"{link} is not a link (git checks links out as text where core.symlinks is false)"
    assert os.readlink(link) == f"../{folder}"
    assert link.resolve() == ROOT / folder
    assert (link / "__init__.py").is_file()


@pytest.mark.parametrize("folder", MAPPED)
def test_git_tracks_the_link_as_a_relative_link(folder: str) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    if shutil.which("git") is None:
        pytest.skip("needs git, which is not installed")

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert git("ls-files", "--stage", "--", f"coatref/{folder}").startswith("120000 ")
    assert git("cat-file", "-p", f":coatref/{folder}") == f"../{folder}"


def test_one_coatref_is_under_test() -> None:
    """Where coatref is installed from a copy, a conftest that imports it would load some modules from each place."""
    modules = {name: module.__file__ for name, module in sys.modules.items() if f"{name}.".startswith("coatref.")}
    roots = {file.rpartition(f"{os.sep}coatref{os.sep}")[0] for file in modules.values() if file}
    assert len(roots) <= 1, f"modules of coatref were loaded from more than one place: {sorted(roots)}"


@pytest.mark.parametrize("folder", MAPPED)
def test_the_generic_name_is_refused(folder: str) -> None:
    code = "import importlib, sys; sys.path.insert(0, ''); importlib.import_module(sys.argv[1])"
    error = _python(code, folder).stderr.rstrip().splitlines()[-1:]
    assert error, f"`import {folder}` succeeded at the root"
    assert error[0].startswith("ImportError: ")  # not ModuleNotFoundError: the folder was found, and refused
    assert f"coatref.{folder}" in error[0]


# --- what ships ---


def _shipped(target: str) -> list[tuple[str, str]]:
    """What hatchling puts into a wheel or sdist: each file's path in the tree and its path in the archive."""
    missing = "needs hatchling, which is not installed (pip install hatchling)"
    module: Any = pytest.importorskip(f"hatchling.builders.{target}", reason=missing)
    builder = {"wheel": "WheelBuilder", "sdist": "SdistBuilder"}[target]
    files = getattr(module, builder)(str(ROOT)).recurse_included_files()
    return sorted(
        (PurePath(file.relative_path).as_posix(), PurePath(file.distribution_path).as_posix()) for file in files
    )


def test_the_wheel_holds_the_package_once_and_nothing_else() -> None:
    shipped = _shipped("wheel")
    assert shipped == sorted((path, _installed(path)) for folder in PACKAGE for path in _files(folder))
    assert "coatref/py.typed" in dict(shipped)


def test_the_sdist_holds_the_source_tree_once_and_nothing_else() -> None:
    assert _shipped("sdist") == sorted((path, path) for folder in (*PACKAGE, "tests") for path in _files(folder))


# --- who imports whom ---


def test_the_definition_imports_neither_backends_nor_the_judge() -> None:
    assert _offences("coatref", "coatref.backends", "coatref.conformance") == []


def test_backends_do_not_import_the_judge() -> None:
    assert _offences("backends", "coatref.conformance") == []


@pytest.mark.parametrize("folder", PACKAGE)
def test_the_package_does_not_import_tests(folder: str) -> None:
    support = {path.stem for path in (ROOT / "tests" / "support").glob("*") if path.name not in CACHES}
    assert _offences(folder, "tests", "conftest", *support) == []


@pytest.mark.parametrize("folder", [*PACKAGE, "tests"])
def test_imports_are_absolute_and_by_installed_name(folder: str) -> None:
    relative = [f"{where} imports {name}" for where, name in _imports(folder) if name.startswith(".")]
    assert relative + _offences(folder, "tests", *MAPPED) == []


def test_importing_coatref_is_light() -> None:
    code = """
import sys
before = set(sys.modules)
import coatref
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before} & set(sys.argv[1:])))
"""
    run = _python(code, *SLOW_TO_IMPORT)
    assert (run.returncode, run.stdout.split()) == (0, []), run.stderr


def test_every_module_imports_without_the_optional_libraries() -> None:
    code = """
import importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
absent, names = (argument.split() for argument in sys.argv[1:])
sys.meta_path.insert(0, Absent())
for name in names:
    importlib.import_module(name)
"""
    names = [name for name in sorted(_modules()) if not name.endswith(".__main__")]
    assert "coatref.backends" in names
    run = _python(code, " ".join(OPTIONAL), " ".join(names))
    assert run.returncode == 0, run.stderr
