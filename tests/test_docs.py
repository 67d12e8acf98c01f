"""README.md, docs/ and the other pages: what they show runs, and what they name exists.

A fenced block says in its first line what it is. ``python`` and ``sh`` blocks run, in a folder that
holds ``data/``, ``other/``, ``images/`` and finished runs, unless the line above says ``<!-- not
run: why -->``; every command line is read by the command's own parser all the same, also one in the
middle of a sentence. ``text`` is what a program prints, or a drawing.
"""

import argparse
import importlib
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import leave_out_pictures
from house_source import ROOT

from medmambase.commands import crossval_flags, pretrain_flags, table_flags, train, train_flags
from medmambase.data import phantom
from medmambase.doctor.torch_build import Card, Machine, choose_torch
from medmambase.pretraining import settings as pretraining
from medmambase.settings import of_crossval, resolve
from medmambase.training.table.settings import lines

PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "kernels/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
)
LANGUAGES = {"python", "sh", "powershell", "toml", "text"}
QUICK = ["--model", "nano", "--image-size", "32", "--epochs", "1", "--batch-size", "8"]
OUTSIDE = ("cd", "git", "npm", "pip", "py", "python", "torchrun", "winget")  # programs that are not ours
SUFFIXES = "py|toml|md|txt|jinja|ipynb|yml|cff|png"


@dataclass(frozen=True)
class Block:
    """A fenced block, where its first line stands, and why it is not run, if it is not."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None

    @property
    def place(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    fences = r"^(?:<!-- not run: ?(?P<why>[^\n]*?) ?-->\n)?```(?P<language>[^\n]*)\n(?P<text>.*?)^```$"
    for found in re.finditer(fences, text, re.MULTILINE | re.DOTALL):
        yield Block(
            page, text.count("\n", 0, found.start("language")) + 1, found["language"], found["text"], found["why"]
        )


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def spans(page: Path) -> Iterator[str]:
    """What stands in backticks in a sentence, a list or a table."""
    for found in re.finditer(r"`([^`\n]+)`", prose(page)):
        yield found[1]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


BLOCKS = [block for page in PAGES for block in blocks(page)]


def words_of(line: str) -> list[str]:
    """A command line as its words, without the folder that a program lies in."""
    posix = "\\" not in line  # elsewhere a path of Windows, or a regular expression in quotes
    words = [word.strip("\"'") if not posix else word for word in shlex.split(line, comments=True, posix=posix)]
    return [re.split(r"[/\\]", words[0])[-1], *words[1:]] if words else []


def is_command(text: str) -> bool:
    """Whether a span in a sentence is a command line and not only a program's name."""
    return bool(re.match(r"(medmambase-[a-z]+|python tools/\S+|pip install) \S", text)) and "..." not in text


class Parsed(BaseException):
    """Raised in place of doing what was parsed."""


