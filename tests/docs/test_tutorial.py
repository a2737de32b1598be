"""The tutorial: its blocks run and print what it says, and what it names is there."""

import re
from pathlib import Path

import pytest

from tests.docs.runner import BLOCK, PICTURE, ROOT, run_command, run_document

CHAPTERS = sorted((ROOT / "docs/tutorial").glob("*.md"))
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]+)\)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One for all chapters, as their reader has it."""
    return tmp_path_factory.mktemp("tutorial")


@pytest.mark.parametrize(
    "chapter",
    [
        pytest.param(path, id=path.stem, marks=pytest.mark.slow if "```console" in path.read_text("utf-8") else ())
        for path in CHAPTERS
    ],
)
def test_a_chapter_prints_what_it_says(chapter, folder, monkeypatch):
    monkeypatch.chdir(folder)
    if chapter.stem == "9-finetuning" and not Path("runs/tiny").exists():  # it goes on with the model of chapter 6
        first = BLOCK.search((ROOT / "docs/tutorial/6-training.md").read_text(encoding="utf-8"))
        run_command(first["code"].splitlines()[0].removeprefix("$ "), first["words"] or "", folder)
    results = list(run_document(chapter.read_text(encoding="utf-8"), folder))
    assert results
    for result in results:
        assert result.good, f"{chapter.name}:{result.line}: expected\n{result.expected}\nfound\n{result.found}"
    drawn = [name for name in pictures(chapter) if name != "curves.png"]  # which is that of a whole run
    for name in drawn:
        assert (folder / name).is_file(), name


def pictures(chapter: Path) -> list[str]:
    """The files of the pictures that a chapter shows."""
    return [picture["name"] for picture in PICTURE.finditer(chapter.read_text(encoding="utf-8"))]


def test_every_chapter_shows_a_picture_that_is_there_and_no_other_is():
    shown = [pictures(chapter) for chapter in CHAPTERS]
    assert all(shown)
    assert {name for names in shown for name in names} == {path.name for path in CHAPTERS[0].parent.glob("*.png")}
    for path in CHAPTERS[0].parent.glob("*.png"):
        header = path.read_bytes()[:24]
        assert header[:8] == b"\x89PNG\r\n\x1a\n"
        assert 300 <= int.from_bytes(header[16:20], "big") <= 1600 and path.stat().st_size < 100_000  # pixels wide


def test_there_are_nine_chapters_with_two_exercises_each_and_the_contents_name_them():
    contents = (ROOT / "docs/TUTORIAL.md").read_text(encoding="utf-8")
    assert len(CHAPTERS) == 9
    for path in CHAPTERS:
        text = path.read_text(encoding="utf-8")
        assert f"(tutorial/{path.name})" in contents
        _, exercises, solutions = re.split(r"^## Exercises$|<details>", text, flags=re.MULTILINE)
        for part in (exercises, solutions):
            assert re.findall(r"^(\d)\. ", part, flags=re.MULTILINE) == ["1", "2"]


@pytest.mark.parametrize("path", [ROOT / "docs/TUTORIAL.md", *CHAPTERS], ids=lambda path: path.stem)
def test_links_lead_to_files_that_have_what_they_name(path):
    for link in LINK.finditer(path.read_text(encoding="utf-8")):
        target = path.parent / link["target"]
        assert target.is_file(), link[0]
        name = re.fullmatch(r"`(\w+)`", link["text"])
        if name and target.suffix == ".py":
            assert re.search(rf"^\s*(def|class) {name[1]}\b", target.read_text(encoding="utf-8"), re.MULTILINE), link[0]
