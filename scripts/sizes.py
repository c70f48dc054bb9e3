"""Prints the functions and files of the package that are larger than the house style allows (CONTRIBUTING.md).

python scripts/sizes.py
"""

import ast
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src" / "bitbudget"
FUNCTION_LINES = 40
FILE_LINES = 300
KERNEL_FILE_LINES = 400


def offenders(path: Path) -> list[str]:
    """One line for the file, and for each function in it, that is too long."""
    text = path.read_text(encoding="utf-8")
    place = path.relative_to(SOURCE.parent.parent)
    limit = KERNEL_FILE_LINES if path.relative_to(SOURCE).parts[0] == "kernels" else FILE_LINES
    lines = len(text.splitlines())
    found = [f"{place}: {lines} lines (at most {limit})"] if lines > limit else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                found.append(f"{place}:{node.lineno}: {node.name} has {length} lines (at most {FUNCTION_LINES})")
    return found


if __name__ == "__main__":
    too_large = [line for path in sorted(SOURCE.rglob("*.py")) for line in offenders(path)]
    print("\n".join(too_large) or "No function or file is larger than the house style allows.")
