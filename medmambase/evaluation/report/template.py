"""Read the templates of the pages and of the model card, which lie beside this file."""

import re
from collections.abc import Callable, Mapping
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template

from medmambase.evaluation.report.glossary import entries_for
from medmambase.evaluation.report.summary import figure
from medmambase.plural import count_of


def template(name: str, filters: Mapping[str, Callable[..., object]] | None = None, *, html: bool = True) -> Template:
    """Return the template in the file ``name``, with the filters that all have, and these. It may
    include other files from beside it.

    With ``html`` nothing that is filled in can be a tag. A name that is not filled in is an error
    of jinja2.
    """
    environment = Environment(
        loader=FunctionLoader(text), autoescape=html, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    own = {"figure": figure, "times": count_of, "setting": _setting, "marked": _marked}
    environment.filters |= {**own, **(filters or {})}
    return environment.get_template(name)


def with_glossary(page: Template, values: Mapping[str, object]) -> str:
    """Return the page filled in, and in its ``glossary`` the words that stand on it."""
    return page.render(values, glossary=entries_for(page.render(values, glossary={})))


def text(name: str) -> str:
    """Return the text of the file ``name`` beside this one."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _setting(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "not set" if value is None else str(value)


def _marked(text: object) -> str:
    """Text in a line, or a table's cell, of Markdown: nothing in it is a mark, a tag or a new line.
    What is no mark inside a line stays as it is, for who reads the card as plain text."""
    return re.sub(r"[\\`*\[\]<>|~$]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)", r"\\\g<0>", " ".join(_setting(text).split()))
