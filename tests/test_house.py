"""The project keeps its house rules, and each rule reports a fault that is planted."""

from collections.abc import Iterator
from pathlib import Path

import house_rules
import pytest
from house_imports import IMPORT_RULES, imports_keep_their_direction, no_import_leads_back
from house_map import (
    MAP_RULES,
    the_map_shows_every_file,
    the_planted_faults_name_tests_that_exist,
    the_walks_name_what_exists,
)
from house_rooms import ROOM_RULES, commands_do_no_work, run_folder_names_its_files, softmax_lives_in_the_task
from house_rules import (
    Rule,
    exceptions_carry_their_reason,
    files_are_short_and_about_something,
    illegal_names,
    names_are_legal_on_windows,
    no_argument_is_a_sink,
    nothing_happens_at_import,
    only_commands_print,
    packages_import_quietly,
    public_names_have_docstrings,
    text_names_its_encoding,
    tools_are_guarded,
)
from house_source import KERNELS, ROOT, parsed

RULES = (*IMPORT_RULES, *house_rules.RULES, *ROOM_RULES, *MAP_RULES)
MAP = """# The map

```text
medmambase/
  __init__.py        the public names
  config.py          every default
  run_folder.py      every name in a run's folder

  model/layers.py    the boxes
  training/loop.py   the loop
  commands/          what a person calls
```

```text
kernels/medmambase_kernels/
  __init__.py   the public names
  backend.py    the choice
  scan.py       the operator
  _cpu/scan.py  the same in vector code
  _cpu/availability.py  whether it runs
```
"""
WALKS = """## Walk: it

1. `config.py` has `Bare`.
2. `model/layers.py` and
   `_cpu/scan.py`.
"""


@pytest.fixture(scope="module", autouse=True)
def forgotten_syntax() -> Iterator[None]:
    """Give back the memory of what was parsed."""
    yield
    parsed.cache_clear()


