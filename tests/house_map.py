"""The rules of three pages that name files: docs/map.md, which shows every file,
docs/architecture.md, whose walks name what exists, and tests/planted_faults.md, which names tests
that exist.
test_house.py applies them, and shows each a planted fault."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from house_rules import Rule
from house_source import sources, tree

PACKAGES = ("medmambase", "kernels/medmambase_kernels")
MAP_PAGE = "docs/map.md"
WALKS = "docs/architecture.md"
PLANTED = "tests/planted_faults.md"


def the_map_shows_every_file(root: Path) -> Iterator[str]:
    """A block of the map begins with its package; then each file stands on a line of its own, and
    a folder's line stands for its ``__init__.py``."""
    page = (root / MAP_PAGE).read_text(encoding="utf-8")
    for package in PACKAGES:
        block = re.search(rf"^```text\n{package}/\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        shown = Counter(re.findall(r"^  ([\w/]+(?:\.py|/)) +\S", block[1] if block else "", re.MULTILINE))
        there = {_line_of(path.relative_to(root / package)) for path in sources(root, [package])}
        yield from (f"{package}/{name}: is not on the map of {MAP_PAGE}" for name in sorted(there - set(shown)))
        yield from (f"{MAP_PAGE}: the map shows {package}/{name}, which is not there" for name in set(shown) - there)
        yield from (f"{MAP_PAGE}: the map shows {package}/{name} twice" for name, count in shown.items() if count > 1)


def _line_of(path: Path) -> str:
    folder = path.parent.as_posix()
    return path.as_posix() if path.name != "__init__.py" or folder == "." else f"{folder}/"


def the_walks_name_what_exists(root: Path) -> Iterator[str]:
    """In a numbered list of the page each backticked path is a file, and every other backticked
    name is defined in one of the files that its item names."""
    page = (root / WALKS).read_text(encoding="utf-8")
    for item in re.findall(r"^\d+\. (.*?)(?=^\S|^\n|\Z)", page.partition("## Walk")[2], re.MULTILINE | re.DOTALL):
        spans = re.findall(r"`([^`\n]+)`", item)
        files = [_found(root, span) for span in spans if span.endswith(".py")]
        shown = {span for span in spans if span.endswith((".csv", ".html", ".md"))}  # files that a run writes
        defined = {name for file in files if file for name in _names(file)}
        for span in spans:
            if span.endswith(".py"):
                if not _found(root, span):
                    yield f"{WALKS}: there is no file {span}"
            elif re.fullmatch(r"[A-Za-z_]\w*(\.[a-z_]\w*)?", span) and span not in defined | shown:
                yield f"{WALKS}: none of the files in {item.splitlines()[0]!r} defines {span}"


def the_planted_faults_name_tests_that_exist(root: Path) -> Iterator[str]:
    """The second column names files, below tests/ or from the root, and behind ``::`` what they
    define; ``test_{a,b}.py`` are two files."""
    page = (root / PLANTED).read_text(encoding="utf-8")
    for row in page.partition("|---|---|---|\n")[2].partition("\n\n")[0].splitlines():
        fault, caught, *_ = [*row.strip("| ").split(" | "), "", ""]
        named = [name for span in re.findall(r"`([^`]+\.py[^`]*)`", caught) for name in _one_by_one(span)]
        if not named:
            yield f"{PLANTED}: {fault!r} names no test"
        for file, _, test in (name.partition("::") for name in named):
            path = _found(root, file, ("tests", ""))
            if not path:
                yield f"{PLANTED}: there is no file {file}"
            elif test and test not in _names(path):
                yield f"{PLANTED}: {file} defines no {test}"


def _one_by_one(span: str) -> list[str]:
    before, brace, rest = span.partition("{")
    inside, _, after = rest.partition("}")
    return [f"{before}{one}{after}" for one in inside.split(",")] if brace else [span]


def _found(root: Path, name: str, bases: tuple[str, ...] = ("", *PACKAGES)) -> Path | None:
    return next((path for base in bases if (path := root / base / name).is_file()), None)


def _names(path: Path) -> Iterator[str]:
    """What a file defines: functions, classes and their methods, and names assigned to."""
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        for member in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(member, ast.FunctionDef):
                yield f"{node.name}.{member.name}"  # type: ignore[attr-defined]  # a class, as its members show
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


MAP_RULES: tuple[Rule, ...] = (
    the_map_shows_every_file,
    the_walks_name_what_exists,
    the_planted_faults_name_tests_that_exist,
)
