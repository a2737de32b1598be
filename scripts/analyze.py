"""Looks inside a model.

python scripts/analyze.py --model runs/small                          # all of it into a folder, and a summary
python scripts/analyze.py profile --model runs/small                  # parameters, operations, memory
python scripts/analyze.py attention --model runs/small --text my.txt  # where every head looks
python scripts/analyze.py activations|gradients|lens|tokens ...

Without a text it is validation stories where the model was trained on the built-in ones.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm.console import Parser, exit_code, pick_device, run_as_script
from tinylm.errors import ConfigError, did_you_mean
from tinylm.files import read_chunks, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from tinylm.model import TransformerLM
    from tinylm.tokenizer import Tokenizer

STORIES = 50


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    Attributes:
        name: of the model
        texts: documents, the first of which is drawn
        length: tokens of a sequence
        rows: sequences to take figures from
        drawn: tokens in pictures of a text
        out: where pictures go
    """

    name: str
    model: "TransformerLM"
    tokenizer: "Tokenizer"
    texts: list[str]
    length: int
    rows: int
    drawn: int
    out: Path

    def sequences(self) -> "tuple[Tensor, Tensor]":
        """Token ids and what follows them, (N, T) each."""
        from tinylm.analysis.tokens import text_rows

        ids = text_rows(self.tokenizer, self.texts, self.length, self.rows).to(self.model.embedding.weight.device)
        return ids[:, :-1], ids[:, 1:]

    def beginning(self) -> "Tensor":
        """The tokens that pictures show, (1, T)."""
        from tinylm.analysis.tokens import text_rows

        drawn = min(self.drawn, self.length)
        return text_rows(self.tokenizer, self.texts, drawn, 1)[:, :drawn].to(self.model.embedding.weight.device)

    @property
    def words(self) -> list[str]:
        """Every token of the vocabulary, spaces made visible."""
        from tinylm.tokenizer.pieces import visible

        return [visible(piece).replace(" ", "·") for piece in self.tokenizer.token_bytes]

    def save(self, name: str, figure: "Figure") -> list[Path]:
        """Writes a picture, to be looked at and to be printed."""
        from tinylm.analysis.pictures import save_figure

        paths = [self.out / f"{name}.png", self.out / f"{name}.svg"]
        for path in paths:
            save_figure(figure, path)
        return paths


@dataclass(frozen=True)
class Found:
    """What was found: a text to be printed, the same in a line, and files."""

    text: str
    summary: str
    files: Sequence[Path] = ()