PLANTED = """| Fault | Caught by | Again |
|---|---|---|
| D x forgotten | `test_scan.py::test_it_is_exact` | - |
| A file moved while it is open | `{test_scan,test_map}.py` under `tools/under.py` | 2026-11-28 |
"""
FAULTS = (  # a rule, a file, and a text for it that breaks the rule
    (imports_keep_their_direction, "medmambase/config.py", "import medmambase.model.network"),
    (imports_keep_their_direction, "medmambase/data/reading/images.py", "from ...training import loop"),
    (
        imports_keep_their_direction,
        "medmambase/data/reading/images.py",
        "def late() -> None:\n    from medmambase import commands",
    ),
    (imports_keep_their_direction, "medmambase/model/layers.py", "from medmambase_kernels.backend import choose"),
    (imports_keep_their_direction, "medmambase/model/layers.py", "from medmambase_kernels import secret"),
    (imports_keep_their_direction, "medmambase/evaluation/report/report.py", "from medmambase_kernels import scan"),
    (imports_keep_their_direction, "medmambase/newcomer.py", "from medmambase import config"),
    (imports_keep_their_direction, "kernels/medmambase_kernels/scan.py", "import medmambase"),
    (imports_keep_their_direction, "kernels/medmambase_kernels/scan.py", "from ._cpu import scan"),
    (
        imports_keep_their_direction,
        "kernels/medmambase_kernels/scan.py",
        "def late() -> None:\n    import triton.language as tl",
    ),
    (imports_keep_their_direction, "medmambase/config.py", "from triton import jit"),
    (imports_keep_their_direction, "kernels/medmambase_kernels/backend.py", "import llvmlite"),
    (
        imports_keep_their_direction,
        "medmambase/model/layers.py",
        "from importlib import import_module\nimport_module('medmambase.training.loop')",
    ),
    (imports_keep_their_direction, "kernels/medmambase_kernels/backend.py", "from medmambase_kernels._cpu import scan"),
    (no_import_leads_back, "medmambase/model/layers.py", "from medmambase.model import layers"),
    (no_import_leads_back, "kernels/medmambase_kernels/_cpu/scan.py", "from medmambase_kernels.backend import forked"),
    (
        no_import_leads_back,
        "kernels/medmambase_kernels/_cpu/scan.py",
        "def late() -> None:\n    from ..backend import forked",
    ),
    (
        no_import_leads_back,
        "medmambase/config.py",
        "import importlib\nx = importlib.import_module('medmambase.training.loop')",
    ),
    (packages_import_quietly, "medmambase/__init__.py", "print('hello')"),
    (packages_import_quietly, "kernels/medmambase_kernels/__init__.py", "import sys; sys.modules['sklearn'] = sys"),
    (files_are_short_and_about_something, "tools/long.py", "pass\n" * 351),
    (files_are_short_and_about_something, "docs/long.md", "line\n" * 351),
    (files_are_short_and_about_something, "medmambase/commands/long.html.jinja", "<p>\n" * 351),
    (files_are_short_and_about_something, "medmambase/data/utils.py", ""),
    (files_are_short_and_about_something, "medmambase/helpers/text.py", ""),
    (text_names_its_encoding, "tools/x.py", "open('a')"),
    (text_names_its_encoding, "tools/x.py", "open('a', 'w', encoding='utf-8')"),
    (text_names_its_encoding, "tools/x.py", "path.write_text('a', encoding='utf-8')"),
    (text_names_its_encoding, "tools/x.py", "subprocess.run(['a'], text=True)"),
    (only_commands_print, "medmambase/training/loop.py", "def f() -> None:\n    print(1)"),
    (only_commands_print, "kernels/medmambase_kernels/_drop_in/finder.py", "def f() -> None:\n    print(1)"),
    (
        nothing_happens_at_import,
        "medmambase/config.py",
        "import os\nif os.name == 'nt':\n    os.environ.setdefault('A', '1')",
    ),
    (nothing_happens_at_import, "medmambase/commands/train.py", "import argparse\nPARSER = argparse.ArgumentParser()"),
    (public_names_have_docstrings, "medmambase/config.py", "__all__ = ['f']\ndef f() -> None: ..."),
    (public_names_have_docstrings, "medmambase/__init__.py", "from medmambase.config import Bare\n__all__ = ['Bare']"),
    (no_argument_is_a_sink, "medmambase/config.py", "def f(**kwargs: int) -> None: ..."),
    (exceptions_carry_their_reason, "tools/x.py", "import os  # noqa: F401"),
    (exceptions_carry_their_reason, "tests/test_x.py", "x: int = ''  # type: ignore[assignment]"),
    (tools_are_guarded, "tools/x.py", "def main() -> None: ...\nmain()"),
    (tools_are_guarded, "tools/x.py", "def main() -> None: ..."),
    (commands_do_no_work, "medmambase/commands/train.py", "import numpy as np"),
    (commands_do_no_work, "medmambase/commands/train.py", "def late() -> None:\n    from torch import nn"),
    (commands_do_no_work, "medmambase/commands/train.py", "from torch.nn import functional as F"),
    (run_folder_names_its_files, "medmambase/training/loop.py", "PAGE = 'report.html'"),
    (
        run_folder_names_its_files,
        "medmambase/training/loop.py",
        "def f(run):\n    return f'{run}/report.html'",
    ),
    (softmax_lives_in_the_task, "medmambase/model/layers.py", "def f(x: Tensor) -> Tensor:\n    return x.softmax(-1)"),
    (the_map_shows_every_file, "medmambase/data/ages.py", ""),
    (the_map_shows_every_file, "kernels/medmambase_kernels/_triton/config.py", ""),  # only the other package's is shown
    (the_map_shows_every_file, "medmambase/data/__init__.py", ""),
    (the_map_shows_every_file, "docs/map.md", MAP.replace("  config.py", "  config.py  once\n  config.py")),
    (the_map_shows_every_file, "docs/map.md", MAP.replace("  config.py", "  gone.py  left\n  config.py")),
    (the_walks_name_what_exists, "docs/architecture.md", WALKS.replace("config.py` has", "configs.py` has")),
    (the_walks_name_what_exists, "docs/architecture.md", WALKS.replace("`Bare`", "`Clothed`")),
    *(
        (the_planted_faults_name_tests_that_exist, "tests/planted_faults.md", PLANTED.replace(name, wrong))
        for name, wrong in (
            ("::test_it_is", "::test_it_was"),
            ("`test_scan.py", "`test_gone.py"),
            (",test_map", ",test_maps"),
            ("`test_scan.py::test_it_is_exact`", "a test"),
        )
    ),
)
BACKEND = """import importlib


def engine(operator: str, name: str) -> object:
    return importlib.import_module(f"medmambase_kernels._{name}.{operator}")
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small tree that keeps every rule."""
    empty = (
        "medmambase/commands/__init__.py",
        *(f"kernels/{KERNELS}/{name}.py" for name in ("scan", "_cpu/scan", "_cpu/availability")),
    )
    files = dict.fromkeys(empty, "") | {
        "docs/map.md": MAP,
        "docs/architecture.md": WALKS,
        "tests/planted_faults.md": PLANTED,
        "tests/test_scan.py": "def test_it_is_exact() -> None: ...\n",
        "tests/test_map.py": "",
        "tools/under.py": "",
        "medmambase/__init__.py": "__all__ = ['VERSION']\n",
        "medmambase/config.py": "class Bare: ...\n",
        "medmambase/run_folder.py": "BEST, REPORT = 'best', 'report.html'\n",
        "medmambase/model/layers.py": "from medmambase_kernels import selective_scan\n",
        "medmambase/training/loop.py": "from medmambase import config\n",
        "kernels/medmambase_kernels/backend.py": BACKEND,
        "kernels/medmambase_kernels/__init__.py": "__all__ = ['selective_scan']\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8", newline="\n")
    return tmp_path


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_project_keeps_the_rule(rule: Rule) -> None:
    violations = list(rule(ROOT))
    assert not violations, "\n".join(["", *violations])


def test_an_orderly_house_is_not_accused(house: Path) -> None:
    assert [violation for rule in RULES for violation in rule(house)] == []


@pytest.mark.parametrize(("rule", "name", "text"), FAULTS, ids=lambda value: getattr(value, "__name__", None))
def test_a_planted_fault_is_reported(rule: Rule, name: str, text: str, house: Path) -> None:
    (house / name).parent.mkdir(parents=True, exist_ok=True)
    (house / name).write_text(text + "\n", encoding="utf-8", newline="\n")
    assert list(rule(house))


@pytest.mark.parametrize("name", ["a/aux.py", "nul", "com1.txt", "a:b", "a?.png", "a.", "a ", "x" * 151, "a/\x07"])
def test_a_name_that_windows_refuses_is_reported(name: str) -> None:
    assert list(illegal_names([name, "fine.py"])) == [f"{name}: Windows cannot check this name out"]


def test_names_that_differ_in_case_only_are_reported() -> None:
    assert list(illegal_names(["data/Images.py", "data/images.py"])) == [
        "data/images.py: differs from data/Images.py in case only"
    ]


def test_every_rule_has_a_planted_fault() -> None:
    assert {rule for rule, *_ in FAULTS} | {names_are_legal_on_windows} == set(RULES)
