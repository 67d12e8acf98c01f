"""What names a person or a machine is taken out of text, and nothing else is."""

from pathlib import Path

import pytest

from medmambase import privacy


@pytest.fixture(autouse=True)
def anna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "anna")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/anna"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("report: /home/anna/runs/x-001/report.html", "report: <path>"),
        ("skipped: /mnt/big disk/a b/1.png: truncated", "skipped: <path>: truncated"),
        (r"C:\Users\anna\scans\1.png: truncated", "<path>: truncated"),
        (r"\\server\anna\1.png", "<path>"),
        ("runs/anna/x-001 and ../anna/y", "runs/<user>/x-001 and ../<user>/y"),
        ("ANNA/x and runs/Anna", "<user>/x and runs/<user>"),
        ("split 70/15/15 into train, val and test", "split 70/15/15 into train, val and test"),
        ("train/brain/1.png (train, brain)", "train/brain/1.png (train, brain)"),
        ("anna: 3 images, banana/1.png", "anna: 3 images, banana/1.png"),  # a class, and a longer name
    ],
)
def test_paths_from_a_root_and_folders_of_the_account_are_taken_out(text: str, wanted: str) -> None:
    assert privacy.without_paths(text) == wanted


def test_a_short_working_folder_is_no_part_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path("/data"))
    assert privacy.without_paths("a/data/1.png and b/datas/2.png") == "a/data/1.png and b/datas/2.png"


def test_a_command_keeps_the_last_name_of_each_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "studies" / "scans").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    words = ["studies/scans", "--runs=/home/anna/runs", "--lr", "3e-4", "--group-regex", r"(p\d+)/", "../x/y.toml"]
    assert privacy.command("medmambase-train", words) == (
        r"medmambase-train scans --runs=runs --lr 3e-4 --group-regex '(p\d+)/' y.toml"
    )
    assert [privacy.last_name(path) for path in ("/", "a/b/", r"D:\x\y", "..")] == ["<path>", "b", "y", ".."]
