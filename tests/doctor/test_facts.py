"""How the doctor collects its facts."""

from pathlib import Path

from medmambase.doctor import facts
from medmambase.doctor.facts import read_trial


def test_a_trial_that_ended_early_tells_how_far_it_came() -> None:
    trial = read_trial(
        'noise\n{"torch": "2.13.0", "capability": [8, 9], "sees_gpu": true}\n{"backend": "triton", "unknown": 1}\n',
        "exit code -11",
    )
    assert (trial.torch, trial.capability, trial.backend, trial.kernel_s, trial.failed) == (
        "2.13.0",
        (8, 9),
        "triton",
        None,
        "exit code -11",
    )


def test_a_file_that_hides_a_package_is_seen(tmp_path: Path) -> None:
    (tmp_path / "triton.py").write_text("", encoding="utf-8")
    (tmp_path / "torch").mkdir()
    assert facts._shadows(tmp_path) == ["triton.py"]
    (tmp_path / "torch" / "__init__.py").write_text("", encoding="utf-8")
    assert facts._shadows(tmp_path) == ["triton.py", "torch"]


def test_a_folder_that_cannot_be_made_or_written_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert facts._folder(tmp_path / "not" / "yet").writable
    assert not facts._folder(tmp_path / "file" / "below").writable
