"""The house rules: each reads a source tree and yields its violations. test_house.py applies them,
and shows each a planted fault."""

import ast
import os
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from house_source import (
    FOLDERS,
    KERNELS,
    PACKAGES,
    executed,
    found,
    imported,
    modules,
    place,
    public_names,
    sources,
    tree,
)

LONGEST = 350
MAP = "map.md"  # which has a line for each file

AT_IMPORT = ("argparse.*", "*.parse_args", "os.environ.*", "os.putenv", "os.chdir", "sys.path.*",
    "logging.basicConfig", "warnings.filterwarnings",
             "warnings.simplefilter", "torch.set_*", "torch.manual_seed")  # fmt: skip  # names
NOT_IMPORTED = ("triton", "llvmlite", "matplotlib", "sklearn")
RESERVED = {
    "con",
    "prn",
    "aux",
    "nul",
    "conin$",
    "conout$",
    *(f"{port}{i}" for port in ("com", "lpt") for i in "0123456789¹²³"),
}


def files_are_short_and_about_something(root: Path) -> Iterator[str]:
    pages = (path for path in (root / "docs").glob("*.md") if path.name != MAP)
    for path in (*sources(root), *sorted(root.glob("medmambase/**/*.jinja")), *sorted(pages)):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST:
            yield f"{place(root, path)}: {lines} lines, at most {LONGEST}: split it by idea"
        if {part.strip("_") for part in path.relative_to(root).with_suffix("").parts} & {
            "util",
            "utils",
            "common",
            "helper",
            "helpers",
            "misc",
        }:
            yield f"{place(root, path)}: a function without a room is a missing idea"


def text_names_its_encoding(root: Path) -> Iterator[str]:
    for where, path, call in found(root, FOLDERS, ast.Call):
        wanted = _keywords_of_text(call)
        if path.is_relative_to(root / "tests"):
            wanted.discard("newline")  # what only a test reads
        missing = wanted - {keyword.arg for keyword in call.keywords}
        if missing:
            yield f"{where}: {ast.unparse(call.func)} names no {' and no '.join(sorted(missing))}"


def _keywords_of_text(call: ast.Call) -> set[str]:
    """What a call that reads or writes text must name: the encoding, and when it writes the line
    ends."""
    method, given = isinstance(call.func, ast.Attribute), {keyword.arg: keyword.value for keyword in call.keywords}
    name = getattr(call.func, "attr" if method else "id", "")
    if method and (name, len(call.args)) in (
        ("read_text", 0),
        ("write_text", 1),
    ):  # with another number it is not pathlib's
        return {"encoding", "newline"} if name == "write_text" else {"encoding"}
    if name == "open":
        position = 0 if method else 1
        node = given.get("mode", call.args[position] if len(call.args) > position else ast.Constant("r"))
        mode = str(node.value) if isinstance(node, ast.Constant) else ""
        if not re.fullmatch("[rwxat+]+", mode):  # binary, or the path given to Image.open and the like
            return set()
        return {"encoding", "newline"} if set("wxa+") & set(mode) else {"encoding"}
    return {"encoding"} if {"text", "universal_newlines"} & set(given) else set()


def only_commands_print(root: Path) -> Iterator[str]:
    commands = (root / "medmambase" / "commands", root / "kernels" / KERNELS / "drop_in")
    for where, path, call in found(root, PACKAGES, ast.Call):
        if path.parent not in commands and ast.unparse(call.func) in ("print", "sys.stdout.write", "sys.stderr.write"):
            yield f"{where}: prints; commands and tools do that"


def nothing_happens_at_import(root: Path) -> Iterator[str]:
    for path in sources(root, PACKAGES):
        for node in executed(tree(path).body):
            targets = (
                node.targets if isinstance(node, ast.Assign) else [node.func] if isinstance(node, ast.Call) else []
            )
            for target in targets:
                name = ast.unparse(target)
                if name.startswith("os.environ[") or any(fnmatchcase(name, pattern) for pattern in AT_IMPORT):
                    yield f"{place(root, path, target.lineno)}: {name} at import"


