"""What of Paddle the code that runs on GPUs calls, and where the kernels are: calls.tsv, kernels.tsv beside this file.

python -m tests.gpu.operators      # writes the tables of docs/gpu.md anew
"""

from __future__ import annotations

import ast
import csv
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "gpu.md"
# The packages and modules that training on a GPU runs.
TRAINS = ("losses", "engine", "distributed", "models", "data")
BEGIN, END = "<!-- written by tests/gpu/operators.py: begin -->\n", "<!-- end -->\n"


def table(name: str) -> list[dict[str, str]]:
    """The rows of calls.tsv or kernels.tsv."""
    with (HERE / name).open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def names_called() -> dict[str, set[str]]:
    """Each name of Paddle that the packages in `TRAINS` use, by its full path, and the files that use it."""
    found: dict[str, set[str]] = {}
    for package in TRAINS:
        for path in sorted((ROOT / "plsc" / package).rglob("*.py")):
            if "launching" in path.parts:  # starts processes, and computes nothing
                continue
            for name in names_in(path.read_text()):
                found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


def names_in(source: str) -> set[str]:
    """The names of Paddle in one module, as 'paddle.nn.Linear'; local names and `_C = paddle._C_ops` are resolved."""
    tree = ast.parse(source)
    local = _imports(tree)

    def full(node: ast.expr) -> str | None:
        if isinstance(node, ast.Name):
            return local.get(node.id)
        if isinstance(node, ast.Attribute) and (start := full(node.value)) is not None:
            return f"{start}.{node.attr}"
        return None

    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and full(node.value) == _PRIVATE:
            local[node.targets[0].id] = _PRIVATE
    chains = [node for node in ast.walk(tree) if isinstance(node, (ast.Attribute, ast.Name)) and full(node)]
    parts = {id(node.value) for node in chains if isinstance(node, ast.Attribute)}
    return {name for node in chains if id(node) not in parts and "." in (name := full(node) or "")}


_PRIVATE = "paddle._C_ops"


def _imports(tree: ast.Module) -> dict[str, str]:
    local = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "paddle":
                    local[alias.asname or "paddle"] = alias.name if alias.asname else "paddle"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "paddle":
            local.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return local


def tables() -> str:
    """Both tables as Markdown."""
    text = "| name | kind | kernel, as Paddle counts it |\n|---|---|---|\n"
    for row in table("calls.tsv"):
        text += f"| `{row['name']}` | {row['kind']} | {row['counted as']} |\n"
    text += "\n| counted as | kernel | types registered | file | commit | note |\n|---|---|---|---|---|---|\n"
    for row in table("kernels.tsv"):
        file = row["file"].replace("paddle/phi/kernels/", "")
        cells = (
            row["counted as"],
            row["kernel"],
            row["types registered for GPUs"],
            file,
            row["commit read"],
            row["note"],
        )
        text += "| " + " | ".join(cells) + " |\n"
    return text


def page() -> str:
    """docs/gpu.md with both tables as they should be."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + BEGIN + tables() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page())