@pytest.fixture
def only_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any program ends as soon as its parser has accepted its arguments."""
    parse = argparse.ArgumentParser.parse_args

    def and_stop(self: argparse.ArgumentParser, *arguments: object, **named: object) -> None:
        try:
            parse(self, *arguments, **named)  # type: ignore[call-overload]  # handed on as they came
        except SystemExit as end:
            if end.code:  # not --help
                raise
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", and_stop)


def accept(words: Sequence[str]) -> None:
    """Let the command's own parser read a command line. Raises SystemExit or ConfigError where it
    refuses."""
    program, *rest = words
    if program == "medmambase-train":
        given, file, _ = train_flags.parse([word for word in rest if word != "--help"])
        resolve(given, file)
    elif program == "medmambase-crossval":
        given, file, *_ = crossval_flags.parse(rest)
        of_crossval(given, file)
    elif program == "medmambase-table":
        wished = table_flags.parse(rest)
        lines(wished.models, wished.seeds, wished.settings, wished.config)
    elif program == "medmambase-pretrain":
        given, _, resumed = pretrain_flags.parse(rest)
        if resumed is None:
            pretraining.resolve(given)
    elif program.startswith("medmambase-"):
        with pytest.raises(Parsed):
            importlib.import_module(f"medmambase.commands.{program.removeprefix('medmambase-')}").main(rest)
    elif program in ("py", "python") and any(word.startswith("tools/") for word in rest):
        tool = next(i for i, word in enumerate(rest) if word.startswith("tools/"))
        assert (ROOT / rest[tool]).is_file(), f"there is no {rest[tool]}"
        with pytest.raises(Parsed):
            importlib.import_module(Path(rest[tool]).stem).main(rest[tool + 1 :])
    elif program == "torchrun":
        module = rest[rest.index("-m") + 1]
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), f"there is no module {module}"
    elif program == "pip":
        installs(rest)
    else:
        assert program in OUTSIDE, f"what is {program}?"


def installs(words: Sequence[str]) -> None:
    """What ``pip install`` is given of ours is there, with its extras."""
    for word in words:
        found = re.fullmatch(r"(\.[\w./]*|medmambase|medmambase-kernels)(?:\[([\w,-]+)\])?", word)
        if found:
            folder = {"medmambase": ".", "medmambase-kernels": "kernels"}.get(found[1], found[1])
            project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            missing = set((found[2] or "").split(",")) - {""} - set(project.get("optional-dependencies", {}))
            assert not missing, f"{word}: no such extra"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader of the pages has it: images, and runs that have finished."""
    here = tmp_path_factory.mktemp("reader")
    for seed, name in enumerate(("data", "other")):
        phantom.write_phantom(here / name, images_per_class=5, size=32, seed=seed)
    shutil.copytree(here / "data" / "test", here / "images")
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        assert train.main([str(here / "data"), "--runs", str(here / "runs"), *QUICK]) == 0
    for name in ("plain-001", "se-001"):
        shutil.copytree(here / "runs" / "data-001", here / "runs" / name)
    return here


def test_every_block_says_what_it_is() -> None:
    wrong = [f"{block.place}: {block.language!r}" for block in BLOCKS if block.language not in LANGUAGES]
    command = re.compile(r"^(medmambase-|python |pip )", re.MULTILINE)
    hidden = [block.place for block in BLOCKS if block.language == "text" and command.search(block.text)]
    assert not wrong + hidden
    assert len(BLOCKS) == sum(page.read_text(encoding="utf-8").count("\n```") for page in PAGES) / 2


