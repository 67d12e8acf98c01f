"""The house rules about what lives in one place only."""

import ast
from collections.abc import Iterator
from pathlib import Path

from house_rules import Rule
from house_source import found, place, sources, syntax, tree

COMMANDS = "medmambase/commands"
NAMES = "medmambase/run_folder.py"
WORK = ("numpy", "torch.nn", "scipy")  # what a command has no need of


def commands_do_no_work(root: Path) -> Iterator[str]:
    """A command parses, calls and prints: what it does, Python can do without it."""
    for path in sources(root, [COMMANDS]):
        for node in syntax(path):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                if any(f"{name}.".startswith(f"{work}.") for work in WORK):
                    where = place(root, path, node.lineno)
                    yield f"{where}: a command imports {name}; put its work where Python can call it"


def run_folder_names_its_files(root: Path) -> Iterator[str]:
    """Nobody else spells the name of a file in a run's folder."""
    if not (root / NAMES).is_file():
        return
    known = {
        value.value
        for node in tree(root / NAMES).body
        if isinstance(node, ast.Assign)
        for value in ast.walk(node.value)
        if isinstance(value, ast.Constant) and isinstance(value.value, str) and "." in value.value
    }
    for path in sources(root, ["medmambase"]):
        if path == root / NAMES:
            continue
        for node in syntax(path):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                name = node.value.rpartition("/")[2]
                if name in known:
                    yield f"{place(root, path, node.lineno)}: spells {name}, which run_folder.py has a name for"


def softmax_lives_in_the_task(root: Path) -> Iterator[str]:
    """Probabilities are computed in one way, which training, evaluation and prediction share."""
    for where, path, call in found(root, ["medmambase"], ast.Call):
        at_home = path == root / "medmambase" / "model" / "task.py"
        if not at_home and isinstance(call.func, ast.Attribute) and call.func.attr in ("softmax", "log_softmax"):
            yield f"{where}: a softmax outside of medmambase/model/task.py"


ROOM_RULES: tuple[Rule, ...] = (commands_do_no_work, run_folder_names_its_files, softmax_lives_in_the_task)
