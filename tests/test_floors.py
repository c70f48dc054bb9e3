"""The house: which folder may import which, what stays light, and that the checks of shapes and types are on."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).resolve().parents[1] / "src" / "bitbudget"

# Ground floor first: a floor imports from itself and from those before it. errors and data stand on nothing at all.
FLOORS = (
    "errors",
    "data",
    "heap",
    "threads",
    "grids",
    "storage",
    "kernels",
    "checkpoint",
    "models",
    "calibration",
    "rounding",
    "transforms",
    "tuning",
    "scoring",
    "allocation",
    "methods",
    "targets",
    "pipeline",
    "integrations",
    "report",
    "__init__",  # the public names of the package
    "cli",
    "__main__",
)
STANDALONE = ("errors", "data", "heap")
LIGHT = ("__init__", "errors", "data", "cli")
HEAVY = ("torch", "transformers", "scipy", "matplotlib")


def floor_of(path: Path) -> str:
    """The floor that a file of the package belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_floors(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and floor of every import from bitbudget, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "bitbudget":
            names = [f"bitbudget.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "bitbudget":
                floor = rest.partition(".")[0]
                yield node.lineno, floor if floor in FLOORS else "__init__"


def violations(tree: ast.AST, floor: str) -> list[tuple[int, str]]:
    """The imports that a file of `floor` must not have."""
    allowed = {floor} if floor in STANDALONE else set(FLOORS[: FLOORS.index(floor) + 1])
    return [(line, wanted) for line, wanted in imported_floors(tree) if wanted not in allowed]


def run_on_import(body: list[ast.AST]) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements that run when the module is imported."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from run_on_import(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from run_on_import(list(ast.iter_child_nodes(node)))


def heavy_imports(tree: ast.Module) -> list[tuple[int, str]]:
    """Line and name of the heavy packages that are imported together with the module."""
    found = []
    for node in run_on_import(tree.body):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        found += [(node.lineno, name) for name in names if name.partition(".")[0] in HEAVY]
    return found


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_floor_imports_only_from_those_before_it(path: Path) -> None:
    floor = floor_of(path)
    assert floor in FLOORS, f"{path} stands on no floor: add it to FLOORS at its place"
    assert violations(ast.parse(path.read_text(encoding="utf-8")), floor) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_are_absolute(path: Path) -> None:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    assert [node.lineno for node in nodes if isinstance(node, ast.ImportFrom) and node.level] == []


@pytest.mark.parametrize(
    "path", [path for path in FILES if floor_of(path) in LIGHT], ids=lambda path: str(path.relative_to(SOURCE))
)
def test_light_files_import_nothing_heavy(path: Path) -> None:
    assert heavy_imports(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("module", sorted({floor_of(path) for path in FILES} & {"errors", "data", "cli"}))
def test_light_modules_load_nothing_heavy_by_others(module: str) -> None:
    code = f"import sys, bitbudget.{module}; print(*sorted(set(sys.modules) & {set(HEAVY)!r}))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == []


def test_the_floor_test_can_fail() -> None:
    inside = "def f():\n    from bitbudget.pipeline.quantize import quantize\n"
    typing_only = "if TYPE_CHECKING:\n    import bitbudget.cli\n"
    assert violations(ast.parse(inside), "storage") == [(2, "pipeline")]
    assert violations(ast.parse(typing_only), "report") == [(2, "cli")]
    assert violations(ast.parse("from bitbudget import storage, load"), "kernels") == [(1, "__init__")]
    assert violations(ast.parse("from bitbudget.errors import InputError"), "data") == [(1, "errors")]
    assert violations(ast.parse("from bitbudget.grids.grid import Grid"), "storage") == []


def test_the_weight_test_can_fail() -> None:
    assert heavy_imports(ast.parse("try:\n    import torch.nn\nexcept ImportError:\n    pass")) == [(2, "torch.nn")]
    assert heavy_imports(ast.parse("class A:\n    from transformers import B")) == [(2, "transformers")]
    assert heavy_imports(ast.parse("if TYPE_CHECKING:\n    import torch\ndef f():\n    import torch")) == []


def test_shapes_and_types_are_checked() -> None:
    from jaxtyping import TypeCheckError

    from bitbudget.calibration.tokens import TokenSequence, fingerprint

    right = TokenSequence(torch.zeros(4, dtype=torch.int64), 1, 0, 2.0, "")
    assert fingerprint([right])
    with pytest.raises(TypeCheckError):
        TokenSequence(torch.zeros(2, 4, dtype=torch.int64), 1, 0, 2.0, "")
    with pytest.raises(TypeCheckError):
        TokenSequence(torch.zeros(4), 1, 0, 2.0, "")
    with pytest.raises(TypeCheckError):
        fingerprint("not sequences of tokens")
