"""The order of the rooms in src/brecq: which package may import which. docs/architecture.md draws it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "brecq"

MAY_IMPORT = {  # packages and root modules; none may import `brecq` itself but the command line
    "errors": "",
    "devices": "",
    "units": "",
    "outliers": "",
    "version": "",
    "tasks": "",
    "names": "",
    "labels": "",
    "notice": "",
    "pairing": "",
    "storage": "errors names",
    "report": "",
    "unchanged": "",
    "float32": "errors",
    "forward": "errors unchanged",
    "text": "errors",
    "settings": "errors text",
    "plain": "errors text",
    "reading": "errors",
    "checks": "data devices errors forward logits text",
    "targets": "errors plain reading text",
    "config": "errors plain settings targets text",
    "effects": "config",
    "progress": "report",
    "data": "errors forward labels names outliers reading settings text",
    "quant": "errors outliers",
    "logits": "",
    "sources": "data errors forward logits names storage tasks",
    "ranks": "errors",
    "metrics": "data errors labels logits pairing sources tasks",
    "evaluation": "checks data devices errors float32 forward labels logits metrics report settings",
    "graph": "errors forward quant report",
    "capture": "devices errors float32 forward graph names",
    "partition": "capture config devices errors forward graph text",
    "placement": "capture config errors forward graph logits partition quant report targets text",
    "submodules": "devices errors forward placement report text",
    "converted": "errors graph placement quant ranks",
    "checkpoint": "converted errors graph names progress ranks report storage version",
    "reconstruct": "checkpoint config errors forward graph labels logits partition placement progress quant ranks "
    "report storage units",
    "result": "checkpoint config converted errors ranks report storage submodules",
    "composite": "checkpoint config errors ranks report result storage submodules",
    "precision": "capture checkpoint checks config converted data devices errors forward graph notice partition "
    "placement plain progress quant ranks reading reconstruct report settings storage text units",
    "synthesis": "checkpoint checks data devices errors forward logits progress ranks reconstruct report settings "
    "storage",
    "deploy": "capture checkpoint converted data devices errors graph logits partition placement plain quant reading "
    "report result settings storage text version",
    "page": "checkpoint converted data devices errors forward graph labels pairing placement precision report result "
    "storage synthesis units",
    "steps": "capture checkpoint checks composite config converted data devices errors float32 forward graph notice "
    "partition placement precision progress quant ranks reconstruct report result submodules",
    "rehearsal": "config deploy errors forward ranks targets",
    "pipeline": "checkpoint checks config data errors forward graph precision progress ranks reconstruct rehearsal "
    "result steps",
    "legality": "capture checks config errors float32 forward graph pipeline placement rehearsal targets",
    "cli": "brecq checkpoint checks config data deploy effects errors evaluation forward labels legality metrics "
    "notice page precision progress quant ranks reconstruct report result settings sources steps storage submodules "
    "synthesis targets tasks text units version",
    "__main__": "cli",
}


def imports(file: Path) -> Iterator[str]:
    """Modules of brecq that a file imports, wherever in it, also for type checking alone."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "brecq")
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "brecq":
            for alias in node.names:  # a name may be a module of the package
                whole = f"{node.module}.{alias.name}"
                yield whole if (SOURCE.parent / whole.replace(".", "/")).with_suffix(".py").exists() else node.module


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


def test_packages_import_only_what_stands_below_them() -> None:
    TopologicalSorter({name: below.split() for name, below in MAY_IMPORT.items()}).prepare()  # raises on a cycle
    wrong = {
        f"{module_of(file)} imports {module}"
        for file in SOURCE.rglob("*.py")
        for module in imports(file)
        if file != SOURCE / "__init__.py"
        and room(module) not in {room(module_of(file)), *MAY_IMPORT[room(module_of(file))].split()}
    }
    assert not wrong


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module_of(file): set(imports(file)) for file in SOURCE.rglob("*.py") if file != SOURCE / "__init__.py"}
    TopologicalSorter({module: reads - {module} for module, reads in graph.items()}).prepare()


def test_the_picture_shows_these_imports() -> None:
    text = (SOURCE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn: dict[str, set[str]] = {"ground": set()}
    for first, second in re.findall(r"^ +(\w+) --> (\w+)$", text, re.MULTILINE):
        drawn.setdefault(first.rstrip("_"), set()).add(second.rstrip("_"))  # `graph` is a word of mermaid
    listed = {name: set(below.split()) for name, below in MAY_IMPORT.items()}
    for name in drawn.keys() - {"ground"}:
        assert reachable(name, drawn) - {"ground"} == reachable(name, listed) & drawn.keys(), name


def reachable(name: str, graph: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    queue = [name]
    while queue:
        new = graph.get(queue.pop(), set()) - found
        found |= new
        queue += new
    return found
