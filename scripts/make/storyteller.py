"""Makes the storyteller that comes with tinylm: `small` as README trains it, in 8 bits, in tinylm/storyteller/.

    python scripts/make/storyteller.py [--run runs/small]

Without --run the model is trained first. The model card has the losses of both models on the held-out stories; no
decision of the training depends on the test stories.
"""

import argparse
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinylm.adapt import quantize
from tinylm.bundle import load_bundle, save_bundle
from tinylm.data.corpora import open_corpus
from tinylm.data.grammar.stories import log_prob
from tinylm.evaluation.log_probs import document_ids, token_log_probs
from tinylm.files import default_cache_dir
from tinylm.locate import STORYTELLER
from tinylm.model import TransformerLM
from tinylm.runs.compare import read_run
from tinylm.runs.lineage import read_config
from tinylm.tokenizer import Tokenizer

TRAIN = ["fit", "--config", "small.yaml"]
CARD = """---
license: mit
language: en
pipeline_tag: text-generation
tags:
- tinylm
---

# The storyteller

A language model with {parameters:,} parameters that writes short English children's stories. It comes with tinylm, so
that `tinylm generate` and `tinylm play` have something to say before anything has been trained:

```sh
tinylm generate --prompt "Once upon a time"
```

In Python it is `tinylm.load("storyteller")`, and commands take `--model storyteller`.

## Training

`tinylm {train}`, as in README, then 8 bits per weight (`tinylm.adapt.quantize`).
`scripts/make/storyteller.py` in the repository does both and writes this card; `config.yaml` is the config of the run.

| | |
|---|---|
| architecture | {layers} layers, width {width}, {heads} heads, context {context}; RMSNorm, SwiGLU, RoPE, QK-norm |
| data | 8,000 stories that the grammar of the built-in corpus generates, 96% of them for training; no other text |
| vocabulary | {vocabulary:,} tokens of byte pair encoding, learned from the training stories |
| steps | {steps:,}; the best by validation loss was step {best:,} |
| tokens read | {tokens:,} |
| training time | {seconds:,.0f} s on two CPU cores, shared with other work; a quiet machine takes four minutes |
| size | {megabytes:.2f} MB: 8-bit codes and a scale per row for linear layers, float32 for embedding and norms |

## Evaluation

Loss in nats per token on stories that the model was not trained on. Each story is read from its beginning, and the
end-of-text token after it counts. The floor is the loss of the grammar itself; a model falls below it only by chance.

| | stories | tokens | float32 | 8 bits | floor | above the floor |
|---|---|---|---|---|---|---|
{losses}

## Intended use and limits

The model is for trying tinylm, for demonstrations and for tests. It knows some 560 words and the twelve kinds of plot
of its grammar, and has seen no other text. It answers no questions, follows no instructions and knows no facts. Other
prompts lead back to its stories, or to nonsense, and a story may contradict itself.

The weights have tinylm's license, MIT.
"""


class Part(NamedTuple):
    """A split of the stories, and the nats by which it is measured."""

    name: str
    stories: int
    tokens: int
    nats: list[float]  # of the original model, the quantized one and the grammar

    def row(self) -> str:
        """A row of the card's table."""
        losses = [total / self.tokens for total in self.nats]
        excess = losses[1] / losses[2] - 1
        figures = " | ".join(f"{loss:.4f}" for loss in losses)
        return f"| {self.name} | {self.stories:,} | {self.tokens:,} | {figures} | {excess:.1%} |"


def measure(name: str, stories: list[str], models: list[TransformerLM], tokenizer: Tokenizer) -> Part:
    """The loss of each model and of the grammar on a split of the stories."""
    end = tokenizer.end_of_text
    rows = [np.append(document_ids(tokenizer, story), end) for story in stories]
    found = [token_log_probs(model, rows, separator=end) for model in models]
    nats = [-math.fsum(float(each.log_probs.sum()) for each in predictions) for predictions in found]
    floor = -math.fsum(map(log_prob, stories))
    return Part(name, len(stories), sum(len(row) - 1 for row in rows), [*nats, floor])


def make(run: Path) -> None:
    """Writes the model folder, the run's config and the card."""
    bundle, row, data = load_bundle(run), read_run(run), read_config(run)["data"]
    quantized = quantize(bundle.model, bits=8)
    corpus = open_corpus(
        data["corpus"], split=tuple(data["split"]), seed=data["text_seed"], cache_dir=default_cache_dir()
    )
    parts = [
        measure(name, ["".join(story) for story in corpus.documents(part)], [bundle.model, quantized], bundle.tokenizer)
        for name, part in (("validation", "val"), ("test", "test"))
    ]
    shutil.rmtree(STORYTELLER, ignore_errors=True)
    save_bundle(STORYTELLER, quantized, bundle.tokenizer, {**bundle.info, "run": STORYTELLER.name})
    shutil.copy(run / "config.yaml", STORYTELLER)
    config = bundle.model.config
    card = CARD.format(
        parameters=bundle.model.num_parameters(), train=" ".join(TRAIN), layers=config.num_layers, width=config.d_model,
        heads=config.num_heads, context=config.max_seq_len, vocabulary=bundle.tokenizer.vocab_size,
        steps=int(row.steps), best=bundle.info["step"], tokens=int(row.tokens), seconds=row.seconds,
        megabytes=sum(path.stat().st_size for path in STORYTELLER.iterdir()) / 1e6,
        losses="\n".join(part.row() for part in parts),
    )  # fmt: skip
    (STORYTELLER / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    """Trains if no run is given, and writes the storyteller."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run of README's command (default: train one)")
    run = parser.parse_args().run
    with tempfile.TemporaryDirectory() as folder:
        if run is None:
            run = Path(folder) / "small"
            subprocess.run([sys.executable, "-m", "tinylm", *TRAIN, "--run.dir", folder], check=True)
        make(run)


if __name__ == "__main__":
    main()
