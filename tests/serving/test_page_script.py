"""The page's script finds what it looks for on the page, and says of an answer what it should."""

import json
import re
import shutil
import subprocess
from importlib.resources import files

import pytest

SERVING = files("medmambase.serving")
SCRIPT = (SERVING / "page.js").read_text(encoding="utf-8")
PAGE = (SERVING / "page.html.jinja").read_text(encoding="utf-8")
STYLE = (SERVING / "page.css").read_text(encoding="utf-8")
CLASSES = ["cyst", "solid", "none"]
# The place of a document: every part of it has every other, and nothing is shown.
STUB = """
const any = new Proxy(function () {}, {
  get: (_, key) => (key === Symbol.toPrimitive ? () => "" : key === Symbol.iterator ? undefined : any),
  apply: () => any,
  set: () => true,
});
const document = { getElementById: (id) => (id === "facts" ? { textContent: FACTS } : any), addEventListener: any };
"""


def test_the_script_finds_what_it_looks_for() -> None:
    ids, classes = set(re.findall(r'\bid="([\w-]+)"', PAGE)), set(re.findall(r'\bclass="([\w -]+)"', PAGE))
    wanted = set(re.findall(r'\bat\("([\w-]+)"\)', SCRIPT)) | {"facts"}
    assert len(wanted) > 10 and wanted <= ids
    named = set(re.findall(r'(?:put\(card, |querySelector\()"\.([\w-]+)[".]', SCRIPT))
    assert len(named) >= 7 and named <= {one for names in classes for one in names.split()}
    assert all(f".{name}" in STYLE for name in ("strange", "unlike", "set", "failed", "waiting"))


def test_nothing_is_put_on_the_page_as_html_or_loaded_from_elsewhere() -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", SCRIPT)
    assert not re.search(r"https?:|//\w+\.\w|\bimport\b|XMLHttpRequest|WebSocket|@import|url\(", SCRIPT + PAGE + STYLE)
    assert re.findall(r"fetch\((.*?),", SCRIPT) == ['"/predict"']


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_script_says_of_an_answer_what_it_should(multi_label: bool) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not there")
    facts = {
        "classes": CLASSES, "points": [], "multi_label": multi_label, "thresholds": [0.5, 0.2, 0.9],
        "false_alarms": 0.05, "coverage": None, "most": 1, "name": "a",
    }  # fmt: skip  # one object
    asked = {
        "mayBe(['cyst'])": "It may be cyst alone.",
        "mayBe(['cyst', 'none'])": "It may be cyst or none.",
        "mayBe(facts.classes)": "It may be of any class: the network does not know.",
        "predicted([0.1, 0.3, 0.6])": "solid" if multi_label else "none",
        "called([0.1, 0.3, 0.6], {name: 'solid', threshold: 0.3})": "solid",
        "called([0.1, 0.29, 0.6], {name: 'solid', threshold: 0.3})": "not solid",
        "onlyIf(facts.false_alarms, 'yes')": ["yes"],
        "onlyIf(facts.coverage, 'yes')": [],
        "cell('=1+1')": "'=1+1",
        """cell('a,"b')""": '"a,""b"',
        "/nothing should be read into its class/.test(UNLIKE)": True,
    }
    program = f"const FACTS = {json.dumps(json.dumps(facts))};{STUB}{SCRIPT}\n"
    program += f"console.log(JSON.stringify([{', '.join(asked)}]));"
    found = subprocess.run([node, "-"], input=program, capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == list(asked.values())
