"""Draws docs/gallery.md: every picture of tinylm in both themes, with the command that makes it.

    python scripts/make/gallery.py [--runs FOLDER] [--out docs]

The folder holds `tiny` and six short runs, `lr*`, which are trained if they are missing (two minutes).
tests/test_gallery.py draws the same pictures of other runs, and compares their panels with those of docs/gallery.
"""

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, PngImagePlugin

from tinylm.commands import run_command
from tinylm.console import THEME, THEMES
from tinylm.experiments import scaling_report
from tinylm.experiments.ablation import find_ablation, read_ablation
from tinylm.experiments.grid import Result
from tinylm.experiments.intervals import Difference
from tinylm.experiments.law import STORIES, Law
from tinylm.experiments.picture import draw_differences
from tinylm.experiments.table import Summary
from tinylm.files import read_json
from tinylm.runs.plots import draw_curves, save_figure

DOCS = Path(__file__).resolve().parents[2] / "docs"
COLOURS = 128  # of a picture in docs/, to keep it small
SHORT = ["--trainer.val_check_interval", "50", "--run.sample_tokens", "40"]
RUNS = {"tiny": ["--trainer.max_steps", "200", *SHORT]} | {
    f"lr{lr}-width{width}": [*SHORT, "--trainer.max_steps", "50", "--model.optimizer.lr", lr,
                             "--model.network.d_model", width]
    for lr, width in itertools.product(("0.001", "0.003", "0.01"), ("32", "64"))
}  # fmt: skip


class Picture(NamedTuple):
    """One picture: its name, the command that makes it, the file that the command writes, and a caption."""

    name: str
    command: str
    file: str
    text: str


ON = "--model runs/tiny --rows 8"
PICTURES = (
    Picture("curves", "fit -c tiny --trainer.max_steps 200", "runs/tiny/curves.png",
            "Every run ends with its curves: every step up to 10, then thinner, on a logarithmic axis; the best "
            "possible loss of the built-in stories; and the first words of the samples after each validation."),
    Picture("runs", "plot runs/lr* --x flops --log x --smooth 0.5 --out runs.png", "runs.png",
            "Several runs together, here against the floating-point operations spent."),
    Picture("lr", "plot runs/lr* --x lr --out lr.png", "lr.png",
            "A metric against a config entry. Runs that differ in their seed alone become a mean with an error bar."),
    Picture("map", "plot runs/lr* --x lr width --out map.png", "map.png", "A metric against two config entries."),
    Picture("attention", f"analyze attention {ON} --tokens 12", "analysis/attention.png",
            "The weights of every head on a text."),
    Picture("heads", f"analyze attention {ON} --tokens 12", "analysis/heads.png", "Three scores of every head."),
    Picture("activations", f"analyze activations {ON}", "analysis/activations.png",
            "The size of activations by layer."),
    Picture("gradients", f"analyze gradients {ON}", "analysis/gradients.png",
            "Norm, noise and sizes of the gradient, by part of the network."),
    Picture("lens", f"analyze lens {ON} --tokens 20", "analysis/lens.png", "The prediction after each layer."),
    Picture("embeddings", f"analyze embeddings {ON}", "analysis/embeddings.png",
            "The embedding of frequent tokens in two dimensions (analysis-pictures.md, with the next three)."),
    Picture("weights", "analyze weights --model runs/tiny", "analysis/weights.png",
            "Values and singular values of the weights, by layer."),
    Picture("positions", f"analyze positions {ON}", "analysis/positions.png", "The loss at each position."),
    Picture("choices", "analyze choices --model runs/tiny", "analysis/choices.png",
            "The surprise of each choice in a story, beside its true probability."),
    Picture("coordinates", "analyze coordinates -c tiny --widths 32 64 128", "analysis/coordinates.png",
            "The coordinate check of muP: with it, slopes near 0."),
    Picture("ablation", "ablate activation", "runs/activation/ablation.png",
            "Differences to the base with their 95% intervals, over three seeds, as measured in ablations.md ("
            "`ablate` also draws a point for each seed)."),
    Picture("isoflops", "scaling --out scaling", "scaling/isoflops.png",
            "Runs of equal cost and the law fitted to them (scaling.md)."),
    Picture("frontier", "scaling --out scaling", "scaling/frontier.png",
            "The lowest loss that each budget can reach, by the law."),
    Picture("law", "scaling --out scaling", "scaling/law.png", "The law against tokens."),
)  # fmt: skip


def make(command: str, pictures: Sequence[Picture]) -> None:
    """Makes the pictures of a command in the working folder, in the theme of the environment."""
    word, *words = command.split()
    if word == "fit":  # draws them at the end of a run
        draw_curves("runs/tiny/metrics.csv", pictures[0].file, "tiny")
    elif word == "ablate":  # the measurements of ablations.md
        draw_differences(read_ablation(find_ablation(words[0])), measured_differences(), [Path(pictures[0].file)])
    elif word == "scaling":  # the measurements behind the law of the stories
        found = read_json(STORIES)
        law, results = Law.from_dict(found["law"], "stories"), [Result(**each) for each in found["results"]]
        for picture in pictures:
            save_figure(getattr(scaling_report, f"draw_{picture.name}")(law, results), picture.file)
    else:
        folders = sorted(map(str, Path().glob("runs/lr*")))
        words = [each for word in words for each in (folders if word == "runs/lr*" else [word])]
        formats = ["--format", "png"] if word == "analyze" and words[0] != "coordinates" else []
        if run_command(word, [*words, *formats, "--overwrite"]):
            raise SystemExit(f"tinylm {command}: failed")


