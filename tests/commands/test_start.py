"""Every command answers --help, --version and a wrong flag before it imports what takes seconds."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from medmambase import __version__
from medmambase.commands import bench, bench_flags, predict_flags
from medmambase.settings import Engine
from medmambase_kernels import BACKENDS
from medmambase_kernels.bench import cases

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    name.removeprefix("medmambase-")
    for name in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
]
SLOW = {"torch", "numpy", "scipy", "sklearn", "matplotlib", "PIL", "llvmlite", "triton", "jinja2", "tqdm"}
ASK = """
import sys
from medmambase.commands import start
for command in sys.argv[1].split():
    for word in ("--help", "--version", "--xyzzy"):
        sys.argv = [command, "x", word]
        try:
            ended = getattr(start, command)()
        except SystemExit as end:
            ended = end.code or 0
        print("ended:", command, word, ended)
sys.argv = ["train", "x", "--epochs", "many"]
print("ended:", start.train())
print("imported:", *sys.modules)
"""


def test_help_version_and_wrong_flags_import_nothing_slow() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK, " ".join(COMMANDS)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    for command in COMMANDS:
        assert f"usage: medmambase-{command} " in done.stdout
        assert f"ended: {command} --help 0\nmedmambase {__version__}\n" in done.stdout
        assert f"ended: {command} --version 0\n" in done.stdout
        assert f"ended: {command} --xyzzy 2\n" in done.stdout
        assert f"medmambase-{command}: " in done.stderr
        assert f"medmambase-{command}: there is no flag --xyzzy; medmambase-{command} --help" in done.stderr
    assert len(done.stderr.strip().splitlines()) == len(COMMANDS) + 1
    assert "ended: 2\n" in done.stdout
    assert "medmambase-train: --epochs is 'many'" in done.stderr
    imported = {module.partition(".")[0] for module in done.stdout.partition("imported: ")[2].split()}
    assert "argparse" in imported
    assert not imported & SLOW


def test_the_flags_of_bench_offer_what_can_be_measured() -> None:
    assert bench_flags.OPERATORS == tuple(cases.OPERATORS)
    assert bench_flags.DTYPES == tuple(bench.DTYPES)
    assert bench_flags.SIZES == cases.SIZES
    assert Engine.__args__ == BACKENDS


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--calibratde"], "there is no flag --calibratde; the nearest is --calibrated"),  # and not what is missing
        (
            ["run", "a.png", "b.png"],
            "'b.png' is one argument too many; give the folder that holds the images, or one image at a time",
        ),
        (["run", "a.png", "-z"], "there is no flag -z"),
        (["run", "images", "--digit=3"], "there is no flag --digit; the nearest is --digits"),
        (["run"], "the following arguments are required: IMAGES"),
        (["run", "images", "--digits", "0"], "--digits: '0' is not a whole number of at least 1"),
    ],
)
def test_wrong_arguments_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        predict_flags.parse(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"medmambase-predict: {said}; medmambase-predict --help lists everything\n"