def test_what_is_not_run_says_why() -> None:
    assert [block.place for block in BLOCKS if block.not_run is not None and len(block.not_run) < 10] == []


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * (page.name == "training.md")) for page in PAGES],
    ids=map(name_of, PAGES),
)
def test_python_runs(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page follow each other, as a reader would type them."""
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "reader"}
    for block in blocks(page):
        if block.language == "python":
            code = compile("\n" * block.line + block.text, str(block.page), "exec")
            if block.not_run is None:
                exec(code, names)  # noqa: S102  # these are our own pages


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "sh" and b.not_run is None], ids=lambda b: b.place
)
def test_commands_run(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for line in filter(None, block.text.splitlines()):
        program, *rest = words_of(line)
        command = importlib.import_module(f"medmambase.commands.{program.removeprefix('medmambase-')}")
        assert command.main(rest) == 0, line


@pytest.mark.usefixtures("only_parse")
@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in ("sh", "powershell")], ids=lambda b: b.place)
def test_commands_are_accepted_by_their_parser(block: Block) -> None:
    for line in filter(None, block.text.splitlines()):
        accept(words_of(line))


@pytest.mark.usefixtures("only_parse")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_sentences_are_accepted_by_their_parser(page: Path) -> None:
    for span in filter(is_command, spans(page)):
        accept(words_of(span))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_in_sentences_exist(page: Path) -> None:
    """A flag that stands alone belongs to a command or a tool."""
    known = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "medmambase/commands").glob("*.py"))
    known += "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tools").rglob("*.py"))
    known += (ROOT / "kernels/medmambase_kernels/drop_in/__main__.py").read_text(encoding="utf-8")
    flags = {
        option
        for command in (train_flags, pretrain_flags, table_flags)
        for group in command.parser()._actions
        for option in group.option_strings
    }
    for span in spans(page):
        for name in re.findall(r"^--[a-z-]+", span):
            assert name in flags or f'"{name}"' in known, f"{page.name}: there is no flag {name}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "toml"], ids=lambda b: b.place)
def test_settings_are_accepted(block: Block, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(block.text, encoding="utf-8", newline="\n")
    resolve({}, tmp_path / "my.toml")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = prose(page)
    anchors = {path: {slug(title) for title in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)} for path in PAGES}
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        if not target.startswith(("http://", "https://")):
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            assert path.exists(), f"{page.name}: {target}"
            assert path.is_relative_to(ROOT), f"{page.name}: {target}"
            assert not anchor or anchor in anchors[path], f"{page.name}: {target}"


def slug(title: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_of_the_project_that_are_named_exist(page: Path) -> None:
    """A path in backticks with a slash in it, from the project's folder or from a package."""
    bases = (ROOT, ROOT / "kernels", ROOT / "medmambase", ROOT / "kernels" / "medmambase_kernels")
    for span in spans(page):
        if re.fullmatch(rf"[\w.]+(/[\w.]+)+\.({SUFFIXES})", span) and not span.startswith(("runs/", "test/", "val/")):
            assert any((base / span).is_file() for base in bases), f"{page.name}: there is no {span}"


def test_the_readme_is_short_and_its_first_screen_says_it_all() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 130
    first = "\n".join(lines[:40])
    for what in ("python tools/quickstart.py", "python tools/check.py", "docs/images/", "SelectiveScan("):
        assert what in first


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_read_well(page: Path) -> None:
    """One sentence a line, and no line of code that a page cannot show."""
    long = [f"{block.place}: {line}" for block in blocks(page) for line in block.text.splitlines() if len(line) > 120]
    assert not long
    sentences = [line for line in prose(page).splitlines() if not line.startswith(("|", "<"))]
    two = [line for line in sentences if re.search(r"[a-z)`]\. [A-Z]\w", line)]
    assert not two, "\n".join([f"{page.name}: a line is one sentence", *two])


@pytest.mark.parametrize("name", ["README.md", "kernels/README.md", "docs/windows.md"])
def test_who_installs_by_hand_is_given_the_cuda_builds_that_the_doctor_picks(name: str) -> None:
    """The plain wheel of Windows has no CUDA, which would leave a card idle."""
    builds = [
        choose_torch(Machine("Windows", "win-amd64", (3, 12), Card(cuda, (8, 9))), None).arguments[-1]
        for cuda in ((13, 0), (12, 6))
    ]
    page = (ROOT / name).read_text(encoding="utf-8")
    assert f"\npip install torch --index-url {builds[0]}\n" in page
    assert f"`{str(builds[1]).rpartition('/')[2]}`" in page


def test_pictures_are_small() -> None:
    large = [path.name for path in (ROOT / "docs" / "images").iterdir() if path.stat().st_size > 150_000]
    assert not large


# Faults that the tests above report, planted.


@pytest.mark.usefixtures("only_parse")
@pytest.mark.parametrize(
    "line",
    [
        "medmambase-train data/ --batchsize 3",
        "medmambase-train data/ --recipe nothing",
        "medmambase-predict runs/a",
        "medmambase-evaluate",
        "medmambase-bench --operator nothing",
        "python tools/nothing.py",
        "python tools/check.py --onyl tests",
        "python tools/kernels/compile_kernels.py --dtype int",
        "torchrun -m medmambase.commands.nothing",
        "pip install .[nothing]",
        "tidy-up now",
    ],
)
def test_a_wrong_command_is_reported(line: str) -> None:
    with pytest.raises((SystemExit, AssertionError, ValueError)):
        accept(words_of(line))


def test_paths_of_windows_stay_as_they_are() -> None:
    assert words_of(r".venv\Scripts\medmambase-train C:\images") == ["medmambase-train", r"C:\images"]
