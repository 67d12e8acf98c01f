"""Read a source tree for the house rules: its files, modules, imports, public names, and what runs
at import."""

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("medmambase", "kernels")
FOLDERS = (*PACKAGES, "tools", "tests", "examples", ".github")
KERNELS = "medmambase_kernels"
Syntax = TypeVar("Syntax", ast.Call, ast.FunctionDef)


def sources(root: Path, folders: Iterable[str] = FOLDERS) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(path for path in (root / folder).rglob("*.py") if "__pycache__" not in path.parts)


@cache
def parsed(text: str) -> tuple[ast.Module, *tuple[ast.AST, ...]]:
    """A module, and behind it every piece of its syntax: sixteen rules look at the same files."""
    module = ast.parse(text)
    return module, *ast.walk(module)


def tree(path: Path) -> ast.Module:
    return parsed(path.read_text(encoding="utf-8"))[0]


def syntax(path: Path) -> tuple[ast.AST, ...]:
    """Every piece of syntax of a file."""
    return parsed(path.read_text(encoding="utf-8"))[1:]


def place(root: Path, path: Path, line: int = 1) -> str:
    return f"{path.relative_to(root).as_posix()}:{line}"


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, of both packages."""
    files = {}
    for folder, base in (("medmambase", root), ("kernels", root / "kernels")):
        for path in sources(root, [folder]):
            parts = path.relative_to(base).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def found(root: Path, folders: Iterable[str], kind: type[Syntax]) -> Iterator[tuple[str, Path, Syntax]]:
    """Every piece of syntax of one kind, with its place."""
    for path in sources(root, folders):
        for node in syntax(path):
            if isinstance(node, kind):
                yield place(root, path, node.lineno), path, node


def public_names(path: Path) -> list[str]:
    """The strings of ``__all__``."""
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
        ):
            return list(ast.literal_eval(node.value))
    return []


def imported(module: str, path: Path, known: Iterable[str]) -> Iterator[tuple[ast.stmt, str, str]]:
    """Each import as (statement, module, name); ``from package import module`` counts as that
    module, unless the package exports an object of that name."""
    for node in syntax(path):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
            base = (
                ".".join([*package[: len(package) + 1 - node.level], *([node.module] if node.module else [])])
                if node.level
                else str(node.module)
            )
            for alias in node.names:
                yield (
                    (node, f"{base}.{alias.name}", "") if f"{base}.{alias.name}" in known else (node, base, alias.name)
                )


def executed(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """What runs when the module is imported: everything but the bodies of functions and of
    ``if __name__ == "__main__"``."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from executed([*getattr(node, "decorator_list", []), *node.args.defaults])
        elif not (isinstance(node, ast.If) and "__name__" in ast.dump(node.test)):
            yield node
            yield from executed(ast.iter_child_nodes(node))