def table(lines: Iterable[Sequence[str]], left: int = 1) -> str:
    """Columns, the first ones to the left, the others to the right."""
    lines = list(lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        texts = [cell.ljust(width) for cell, width in zip(cells[:left], widths[:left], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(cells[left:], widths[left:], strict=True)]
        return "  ".join([*texts, *numbers]).rstrip()

    return "\n".join(map(line, lines))


# --- the subcommands


def profile(subject: Subject) -> Found:
    """Parameters, operations and memory."""
    from tinylm.analysis.profile import profile

    found = profile(subject.model, subject.length)
    lines = [["", "parameters", "share", "forward", "backward", "share", "reading", "decoding"]]
    for part in (*found.parts, None):
        parts = None if part is None else (part,)
        name, parameters = ("all", found.parameters) if part is None else (part.name, part.parameters)
        forward = found.forward if part is None else part.flops(1, found.length)
        intensity = [f"{found.reading_intensity(parts):.2f}", f"{found.decoding_intensity(parts):.2f}"]
        lines.append(
            [
                name,
                f"{parameters:,}",
                f"{parameters / found.parameters:.1%}",
                f"{forward:,}",
                f"{2 * forward:,}",
                f"{forward / found.forward:.1%}",
                *(intensity if forward else ["-", "-"]),
            ]
        )
    T = found.length
    memory = (
        f"weights {found.weight_bytes / 1e6:,.2f} MB; KV cache {found.cache_bytes_per_token:,} bytes per token, "
        f"{found.cache_bytes / 1e6:,.2f} MB in full; kept in training for the backward pass "
        f"{found.activation_bytes / 1e6:,.2f} MB per sequence of {T:,} tokens"
    )
    notes = (
        f"forward, backward: FLOPs per token of {T:,}; reading, decoding: FLOPs per byte, all of them or the last one"
    )
    whole = f"{found.parameters:,} parameters, {found.forward:,} FLOPs per token forward, {found.backward:,} backward"
    return Found(f"{table(lines)}\n{notes}\n{memory}", f"{whole}\n{memory}")


def attention(subject: Subject) -> Found:
    """Maps of every head, entropy, previous-token and induction scores."""
    from tinylm.analysis.attention import attention_maps, head_scores, induction_scores
    from tinylm.analysis.pictures import draw_attention, draw_heads

    ids, _ = subject.sequences()
    found, induction = head_scores(subject.model, ids), induction_scores(subject.model)
    tables = {"entropy (nats)": found.entropy, "previous token": found.previous, "induction": induction}
    layers, heads = induction.shape
    places = [(layer, head) for layer in range(layers) for head in range(heads)]
    rows = [
        [f"{layer}.{head}", *(f"{values[layer, head]:.3f}" for values in tables.values())] for layer, head in places
    ]
    drawn = subject.beginning()
    labels = [subject.words[token] for token in drawn[0].tolist()]
    notes = [
        [f"head {layer}.{head}, mean entropy {found.entropy[layer, head]:.2f}" for head in range(heads)]
        for layer in range(layers)
    ]
    maps = draw_attention(attention_maps(subject.model, drawn)[:, 0], labels, notes, f"{subject.name}: attention")
    files = subject.save("attention", maps) + subject.save("heads", draw_heads(tables, f"{subject.name}: heads"))
    best = [
        f"{name} {divmod(int(scores.nan_to_num().argmax()), heads)[0]}.{int(scores.nan_to_num().argmax()) % heads} "
        f"({scores.nan_to_num().max():.2f})"
        for name, scores in (("previous-token", found.previous), ("induction", induction))
    ]
    summary = (
        f"entropy {found.entropy.min():.2f} to {found.entropy.max():.2f} nats (looking everywhere alike: "
        f"{found.uniform:.2f}); strongest heads: {', '.join(best)}"
    )
    return Found(f"{table([['head', *tables], *rows])}\n{summary}", summary, files)


def activations(subject: Subject) -> Found:
    """Mean, spread, outliers and dead units by layer."""
    from tinylm.analysis.activations import activation_statistics
    from tinylm.analysis.pictures import draw_activations

    found = activation_statistics(subject.model, subject.sequences()[0])
    lines = [["layer", "place", "mean", "spread", "largest", "outliers", "dead"]]
    for each in found:
        layer = "" if each.layer < 0 else str(each.layer)
        figures = [
            f"{each.mean:.4f}",
            f"{each.spread:.4f}",
            f"{each.largest:.1f}",
            f"{each.outliers:.3%}",
            f"{each.dead:.1%}",
        ]
        lines.append([layer, each.place, *figures])
    units = [each for each in found if each.place == "units"]
    widest = max(found, key=lambda each: each.largest)
    summary = (
        f"stream's spread {found[0].spread:.3g} after the embedding, {found[-1].spread:.3g} after the last block; "
        f"dead units {sum(each.dead for each in units) / len(units):.1%}; largest value {widest.largest:.0f} standard "
        f"deviations out (layer {widest.layer}, {widest.place})"
    )
    files = subject.save("activations", draw_activations(found, f"{subject.name}: activations"))
    return Found(f"{table(lines, left=2)}\n{summary}", summary, files)


def gradients(subject: Subject) -> Found:
    """Norms, signal and noise, histograms by layer."""
    from tinylm.analysis.gradients import gradient_statistics
    from tinylm.analysis.pictures import draw_gradients

    ids, targets = subject.sequences()
    found = gradient_statistics(subject.model, ids, targets)
    lines = [["part", "weights", "norm", "signal/noise", "noise scale", "zeros"]]
    for each in found:
        figures = [f"{each.norm:.4g}", f"{each.signal_to_noise:.4f}", f"{each.noise_scale:.1f}"]
        lines.append([each.part, f"{each.weights:,}", *figures, f"{each.zeros / each.weights:.1%}"])
    norm = sum(each.norm**2 for each in found) ** 0.5
    signal, noise = sum(each.signal for each in found), sum(each.noise for each in found)
    scale = f"{noise / signal:.1f} sequences" if signal > 0 else "more sequences than these can tell"
    summary = f"norm {norm:.4g} over {len(ids)} sequences; signal and noise are alike in a batch of {scale}"
    files = subject.save("gradients", draw_gradients(found, f"{subject.name}: gradients"))
    return Found(f"{table(lines)}\n{summary}", summary, files)


def lens(subject: Subject) -> Found:
    """What each layer would say."""
    from tinylm.analysis.lens import layer_views, read_layers
    from tinylm.analysis.pictures import draw_lens

    views = layer_views(subject.model, *subject.sequences())
    lines = [["after", "loss", "agreement", "divergence"]]
    for view in views:
        name = "embedding" if view.layer < 0 else f"layer {view.layer}"
        lines.append([name, f"{view.loss:.4f}", f"{view.agreement:.1%}", f"{view.divergence:.4f}"])
    ids = subject.beginning()
    title = f"{subject.name}: what each layer would say"
    figure = draw_lens(read_layers(subject.model, ids), ids[0].tolist(), subject.words, title)
    losses = ", ".join(f"{view.loss:.2f}" for view in views)
    return Found(table(lines), f"loss after the embedding and each layer: {losses}", subject.save("lens", figure))


def tokens(subject: Subject) -> Found:
    """The loss of each token of a text."""
    from tinylm.analysis.tokens import html_page, legend, mean_loss, show_losses, token_losses

    losses = token_losses(subject.model, subject.tokenizer, subject.texts[0])
    page = subject.out / "tokens.html"
    write_text(page, html_page(losses, subject.tokenizer, f"{subject.name}: loss of each token"))
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    summary = f"{len(losses):,} tokens, loss {mean_loss(losses):.4f} nats per token"
    return Found(f"{legend(color)}\n{show_losses(losses, subject.tokenizer, color)}\n{summary}", summary, [page])


COMMANDS: dict[str, Callable[[Subject], Found]] = {
    "profile": profile,
    "attention": attention,
    "activations": activations,
    "gradients": gradients,
    "lens": lens,
    "tokens": tokens,
}


# --- the command line


def make_parser() -> Parser:
    """The options."""
    parser = Parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", nargs="?", help=f"one of {', '.join(COMMANDS)}; without it all of them")
    parser.add_argument("--model", required=True, help="a run folder, model folder or checkpoint")
    parser.add_argument("--text", type=Path, help="a UTF-8 text file, read as one document")
    parser.add_argument("--out", type=Path, default=Path("analysis"), help="folder of the pictures (%(default)s)")
    parser.add_argument("--length", type=int, help="tokens of a sequence (the context)")
    parser.add_argument("--rows", type=int, default=32, help="sequences to take figures from, at most (%(default)s)")
    parser.add_argument("--tokens", type=int, default=24, help="in pictures of a text (%(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps; auto takes the fastest (%(default)s)")
    return parser


def check(options: argparse.Namespace) -> None:
    """Refuses what cannot be meant, before the model is loaded."""
    if options.command is not None and options.command not in COMMANDS:
        hint = did_you_mean(options.command, COMMANDS) or f"; it is one of {', '.join(COMMANDS)}"
        raise ConfigError(f"{options.command}: no such subcommand{hint}")
    for name in ("length", "rows", "tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")


def run(options: argparse.Namespace) -> None:
    """Prints what one subcommand finds; or writes what all of them find, and prints a summary."""
    check(options)
    subject = make_subject(options)
    if options.command is not None:
        found = COMMANDS[options.command](subject)
        print(found.text)
        for path in found.files:
            print(path)
        return
    for name, look in COMMANDS.items():
        found = look(subject)
        write_text(options.out / f"{name}.txt", found.text + "\n")
        print("\n".join(f"{name}: {line}" for line in found.summary.splitlines()))
    print(f"{options.out}: tables (.txt), pictures (.png, .svg), tokens.html")


def make_subject(options: argparse.Namespace) -> Subject:
    """Loads model and text.

    Raises:
        ConfigError: without a text, where none is known and one is needed; and for a length beyond the context.
    """
    texts = [] if options.text is None else ["".join(read_chunks(options.text))]

    import tinylm
    from tinylm.data.held_out import held_out_stories

    model, tokenizer = tinylm.load(options.model, device=pick_device(options.device))
    context = model.config.max_seq_len
    if options.length is not None and options.length > context:
        raise ConfigError(f"--length must be at most the context, {context}, got {options.length}")
    if options.command != "profile" and not texts:
        texts = held_out_stories(Path(options.model), STORIES)
        if not texts:
            raise ConfigError("--text: missing; give a UTF-8 text file (profile alone needs none)")
    return Subject(
        name=Path(options.model).resolve().name,
        model=model,
        tokenizer=tokenizer,
        texts=texts,
        length=options.length or context,
        rows=options.rows,
        drawn=options.tokens,
        out=options.out,
    )


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    return exit_code(lambda words: run(make_parser().parse(words)), arguments)


if __name__ == "__main__":
    run_as_script(main)
