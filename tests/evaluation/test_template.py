"""Templates: what is filled in stays text, and nothing is left out in silence."""

import pytest
from jinja2 import UndefinedError

from medmambase.evaluation.report import template


def test_what_is_filled_in_is_no_tag_on_a_page_and_a_missing_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        template, "text", lambda name: "{{ name }} {{ one|figure }} {{ 2|times('image') }} {{ 3|twice }}"
    )
    filters = {"twice": lambda number: 2 * number}
    assert template.template("x", filters).render(name="<b>", one=0.5) == "&lt;b&gt; 0.500 2 images 6"
    assert template.template("x", filters, html=False).render(name="<b>", one=0.5) == "<b> 0.500 2 images 6"
    with pytest.raises(UndefinedError, match="'name' is undefined"):
        template.template("x", filters).render(one=0.5)
