"""The house rules about imports: who may import whom, and that no import leads back to its start.

An import by name, ``import_module("medmambase_kernels.x")``, counts like any other; where a part of
the name is computed, it counts as an import of every module whose name fits.
"""

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from house_rules import Rule
from house_source import KERNELS, imported, modules, place, public_names, syntax

# Who may import whom, first match first: the importer, then what it may import of ours. Of
# medmambase_kernels the others see the public names only.
GROUND = (f"{KERNELS}.process", f"{KERNELS}.reference")  # which import nothing of ours
BASE = (
    "medmambase.config",
    "medmambase.opponent_recipes",
    "medmambase.validation",
    "medmambase.files",
    "medmambase.privacy",
    "medmambase.tables",
    "medmambase.run_folder",
    "medmambase.distributed",
    "medmambase.machine",
    "medmambase.plural",
    "medmambase.lines",
    "medmambase.packaged",
)  # which import nothing of ours but each other
IMPORTS = (
    (
        "medmambase",
        (
            "medmambase.config",
            "medmambase.model.*",
            "medmambase.inference.*",
            "medmambase.training.*",
            "medmambase.pretraining.*",
            "medmambase.portable.*",
            KERNELS,
        ),
    ),
    ("medmambase.config", ("medmambase.validation",)),
    ("medmambase.opponent_recipes", ("medmambase.config",)),
    (
        "medmambase.settings",
        (
            "medmambase",
            "medmambase.config",
            "medmambase.opponent_recipes",
            "medmambase.packaged",
            "medmambase.run_folder",
            "medmambase.settings_file",
            "medmambase.validation",
        ),
    ),
    (
        "medmambase.settings_file",
        (
            "medmambase.config",
            "medmambase.packaged",
            "medmambase.privacy",
            "medmambase.run_folder",
            "medmambase.validation",
        ),
    ),
    ("medmambase.packaged", ("medmambase.config", "medmambase.validation")),
    ("medmambase.doctor*", ("medmambase.doctor*",)),  # which must work where torch does not
    ("medmambase.data.augment", (*BASE, "medmambase.data*", KERNELS)),  # which has kernels of its own on a GPU
    ("medmambase.data*", (*BASE, "medmambase.data*")),
    # It measures a network as the kernels are measured.
    ("medmambase.model.measure", (*BASE, "medmambase.model*", KERNELS, f"{KERNELS}.bench*")),
    ("medmambase.model*", (*BASE, "medmambase.model*", KERNELS)),
    (
        "medmambase.evaluation*",
        (*BASE, "medmambase.evaluation*", "medmambase.inference*", "medmambase.model*", "medmambase.data*", KERNELS),
    ),
    ("medmambase.run_folder", BASE),
    ("medmambase.distributed", BASE),
    ("medmambase.machine", BASE),
    ("medmambase.inference*", (*BASE, "medmambase.inference*", "medmambase.data*", "medmambase.model*", KERNELS)),
    (
        "medmambase.portable*",
        (
            *BASE,
            "medmambase",
            "medmambase.portable*",
            "medmambase.evaluation*",
            "medmambase.inference*",
            "medmambase.data*",
            "medmambase.model*",
            KERNELS,
        ),
    ),
    (
        "medmambase.training*",
        (
            *BASE,
            "medmambase",
            "medmambase.settings*",
            "medmambase.training*",
            "medmambase.inference*",
            "medmambase.data*",
            "medmambase.model*",
            "medmambase.evaluation*",
            KERNELS,
        ),
    ),
    (
        "medmambase.pretraining*",
        (
            *BASE,
            "medmambase.settings*",
            "medmambase.pretraining*",
            "medmambase.training*",
            "medmambase.inference*",
            "medmambase.data*",
            "medmambase.model*",
            "medmambase.evaluation*",
            KERNELS,
        ),
    ),
    (
        "medmambase.serving*",
        (
            *BASE,
            "medmambase.serving*",
            "medmambase.evaluation*",
            "medmambase.inference*",
            "medmambase.data*",
            "medmambase.model*",
            KERNELS,
        ),
    ),
    ("medmambase.commands*", ("medmambase", "medmambase.*", KERNELS, "medmambase_kernels.bench*")),
    # backend.py has no statement that imports a backend: it loads one by its name, on first use.
    (f"{KERNELS}._triton*", (f"{KERNELS}._triton*", *GROUND)),
    (f"{KERNELS}._cpu*", (f"{KERNELS}._cpu*", f"{KERNELS}._torch*", *GROUND)),
    (f"{KERNELS}._torch*", (f"{KERNELS}._torch*", *GROUND)),
    (f"{KERNELS}._reference*", GROUND),
    (f"{KERNELS}._export*", (f"{KERNELS}._export*", *GROUND)),
    (f"{KERNELS}.export", (f"{KERNELS}._export*",)),
    (f"{KERNELS}.bench*", (KERNELS, f"{KERNELS}.*")),
    (f"{KERNELS}.arguments", ()),
    (f"{KERNELS}.process", ()),
    (f"{KERNELS}.reference", ()),
    (f"{KERNELS}.backend", (f"{KERNELS}.arguments",)),
    (f"{KERNELS}.custom_op", (f"{KERNELS}.backend",)),
    (
        f"{KERNELS}._mamba*",
        (
            f"{KERNELS}._mamba*",
            f"{KERNELS}.arguments",
            f"{KERNELS}.backend",
            f"{KERNELS}.custom_op",
            f"{KERNELS}.reference",
            f"{KERNELS}.selective_scan",
        ),
    ),
    (
        f"{KERNELS}._drop_in*",
        (
            f"{KERNELS}._drop_in*",
            f"{KERNELS}._mamba*",
            f"{KERNELS}.selective_scan*",
            f"{KERNELS}.arguments",
            f"{KERNELS}.backend",
        ),
    ),
    (
        f"{KERNELS}.drop_in*",
        (
            KERNELS,
            f"{KERNELS}.drop_in*",
            f"{KERNELS}._drop_in*",
            f"{KERNELS}.arguments",
            f"{KERNELS}.backend",
        ),
    ),
    (KERNELS, (f"{KERNELS}.[!_]*", f"{KERNELS}._cpu.capture", f"{KERNELS}._mamba*")),
    (f"{KERNELS}.inference", (f"{KERNELS}.arguments", f"{KERNELS}.backend", f"{KERNELS}._cpu.capture")),
    (f"{KERNELS}.*", (f"{KERNELS}.arguments", f"{KERNELS}.backend", f"{KERNELS}.custom_op", f"{KERNELS}.reference")),
)
BY_NAME = {f"{KERNELS}.backend": (f"{KERNELS}._*",)}  # what is loaded by its name alone
HERE = "tests/house_imports.py"
FOLDER_OF = {"triton": "_triton", "llvmlite": "_cpu"}  # the only folder that imports it


