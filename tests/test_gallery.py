"""Every picture of docs/gallery.md, drawn in both themes: the same panels as there, and no texts that overlap.

The runs are made up and the model is untrained, but of the same shape; what training would measure is not compared.
"""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.boxes import crowded_texts
from tests.runs.test_compare import make_run
from tests.shortcuts import drawn_curves
from tinylm.analysis.pictures import draw_attention
from tinylm.bundle import save_bundle
from tinylm.commands import analyze_coordinates
from tinylm.console import THEME, THEMES
from tinylm.experiments.ablation import Ablation, Budget
from tinylm.experiments.coordinates import Coordinates
from tinylm.experiments.intervals import Difference
from tinylm.experiments.picture import draw_differences
from tinylm.experiments.table import Summary
from tinylm.model import ModelConfig, TransformerLM
from tinylm.runs.plots import Curves, figure_of
from tinylm.runs.sweep import Line, Point, Sweep
from tinylm.runs.sweep_plots import draw_lines, draw_maps
from tinylm.tokenizer import END_OF_TEXT, ByteTokenizer

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("gallery", ROOT / "scripts/make/gallery.py")
gallery = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gallery)
COLUMNS = "step,train/loss,train/grad_norm,lr,perf/tokens_per_sec,perf/step_seconds,val/loss,val/floor\n"
STEPS = [*range(1, 11), 20, 30, 40, 50]


