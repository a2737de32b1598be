"""The documentation site: its navigation and API pages are complete, and what Markdown means arrives there.

The build itself, which checks all links, is a part of .ci/run.
"""

import importlib
import inspect
import re
import runpy
from types import SimpleNamespace

import pytest

from tests.docs.runner import ROOT

DOCS = ROOT / "docs"
PACKAGES = ["tinylm", *sorted(f"tinylm.{path.parent.name}" for path in (ROOT / "tinylm").glob("*/__init__.py"))]
# the command line and what commands share; the model in faster forms
NOT_PUBLIC = {"tinylm.commands", "tinylm.console", "tinylm.files", "tinylm.kernels"}


@pytest.fixture(scope="module")
def conf() -> SimpleNamespace:
    """The names of docs/conf.py, which needs no Sphinx until it is set up."""
    return SimpleNamespace(**runpy.run_path(str(DOCS / "conf.py")))


def api_page(package: str) -> str:
    return (DOCS / "api" / f"{package.rpartition('.')[2]}.md").read_text(encoding="utf-8")


def test_navigation_lists_each_page_once():
    toctrees = re.findall(
        r"^```\{toctree\}\n(.*?)^```$", (DOCS / "index.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    listed = [line for tree in toctrees for line in tree.splitlines() if line and not line.startswith(":")]
    pages = [path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(listed) == sorted(set(pages) - {"index"})


@pytest.mark.parametrize("package", [name for name in PACKAGES if name not in NOT_PUBLIC])
def test_the_api_page_of_a_package_shows_each_exported_name(package):
    page, module = api_page(package), importlib.import_module(package)
    assert f".. automodule:: {package}\n" in page  # shows all exported classes and functions
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        assert inspect.isclass(value) or inspect.isfunction(value) or f".. autodata:: {package}.{name}\n" in page, name


def test_names_on_api_pages_exist():
    names = [
        name
        for path in (DOCS / "api").glob("*.md")
        for name in re.findall(r"^\.\. auto\w+:: (.*)$", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert len(names) > 20
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), name


@pytest.mark.parametrize(
    ("file", "page", "link", "expected"),
    [
        ("README.md", "index", "docs/data.md", "data.md"),
        ("README.md", "index", "docs/interop.md#chat-templates", "interop.md#chat-templates"),
        ("README.md", "index", "docs/tutorial/curves.png", "tutorial/curves.png"),
        ("README.md", "index", "docs/tinylm.ipynb", "REPOSITORY/blob/main/docs/tinylm.ipynb"),
        ("README.md", "index", "LICENSE", "REPOSITORY/blob/main/LICENSE"),
        ("docs/examples.md", "examples", "../README.md#finetuning", "index.md#finetuning"),
        ("docs/examples.md", "examples", "../configs/finetune.yaml", "REPOSITORY/blob/main/configs/finetune.yaml"),
        ("docs/examples.md", "examples", "../scripts/examples", "REPOSITORY/tree/main/scripts/examples"),
        ("docs/tutorial/1-tokens.md", "tutorial/1-tokens", "../TUTORIAL.md", "../TUTORIAL.md"),
        ("docs/faq.md", "faq", "missing.md", "missing.md"),  # which Sphinx reports
        ("docs/faq.md", "faq", "#questions", "#questions"),
        ("docs/faq.md", "faq", "https://docs.pytorch.org/a.html#b", "https://docs.pytorch.org/a.html#b"),
    ],
)  # fmt: skip
def test_a_link_for_github_leads_to_the_same_text_on_the_site(conf, file, page, link, expected):
    found = conf.adapt_links(f"See [it]({link}).", ROOT / file, DOCS / f"{page}.md")
    assert found == f"See [it]({expected.replace('REPOSITORY', conf.REPOSITORY)})."


@pytest.mark.parametrize(
    ("markdown", "restructuredtext"),
    [
        ("The `forward` of `TransformerLM`s.", r"The `forward`\  of `.TransformerLM`\ s."),
        ("Writes `<|endoftext|>`", "Writes ``<|endoftext|>``"),
        ("2 * x_i and |y| and trailing_", r"2 \* x_i and \|y\| and trailing\_"),
        ("Axes:\n\n    B * T\n      S\n\n    H\n\n`a * b`", "Axes:\n\n::\n\n    B * T\n      S\n\n    H\n\n``a * b``"),
        ("Reads.\n\nArgs:\n    ids: a * b\n\n    more", "Reads.\n\nArgs:\n    ids: a \\* b\n\n    more"),
    ],
)  # fmt: skip
def test_a_docstring_in_markdown_becomes_restructuredtext(conf, markdown, restructuredtext):
    assert "\n".join(conf.to_restructuredtext(markdown.split("\n"))) == restructuredtext
