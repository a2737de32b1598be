"""`tinylm analyze film`: the page holds the attention of the checkpoints, and works in a browser without a network."""

import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tinylm.analysis.attention import attention_maps
from tinylm.analysis.film import PLACE, TEMPLATE
from tinylm.bundle import checkpoint_entry, load
from tinylm.evaluation.log_probs import document_ids
from tinylm.files import seal_zip
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer("abc<>/sript ")
TEXT = "</script> abc cab abcab"
STEPS = (1, 10, 100)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a run of three checkpoints, a text, and a model that is no run."""
    folder = tmp_path_factory.mktemp("film")
    (folder / "runs/one/checkpoints").mkdir(parents=True)
    config = ModelConfig(vocab_size=TOKENIZER.vocab_size, d_model=8, num_layers=2, num_heads=2, max_seq_len=12)
    for step in STEPS:
        torch.manual_seed(step)
        model = TransformerLM(config)
        content = {"tinylm": checkpoint_entry(config, TOKENIZER), "global_step": step}
        content["state_dict"] = {f"net.{name}": weight for name, weight in model.state_dict().items()}
        with (folder / f"runs/one/checkpoints/{'last' if step == 100 else f'step={step}'}.ckpt").open("w+b") as file:
            torch.save(content, file)
            seal_zip(file)
    (folder / "runs/alone/checkpoints").mkdir(parents=True)
    shutil.copy(folder / "runs/one/checkpoints/last.ckpt", folder / "runs/alone/checkpoints/last.ckpt")
    (folder / "t.txt").write_text(TEXT)
    return folder


@pytest.fixture
def run(load, folder, monkeypatch):
    monkeypatch.chdir(folder)
    return lambda *words: load("analyze")("film", *words)


def test_the_page_holds_the_maps_of_every_checkpoint(run):
    code, out, err = run("--model", "runs/one", "--text", "t.txt", "--tokens", 9)
    assert code == 0, err
    assert [line.partition(":")[0] for line in out.splitlines()] == [
        *(f"step {step}" for step in STEPS),
        "analysis/film.html",
    ]
    page = Path("analysis/film.html").read_text()
    data = re.search(r"const film = (\{.*\});", page)[1]
    assert "<" not in data  # no token ends the script
    film = json.loads(data)
    assert film["words"] == [letter.replace(" ", "·") for letter in TEXT[:9]]
    ids = torch.from_numpy(document_ids(TOKENIZER, TEXT))[None, :9]
    for step, frame in zip(STEPS, film["frames"], strict=True):
        model, _ = load(f"runs/one/checkpoints/{'last' if step == 100 else f'step={step}'}.ckpt")
        maps = np.frombuffer(base64.b64decode(frame["maps"]), dtype=np.uint8).reshape(2, 2, 9, 9) / 255
        np.testing.assert_allclose(maps**2, attention_maps(model, ids)[:, 0].numpy(), atol=0.004)  # half of 2/255
        assert frame["step"] == step and len(frame["previous"]) == len(frame["induction"]) == 4
    assert page.replace(data, PLACE) == TEMPLATE.read_text()
    assert not re.search(r"https?:|@import|src=|url\(", page.replace(data, ""))  # needs no network


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--model", "t.txt"], 2, "--model must be a run folder with checkpoints/, got t.txt"),
        (["--model", "runs/alone", "--text", "t.txt"], 66, "runs/alone: has checkpoints of 1 steps, a film needs 2; "),
        (["--model", "runs/one", "--frames", "1"], 2, "--frames must be at least 2, got 1"),
        (["--model", "runs/one", "--out", "film.gif"], 2, "--out must end in .html, got film.gif"),
        (["--model", "runs/one"], 2, "--text: missing; give a UTF-8 text file"),
        (["--model", "runs/one", "--out", "mine.html"], 73, "mine.html: exists and is not a film of tinylm"),
    ],
)
def test_errors_are_one_line(words, code, message, run):
    Path("mine.html").write_text("<!doctype html>\n<p>mine")
    found, out, err = run(*words)
    assert (found, out) == (code, "") and err.startswith("tinylm: error: ") and message in err and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="found no chromium and no google-chrome")
def test_the_slider_shows_each_checkpoint_on_a_phone(run):
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    assert run("--model", "runs/one", "--text", "t.txt", "--tokens", 9)[0] == 0
    problems: list[str] = []
    with playwright.sync_playwright() as program:
        browser = program.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.goto(Path("analysis/film.html").resolve().as_uri())
        assert "step 100:" in page.inner_text("#state")
        page.focus("#frame")
        page.keyboard.press("ArrowLeft")
        assert "step 10:" in page.inner_text("#state")
        page.click("#heads button[value='1.1']")
        assert "layer 1, head 1" in page.inner_text("#state")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
    assert problems == []