def imported_by_name(path: Path, known: dict[str, Path]) -> Iterator[tuple[ast.Call, str]]:
    """Each module that ``import_module`` may load, as (call, module)."""
    for node in syntax(path):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "import_module" and node.args:
            name = node.args[0]
            parts = name.values if isinstance(name, ast.JoinedStr) else [name]
            pattern = "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in parts)
            if pattern != "*":  # a variable: nothing is known of it
                fitting = [module for module in known if fnmatchcase(module, pattern)]
                yield from ((node, module) for module in fitting if "._*" not in pattern or of_a_backend(module, known))


def of_a_backend(module: str, known: dict[str, Path]) -> bool:
    """Whether a module lies in a folder that answers for itself: a computed folder is one of
    those."""
    return f"{module.rpartition('.')[0]}.availability" in known


def imports_keep_their_direction(root: Path) -> Iterator[str]:
    known = modules(root)
    public = public_names(known[KERNELS])
    for module, path in known.items():
        allowed = next((allowed for pattern, allowed in IMPORTS if fnmatchcase(module, pattern)), ())
        inside = module.startswith(KERNELS)
        # Outside the kernels `from medmambase_kernels import selective_scan` means the function,
        # which has its module's name.
        visible = known if inside else [name for name in known if name.removeprefix(f"{KERNELS}.") not in public]
        for node, target in imported_by_name(path, known):
            if not any(fnmatchcase(target, pattern) for pattern in (*allowed, *BY_NAME.get(module, ()))):
                yield f"{place(root, path, node.lineno)}: {module} may not load {target}: see IMPORTS in {HERE}"
        for node, target, name in imported(module, path, visible):
            first = target.split(".")[0]
            folder = FOLDER_OF.get(first)
            if folder and path.parent.name != folder:
                yield f"{place(root, path, node.lineno)}: import {first} outside {folder}/"
            elif (
                first in ("medmambase", KERNELS)
                and target != module
                and not any(fnmatchcase(target, pattern) for pattern in allowed)
            ):
                yield f"{place(root, path, node.lineno)}: {module} may not import {target}: see IMPORTS in {HERE}"
            elif target == KERNELS and not inside and name not in public:
                yield (
                    f"{place(root, path, node.lineno)}: {name or target} is not a public name of {KERNELS}; import "
                    f"the name itself, from its __all__"
                )


def no_import_leads_back(root: Path) -> Iterator[str]:
    """No circle, whether an import stands at the top of a file, in a function, or by name."""
    known = modules(root)
    graph = {
        module: {target for _, target, _ in imported(module, path, known) if target in known}
        | {target for _, target in imported_by_name(path, known)} - {module}
        for module, path in known.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1][::-1]  # an importer before what it imports
        yield f"{place(root, known[circle[0]])}: {' imports '.join(circle)}: take out what both need"


IMPORT_RULES: tuple[Rule, ...] = (imports_keep_their_direction, no_import_leads_back)
