"""Configuration of the documentation site: `sphinx-build -W --keep-going docs build/site`.

README and the pages in docs/ are written for GitHub, and docstrings in Markdown; this file adapts both to Sphinx.
"""

import importlib
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
if "GITHUB_REPOSITORY" in os.environ:  # in a workflow: its own repository
    REPOSITORY = f"{os.environ['GITHUB_SERVER_URL']}/{os.environ['GITHUB_REPOSITORY']}"
else:
    REPOSITORY = PROJECT["urls"]["Repository"]

project = html_title = PROJECT["name"]
release = PROJECT["version"]
copyright = "The tinylm developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "py:obj"  # names in docstrings become links where they are documented

smartquotes_action = "D"  # dashes alone
myst_heading_anchors = 4  # GitHub's anchors, which links are checked against

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False
maximum_signature_line_length = 80

html_theme = "furo"
html_theme_options = {"top_of_page_buttons": []}
html_static_path, html_css_files = ["_static"], ["site.css"]
html_copy_source = False
pygments_style, pygments_dark_style = "friendly", "monokai"

LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([^)#\s]+)(#[^)\s]*)?(?=\))")
IMAGES = (".png", ".svg", ".jpg", ".webp", ".gif")
COLUMNS = re.compile(r"\S {4}")
CODE = re.compile(r"`([^`]+)`")  # in a line of a docstring
SPECIAL = re.compile(r"[\\*|]|_(?!\w)")  # characters of reStructuredText's markup
CLASS, NAME = re.compile(r"[A-Z]\w*[a-z]\w*(\.\w+)*"), re.compile(r"\w+(\.\w+)*")


def adapt_links(text: str, file: Path, page: Path) -> str:
    """Makes the links of a Markdown file work on the site.

    Args:
        text: what the file contains
        file: where it lies, which its links are relative to
        page: the page of the site that shows it
    """

    def adapted(link: re.Match[str]) -> str:
        target, anchor = (file.parent / link[1]).resolve(), link[2] or ""
        if target == ROOT / "README.md":
            target = DOCS / "index.md"
        if not target.exists() or not target.is_relative_to(ROOT):
            return link[0]  # Sphinx warns about it
        if target.is_relative_to(DOCS) and target.suffix in (".md", *IMAGES):
            return os.path.relpath(target, page.parent) + anchor
        kind = "tree" if target.is_dir() else "blob"
        return f"{REPOSITORY}/{kind}/main/{target.relative_to(ROOT).as_posix()}{anchor}"

    return LINK.sub(adapted, text)


def read_page(app: "Sphinx", name: str, content: list[str]) -> None:
    """Adapts the links of a page in docs/."""
    content[0] = adapt_links(content[0], DOCS / f"{name}.md", DOCS / f"{name}.md")


def read_included(app: "Sphinx", path: Path, name: str, content: list[str]) -> None:
    """Adapts the links of README, which the first page includes."""
    content[0] = adapt_links(content[0], (DOCS / path).resolve(), DOCS / f"{name}.md")


def mark_sentences(app: "Sphinx", doctree: "nodes.document") -> None:
    """Marks outputs without columns, whose long lines site.css wraps."""
    for block in doctree.findall(lambda node: node.tagname == "literal_block"):
        if block.get("language") in ("console", "text") and not COLUMNS.search(block.astext()):
            block["classes"].append("sentences")


def to_restructuredtext(lines: list[str]) -> list[str]:
    """Converts the Markdown of a docstring, whose sections napoleon reads afterwards."""
    found: list[str] = []
    block, before = False, ""  # whether the line is in a block of code; the last line of text
    for line in lines:
        indented = line.startswith("    ")
        if indented and not block and found and not found[-1] and not before.startswith(" "):
            found += ["::", ""]
            block = True
        block = block and (indented or not line)
        found.append(line if block else inline(line))
        before = line or before
    return found


def inline(line: str) -> str:
    """Converts a line: escapes what means something in reStructuredText only, links the names of classes."""
    parts = CODE.split(line)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = SPECIAL.sub(r"\\\g<0>", part)
        elif CLASS.fullmatch(part):
            parts[i] = f"`.{part}`\\ "  # the dot: wherever it is defined
        else:
            parts[i] = f"`{part}`\\ " if NAME.fullmatch(part) else f"``{part}``\\ "
    return "".join(parts).removesuffix("\\ ")


def read_docstring(app: "Sphinx", what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Converts a docstring before napoleon reads its sections."""
    lines[:] = [] if what == "data" else to_restructuredtext(lines)  # a constant has only that of its type
    if what in ("attribute", "property"):
        lines.insert(0, "")  # else napoleon takes what precedes a colon for a type


def skip_member(app: "Sphinx", what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out the fields of named tuples, which their class describes."""
    return True if str(obj.__doc__).startswith("Alias for field number") else None


def import_names(package: str) -> None:
    """Imports the names of a package that imports them on first use, so that Sphinx sees them."""
    module = importlib.import_module(package)
    vars(module).update({name: getattr(module, name) for name in module.__all__})


def setup(app: "Sphinx") -> None:
    """Connects the functions above."""
    for package in ("tinylm", "tinylm.data", "tinylm.generation"):
        import_names(package)
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
    app.connect("doctree-read", mark_sentences)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # napoleon's is 500
