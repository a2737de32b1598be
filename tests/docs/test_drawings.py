"""The drawings of the documents: made by their script, no words overlap, and each is described where it is shown."""

import re
import runpy
import xml.etree.ElementTree as ElementTree

import pytest

from tests.analysis.drawn import faults
from tests.docs.runner import ROOT

FOLDER = ROOT / "docs" / "tutorial"
DRAWINGS = runpy.run_path(str(FOLDER / "drawings.py"))["DRAWINGS"]
SHOWN = {"../network.svg": ["README.md", "docs/architecture.md", "docs/tutorial/4-block.md"]}


def contents(svg: str) -> tuple[list[str], list[tuple[str, str | None]]]:
    """The words of a drawing, and the kinds of its shapes; lines may be broken elsewhere with another matplotlib."""
    root = ElementTree.fromstring(svg.encode())
    texts = [each for each in root.iter() if each.tag.endswith("}text")]
    shapes = [(each.tag, each.get("class")) for each in root.iter() if each not in texts]
    return " ".join(each.text or "" for each in texts).split(), shapes


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_committed_drawing_is_the_scripts(name):
    drawing = DRAWINGS[name]()
    assert faults(drawing) == []
    assert drawing.width <= 400  # a phone shows it at its size
    assert contents((FOLDER / name).read_text(encoding="utf-8")) == contents(drawing.svg())


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_is_shown_with_a_description(name):
    pages = SHOWN.get(name) or [str(path.relative_to(ROOT)) for path in FOLDER.glob(f"{name[0]}-*.md")]
    for page in pages:
        file = name.removeprefix("../")
        text = (ROOT / page).read_text(encoding="utf-8")
        found = re.search(rf"!\[([^\]]*)\]\([./\w]*{re.escape(file)}\)", text)
        assert found and len(found[1].split()) >= 8, page


def test_the_rotation_keeps_the_angle():
    words = [shape.text for shape in DRAWINGS["2-rotation.svg"]().shapes if hasattr(shape, "text")]
    degrees = [word for word in words if word.startswith("between them")]
    assert len(degrees) == 2 and len({*degrees}) == 1
    assert degrees[0] == "between them: 63°"  # 2 radians less the 0.9 between query and key before they turn


def test_the_cache_saves_all_but_the_diagonal():
    words = {shape.text for shape in DRAWINGS["7-cache.svg"]().shapes if hasattr(shape, "text")}
    assert {"15 computed in all", "5 computed in all"} <= words
