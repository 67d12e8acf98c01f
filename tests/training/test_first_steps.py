"""``docs/first_steps.ipynb`` runs from top to bottom, and its last lines show what they promise."""

import json
from pathlib import Path

import pytest

from medmambase.training import run as training_run

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "first_steps.ipynb"


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_the_notebook_trains_evaluates_and_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training_run, "DEMO_IMAGES_PER_CLASS", 10)  # instead of 400
    names: dict[str, object] = {}
    cells = [cell for cell in _notebook()["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)  # noqa: S102  # this is our own page
    said = capsys.readouterr().out
    assert "epoch   3" in said and "test: accuracy" in said
    assert said.count(".png ") >= 2  # a line for each image
    assert (tmp_path / "runs" / "demo-001" / "report.html").is_file()


def test_it_is_a_valid_notebook_without_outputs() -> None:
    notebook = _notebook()
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code") and isinstance(cell["metadata"], dict)
        assert all(isinstance(line, str) for line in cell["source"])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    code = [line for cell in notebook["cells"] if cell["cell_type"] == "code" for line in cell["source"]]
    assert len([line for line in code if line.strip()]) <= 10


def _notebook() -> dict:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))
