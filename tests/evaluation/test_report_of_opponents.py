"""What the page and the card of a run say where its network is another than ours."""

from pathlib import Path

from finished_run import put
from html_page import Page

from medmambase.config import OpponentConfig, Preprocessing
from medmambase.evaluation.report.report import write_report
from medmambase.opponent_recipes import OPPONENT_RECIPES


def test_a_network_of_another_kind_is_called_by_its_name(tmp_path: Path) -> None:
    told = {
        "model": OpponentConfig("swin_tiny").to_dict(), "training": OPPONENT_RECIPES["swin_tiny"].to_dict(),
        "preprocessing": Preprocessing().to_dict(), "classes": ["a", "b"], "parameters": 1234567,
    }  # fmt: skip  # a file
    put(tmp_path / "config.json", told)
    page = Page(write_report(tmp_path))
    assert "maps of evidence and scans are those of MedMambaSE's blocks, which swin_tiny has not" in page.text
    assert "Only MedMambaSE's gates can be drawn." in page.text
    card = (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "- swin_tiny, as it was published, 1,234,567 parameters\n" in card and "Block" not in card
    assert 'load with `Predictor.load("best")`' in card
    assert "swin_tiny, as it was published, 1,234,567 parameters." in card