def write_metrics(folder: Path, scale: float = 1.0) -> None:
    rows = [f"{s},{7 * scale / s**0.3},{1 + 1 / s},{s / 1e4},{7000 + s},0.1,," for s in STEPS]
    last = f"50,,,,,,{1.2 * scale},0.85\n"
    (folder / "metrics.csv").write_text(COLUMNS + "\n".join(rows) + "\n" + last)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with the runs of the gallery: an untrained `tiny`, and six whose metrics are made up."""
    folder = tmp_path_factory.mktemp("gallery")
    torch.manual_seed(0)
    shape = dict(d_model=16, num_layers=2, num_heads=4, max_seq_len=32)
    tiny = folder / "runs/tiny"
    model = TransformerLM(ModelConfig(vocab_size=257, **shape))
    save_bundle(tiny / "model", model, ByteTokenizer([END_OF_TEXT]), {"step": 50})
    (tiny / "config.yaml").write_text("data: {corpus: 'stories:60', split: [0.9, 0.1], seed: 0}\n")
    write_metrics(tiny)
    texts = ["Once upon a time\x00 the\n\n日本 of $a$", f"Once upon a time there was {'a long word and ' * 20}"]
    (tiny / "samples.txt").write_text("".join(f"=== step {25 * i}\n{text}\n\n" for i, text in enumerate(texts, 1)))
    for lr, width in itertools.product((0.001, 0.003, 0.01), (32, 64)):
        run = folder / f"runs/lr{lr}-width{width}"
        make_run(run, trainer__max_steps=50, model__optimizer={"lr": lr}, model__network__d_model=width)
        write_metrics(run, 1 + lr)
    return folder


@pytest.mark.slow
def test_every_picture_of_the_gallery_has_its_panels_and_room_for_its_texts(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    monkeypatch.setattr(gallery, "draw_curves", drawn_curves)
    monkeypatch.setattr(analyze_coordinates, "measure", lambda *_: dict.fromkeys(("muP", "standard"), coordinates()))
    with crowded_texts() as faults:
        files = list(gallery.draw_all(tmp_path))
    assert faults == []
    grounds = {"light": (255, 255, 255), "dark": (0x17, 0x19, 0x1D)}
    for file in files:
        assert gallery.structure(file) == gallery.structure(ROOT / "docs/gallery" / file.name), file.name
        with Image.open(file) as image:
            assert image.convert("RGB").getpixel((0, 0)) == pytest.approx(grounds[file.stem.rpartition("-")[2]], abs=3)


def test_the_page_and_its_pictures_are_those_of_the_script_and_small():
    assert (ROOT / "docs/gallery.md").read_text(encoding="utf-8") == gallery.page()
    files = sorted((ROOT / "docs/gallery").iterdir())
    assert [file.name for file in files] == sorted(
        f"{each.name}-{theme}.png" for each in gallery.PICTURES for theme in THEMES
    )
    sizes = [file.stat().st_size for file in files]
    assert max(sizes) < 90_000 and sum(sizes) < 1_500_000


# --- more crowded than those in the gallery


def coordinates() -> Coordinates:
    widths, places = (32, 64, 128), ("embedding", "attention", "units", "feedforward", "stream", "scores", "logits")
    changes = {place: tuple(0.01 * (k + 1) * w ** (0.1 * k) for w in widths) for k, place in enumerate(places)}
    return Coordinates(widths=widths, changes=changes)


def many_runs():
    x = np.geomspace(1e9, 1e12, 20)
    names = ["train/loss", "val/loss", "val/floor", "lr", "perf/tokens_per_sec", "val/bpb", "val/accuracy"]
    columns = dict.fromkeys(names, (x, 0.0001 * x**0.3))
    runs = [Curves(f"lr 0.0{n}, a long name of a setting", columns) for n in range(9)]
    panels = ["loss", "lr", "throughput", "bpb", "accuracy"]
    return figure_of(runs, panels=panels, axis="FLOPs", log=["x", "y"], title="many")


def sweep_of_names():
    names = ["adamw with a long name", "muon", "sgd", "a rather long name", "another name", "something else", "lion"]
    line = Line("", [Point((name,), k, None, 1) for k, name in enumerate(names)])
    return draw_lines(Sweep(("optimizer",), "lowest val/loss", [line], []), title="a title")


def sweep_of_many_numbers():
    lines = [Line(f"width {k}", [Point((10 ** (-n / 6),), k + n, 0.1, 3) for n in range(20)]) for k in range(3)]
    return draw_lines(Sweep(("lr",), "lowest val/loss", lines, []), title="a title", log=["x", "y"])


def maps_of_means():
    points = [Point((lr, width), lr + width / 100, 0.02, 3) for lr in (0.001, 0.003, 0.01) for width in (32, 64, 128)]
    return draw_maps(Sweep(("lr", "width"), "lowest val/loss", [Line(n, points) for n in "ab"], []), title="a title")


def many_tokens():
    words = [f"·{'word' * (n % 4)}{n}" for n in range(60)]
    return draw_attention(torch.ones(1, 2, 60, 60).tril(), words, [["head 0.0, entropy 1.00"] * 2], "attention")


@pytest.mark.parametrize("draw", [many_runs, sweep_of_names, sweep_of_many_numbers, maps_of_means, many_tokens])
@pytest.mark.parametrize("theme", THEMES)
def test_crowded_pictures_have_room_for_their_texts(draw, theme, monkeypatch):
    monkeypatch.setenv(THEME, theme)
    with crowded_texts() as faults:
        draw().canvas.draw()
    assert faults == []


def test_an_ablation_has_room_for_its_texts(tmp_path):
    ablation = Ablation(path=Path("norms.yaml"), base=(), variants=(), reference="base", seeds=(1, 2, 3),
                        budget=Budget("steps", 500))  # fmt: skip
    unknown = dict.fromkeys(("loss", "bpb", "excess", "tokens_per_sec", "seconds"))
    names = ("without QK-norm", "LayerNorm in place of RMSNorm", "post-norm")
    summaries = [Summary(name=name, runs=3, difference=Difference((0.01, 0.02, 0.03), 0.02, 0.02), fixed={}, **unknown)
                 for name in names]  # fmt: skip
    with crowded_texts() as faults:
        assert draw_differences(ablation, summaries, [tmp_path / "a.png"])
    assert faults == []
