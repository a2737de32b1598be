"""The import graph of tinylm's files has no cycles, lazy imports included."""

import ast
from pathlib import Path

import tinylm

ROOT = Path(tinylm.__file__).parent


def import_graph() -> dict[str, set[str]]:
    """Module -> the modules that it imports anywhere, in functions and under TYPE_CHECKING too."""
    files = {
        ".".join(("tinylm", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in ROOT.rglob("*.py")
    }
    graph = {}
    for module, path in files.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module} has a relative import"
                submodules = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                names |= {name if name in files else str(node.module) for name in submodules.values()}
        graph[module] = names & files.keys()
    return graph


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """The modules that `start` imports, directly or indirectly."""
    found, stack = set(), [start]
    while stack:
        new = graph[stack.pop()] - found
        found |= new
        stack += new
    return found


def test_no_files_import_each_other_in_a_cycle():
    graph = import_graph()
    assert "tinylm.tokenizer.bpe" in graph["tinylm.tokenizer"] and len(graph) > 50
    reached = {module: reachable(graph, module) for module in graph}
    cycles = {module: sorted(m for m in reached[module] if module in reached[m]) for module in graph}
    assert {module: cycle for module, cycle in cycles.items() if cycle} == {}