def measured_differences() -> list[Summary]:
    """The differences and intervals in the table of docs/ablations.md."""
    row = re.compile(r"^\| (\S+) \| 3 \|.*\| ([+-][\d.]+) \| ([+-][\d.]+) to ([+-][\d.]+) \|", re.MULTILINE)
    found = []
    for name, *figures in row.findall((DOCS / "ablations.md").read_text(encoding="utf-8")):
        mean, low, high = map(float, figures)
        unknown = dict.fromkeys(("loss", "bpb", "excess", "tokens_per_sec", "seconds"))
        found.append(Summary(name=name, runs=3, difference=Difference((), mean, (high - low) / 2), fixed={}, **unknown))
    return found


def draw_all(out: Path, pictures: Sequence[Picture] = PICTURES) -> Iterator[Path]:
    """Makes the pictures of the runs in the working folder, and yields each file, out/NAME-THEME.png, once written."""
    out.mkdir(parents=True, exist_ok=True)
    for command, group in by_command(pictures):
        for theme in THEMES:
            os.environ[THEME] = theme
            for picture in group:
                Path(picture.file).parent.mkdir(parents=True, exist_ok=True)
            make(command, group)
            for picture in group:
                save_small(Path(picture.file), out / f"{picture.name}-{theme}.png")
                yield out / f"{picture.name}-{theme}.png"
    os.environ.pop(THEME, None)


def by_command(pictures: Sequence[Picture]) -> list[tuple[str, list[Picture]]]:
    """The pictures of each command, in their order."""
    return [(command, [*group]) for command, group in itertools.groupby(pictures, lambda picture: picture.command)]


def save_small(picture: Path, small: Path) -> None:
    """Saves a PNG in few colours, with its description."""
    texts = PngImagePlugin.PngInfo()
    with Image.open(picture) as image:
        for name in ("Software", "Description"):
            texts.add_itxt(name, image.info[name])
        image.convert("RGB").quantize(COLOURS).save(small, optimize=True, pnginfo=texts)


def structure(picture: Path) -> str:
    """The description in a PNG, without its numbers: titles, labels, and panels."""
    with Image.open(picture) as image:
        return re.sub(r"\d[\d.,]*", "0", image.info["Description"])


def page() -> str:
    """The text of docs/gallery.md."""
    lines = [
        "# Gallery",
        "Every picture that tinylm draws, in both themes and at its real size, with its command. "
        "`--theme dark` or, for `fit` too, `TINYLM_THEME=dark` chooses the theme; the suffix of `--out` (`plot`) or "
        "`--format` (`analyze`) the format: PNG, SVG or PDF. In a notebook, "
        '`plt.style.use("tinylm.tinylm")` or `["tinylm.tinylm", "tinylm.dark"]` gives your own pictures the style. '
        "The colours are Okabe and Ito's, which readers without full colour vision tell apart.",
        "The runs train `tiny` for 200 or 50 steps: enough for the pictures, too few for good models. "
        "Made by [gallery.py](../scripts/make/gallery.py).",
    ]
    for command, shown in by_command(PICTURES):
        lines.append(f"## {', '.join(picture.name for picture in shown)}")
        lines.append(f"<!-- not run: scripts/make/gallery.py runs it -->\n```sh\ntinylm {command}\n```")
        for picture in shown:
            lines.append(picture.text)
            lines += [f"![{picture.name} in the {theme} theme](gallery/{picture.name}-{theme}.png)" for theme in THEMES]
    lines += [
        "## network, film",
        "`tinylm analyze network` draws a network ([network.svg](network.svg), both themes in one file), and "
        "`tinylm analyze film` writes attention over the checkpoints of a run as a page with a slider "
        "([analysis-pictures.md](analysis-pictures.md)).",
    ]
    return "\n\n".join(lines) + "\n"


def main() -> None:
    """Trains what is missing, draws, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of gallery.md and gallery/")
    parser.add_argument("names", nargs="*", help="pictures to draw (default: all)")
    options = parser.parse_args()
    out = options.out.resolve()
    work = Path(tempfile.mkdtemp())
    if options.runs is not None:
        (work / "runs").symlink_to(options.runs.resolve(), target_is_directory=True)
        options.runs.mkdir(parents=True, exist_ok=True)
    os.chdir(work)
    for name, words in RUNS.items():
        if not Path("runs", name, "model").exists():
            train = [sys.executable, "-m", "tinylm", "fit", "-c", "tiny", "--run.name", name, *words]
            subprocess.run(train, check=True)
    chosen = tuple(picture for picture in PICTURES if not options.names or picture.name in options.names)
    for path in draw_all(out / "gallery", chosen):
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
    (out / "gallery.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
