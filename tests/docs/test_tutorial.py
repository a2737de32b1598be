"""The tutorial: its blocks run and print the outputs shown, and its links and pictures exist."""

import re
import shutil
import struct
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from tests.docs.runner import BLOCK, PICTURE, ROOT, run_command, run_document

CHAPTERS = sorted((ROOT / "docs/tutorial").glob("*.md"))
FROM_A_WHOLE_RUN = {"curves.png"}  # not drawn by a block
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]+)\)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of a reader, shared by all chapters."""
    return tmp_path_factory.mktemp("tutorial")


@pytest.fixture
def no_windows():
    """Draws pictures to files only, closes all figures, and leaves the style as it was."""
    with plt.rc_context():
        plt.switch_backend("agg")
        yield
        plt.close("all")


def pictures_of(chapter: Path) -> set[str]:
    """The names of the pictures in a chapter."""
    return {picture["name"] for picture in PICTURE.finditer(chapter.read_text(encoding="utf-8"))}


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_prints_its_outputs_and_draws_its_pictures(chapter, folder, monkeypatch, no_windows):
    monkeypatch.chdir(folder)
    before = set(folder.glob("*.png"))
    if chapter.stem == "6-training":
        shutil.rmtree("runs/tiny", ignore_errors=True)  # of another chapter that needed it first
    if (
        chapter.stem in ("9-finetuning", "11-rewards") and not Path("runs/tiny").exists()
    ):  # it uses the model of chapter 6
        first = BLOCK.search((ROOT / "docs/tutorial/6-training.md").read_text(encoding="utf-8"))
        run_command(first["code"].splitlines()[0].removeprefix("$ "), first["words"] or "", folder)
    results = list(run_document(chapter.read_text(encoding="utf-8"), folder))
    assert results
    for result in results:
        assert result.good, f"{chapter.name}:{result.line}: expected\n{result.expected}\nfound\n{result.found}"
    drawn = {path.name for path in set(folder.glob("*.png")) - before}
    assert drawn == {name for name in pictures_of(chapter) - FROM_A_WHOLE_RUN if not name.endswith(".svg")}


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_has_pictures_that_exist_and_are_small(chapter):
    assert pictures_of(chapter)
    for picture in PICTURE.finditer(chapter.read_text(encoding="utf-8")):
        caption = picture[0].removeprefix("![").partition("](")[0]
        assert len(caption.split()) >= 5, f"{picture[0]}: describe the picture"
        content = (chapter.parent / picture["name"]).read_bytes()
        assert len(content) < 150_000, picture[0]
        if picture["name"].endswith(".svg"):  # test_drawings.py
            continue
        assert content.startswith(b"\x89PNG\r\n\x1a\n"), picture[0]
        width, height = struct.unpack(">II", content[16:24])  # the first fields of the first chunk, IHDR
        assert 300 <= width <= 2000 and 100 <= height <= 2000, picture[0]


def test_every_picture_is_shown_once():
    shown = sorted(name for chapter in CHAPTERS for name in pictures_of(chapter))
    assert shown == sorted(path.name for path in (ROOT / "docs/tutorial").glob("*.[ps][nv]g"))


def test_chapters_with_two_exercises_each_are_in_the_contents():
    contents = (ROOT / "docs/TUTORIAL.md").read_text(encoding="utf-8")
    for path in CHAPTERS:
        text = path.read_text(encoding="utf-8")
        assert f"(tutorial/{path.name})" in contents
        _, exercises, solutions = re.split(r"^## Exercises$|<details>", text, flags=re.MULTILINE)
        for part in (exercises, solutions):
            assert re.findall(r"^(\d)\. ", part, flags=re.MULTILINE) == ["1", "2"]


@pytest.mark.parametrize("path", [ROOT / "docs/TUTORIAL.md", *CHAPTERS], ids=lambda path: path.stem)
def test_links_point_to_files_that_define_the_names_linked(path):
    for link in LINK.finditer(path.read_text(encoding="utf-8")):
        target = path.parent / link["target"]
        assert target.is_file(), link[0]
        name = re.fullmatch(r"`(\w+)`", link["text"])
        if name and target.suffix == ".py":
            assert re.search(rf"^\s*(def|class) {name[1]}\b", target.read_text(encoding="utf-8"), re.MULTILINE), link[0]