def public_names_have_docstrings(root: Path) -> Iterator[str]:
    known = modules(root)
    yield from (
        f"{place(root, known[package])}: has no __all__"
        for package in ("medmambase", KERNELS)
        if not public_names(known[package])
    )
    for module, path in known.items():
        origins = {name: target for _, target, name in imported(module, path, ())}
        for name in public_names(path):
            source = known.get(origins.get(name, module))
            definitions = (
                {n.name: n for n in tree(source).body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
                if source
                else {}
            )
            if name in definitions and not ast.get_docstring(definitions[name]):
                yield f"{place(root, source or path, definitions[name].lineno)}: {name} is public and has no docstring"


def no_argument_is_a_sink(root: Path) -> Iterator[str]:
    for where, _, function in found(root, PACKAGES, ast.FunctionDef):
        if function.args.kwarg and function.args.kwarg.arg == "kwargs":
            yield f"{where}: {function.name} takes **kwargs; name its arguments"


def exceptions_carry_their_reason(root: Path) -> Iterator[str]:
    for path in sources(root):
        with path.open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                text = token.string if token.type == tokenize.COMMENT else ""
                if re.match(r"#\s*(noqa|type: ignore|fmt: (skip|off)|pragma)\b", text) and text.count("#") < 2:
                    yield f"{place(root, path, token.start[0])}: {text!r} gives no reason after a second #"


def names_are_legal_on_windows(root: Path) -> Iterator[str]:
    inside = (
        path.relative_to(root)
        for folder in FOLDERS
        for path in (root / folder).rglob("*")
        if "__pycache__" not in path.parts
    )
    yield from illegal_names(
        [*(path.as_posix() for path in inside), *(path.name for path in root.iterdir() if path.is_file())]
    )


def illegal_names(names: Iterable[str]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for name in sorted(names):
        last = PurePosixPath(name).name
        if (
            last.split(".")[0].rstrip().lower() in RESERVED
            or re.search(r'[<>:"\\|?*\x00-\x1f]', last)
            or last.endswith((".", " "))
            or len(name) > 150
        ):
            yield f"{name}: Windows cannot check this name out"
        if seen.setdefault(name.casefold(), name) != name:
            yield f"{name}: differs from {seen[name.casefold()]} in case only"


def tools_are_guarded(root: Path) -> Iterator[str]:
    for path in sources(root, ["tools"]):
        body = tree(path).body
        calls = [
            node
            for node in body
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and "sys.path" not in ast.unparse(node)
        ]
        yield from (
            f"{place(root, path, node.lineno)}: runs when imported; put it under if __name__ == '__main__'"
            for node in calls
        )
        names = {node.name for node in body if isinstance(node, ast.FunctionDef)}
        if "main" in names and not any(isinstance(node, ast.If) and "__name__" in ast.dump(node.test) for node in body):
            yield f"{place(root, path)}: main is never called under if __name__ == '__main__'"


def packages_import_quietly(root: Path) -> Iterator[str]:
    """Imports both packages, each in its own process: they print nothing and bring none of
    NOT_IMPORTED."""
    for package in ("medmambase", KERNELS):
        code = f"import sys, {package}; sys.exit(', '.join(sorted(set(sys.modules) & set({NOT_IMPORTED}))))"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "kernels")])}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=root,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        if done.stdout or done.stderr.strip():
            yield f"importing {package} prints or brings: {(done.stdout + done.stderr).strip()}"


Rule = Callable[[Path], Iterator[str]]
RULES: tuple[Rule, ...] = (
    packages_import_quietly,
    files_are_short_and_about_something,
    text_names_its_encoding,
    only_commands_print,
    nothing_happens_at_import,
    public_names_have_docstrings,
    no_argument_is_a_sink,
    exceptions_carry_their_reason,
    names_are_legal_on_windows,
    tools_are_guarded,
)
