"""What is found inside a model, as tables, lines and pictures: what `tinylm analyze` prints and writes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from tinylm.analysis.activations import activation_statistics
from tinylm.analysis.attention import attention_maps, entropy, head_scores, induction_scores
from tinylm.analysis.gradients import gradient_statistics
from tinylm.analysis.lens import layer_views, read_layers
from tinylm.analysis.pictures import (
    draw_activations,
    draw_attention,
    draw_gradients,
    draw_heads,
    draw_lens,
)
from tinylm.analysis.profile import profile
from tinylm.console import table
from tinylm.evaluation.tokens import html_page, legend, mean_loss, show_losses, text_rows, token_losses
from tinylm.files import write_text
from tinylm.model import TransformerLM
from tinylm.model.attention import documents_apart
from tinylm.runs.plots import save_figure
from tinylm.tokenizer import Tokenizer
from tinylm.tokenizer.pieces import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SURPRISES = 10_000
"""Tokens of a text whose loss is shown, at most."""


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
        color: whether what is printed may be coloured
    """

    name: str
    model: TransformerLM
    tokenizer: Tokenizer
    texts: list[str]
    length: int
    rows: int
    drawn: int
    out: Path
    color: bool = False

    def sequences(self) -> tuple[Tensor, Tensor]:
        """Token ids and what follows them, (N, T) each."""
        ids = text_rows(self.tokenizer, self.texts, self.length, self.rows).to(self.model.embedding.weight.device)
        return ids[:, :-1], ids[:, 1:]

    def beginning(self) -> Tensor:
        """The tokens that pictures show, (1, T)."""
        drawn = min(self.drawn, self.length)
        return text_rows(self.tokenizer, self.texts, drawn, 1)[:, :drawn].to(self.model.embedding.weight.device)

    def documents(self, ids: Tensor) -> Tensor | None:
        """The number of the document that each token is in, for a network that keeps documents apart."""
        return documents_apart(self.model.config, ids, self.tokenizer.end_of_text)

    @property
    def words(self) -> list[str]:
        """Every token of the vocabulary, spaces made visible."""
        return [visible(piece).replace(" ", "·") for piece in self.tokenizer.token_bytes]

    def save(self, name: str, figure: "Figure") -> list[Path]:
        """Writes a picture, to be looked at and to be printed."""
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


# --- the subcommands


def report_profile(subject: Subject) -> Found:
    """Parameters, operations and memory."""
    found = profile(subject.model, subject.length)
    lines = [["", "parameters", "share", "forward", "backward", "share", "prefill", "decode"]]
    for part in (*found.parts, None):
        parts = None if part is None else (part,)
        name, parameters = ("all", found.parameters) if part is None else (part.name, part.parameters)
        forward = found.forward if part is None else part.flops(1, found.length)
        intensity = [f"{found.prefill_intensity(parts):.2f}", f"{found.decode_intensity(parts):.2f}"]
        counts = [f"{parameters:,}", f"{parameters / found.parameters:.1%}"]
        counts += [f"{forward:,}", f"{2 * forward:,}", f"{forward / found.forward:.1%}"]
        lines.append([name, *counts, *(intensity if forward else ["-", "-"])])
    T = found.length
    memory = (
        f"weights {found.weight_bytes / 1e6:,.2f} MB; KV cache {found.cache_bytes_per_token:,} bytes per token, "
        f"{found.cache_bytes / 1e6:,.2f} MB in full; kept in training for the backward pass "
        f"{found.activation_bytes / 1e6:,.2f} MB per sequence of {T:,} tokens"
    )
    notes = (
        f"forward, backward: FLOPs per token of {T:,}; "
        "prefill, decode: FLOPs per byte, all tokens at once or one after them"
    )
    whole = f"{found.parameters:,} parameters, {found.forward:,} FLOPs per token forward, {found.backward:,} backward"
    return Found(f"{table(lines)}\n{notes}\n{memory}", f"{whole}\n{memory}")


def report_attention(subject: Subject) -> Found:
    """Maps of every head, entropy, previous-token and induction scores."""
    ids, _ = subject.sequences()
    found, induction = head_scores(subject.model, ids, subject.documents(ids)), induction_scores(subject.model)
    tables = {"entropy (nats)": found.entropy, "previous token": found.previous, "induction": induction}
    layers, heads = induction.shape
    places = [(layer, head) for layer in range(layers) for head in range(heads)]
    rows = [
        [f"{layer}.{head}", *(f"{values[layer, head]:.3f}" for values in tables.values())] for layer, head in places
    ]
    drawn = subject.beginning()
    labels = [subject.words[token] for token in drawn[0].tolist()]
    maps = attention_maps(subject.model, drawn, subject.documents(drawn))[:, 0]
    mean = entropy(maps).mean(dim=-1)  # of what is drawn, (layers, H)
    notes = [[f"head {layer}.{head}: {mean[layer, head]:.2f} nats" for head in range(heads)] for layer in range(layers)]
    figure = draw_attention(maps, labels, notes, f"{subject.name}: attention")
    files = subject.save("attention", figure) + subject.save("heads", draw_heads(tables, f"{subject.name}: heads"))
    summary = (
        f"entropy {found.entropy.min():.2f} to {found.entropy.max():.2f} nats (looking everywhere alike: "
        f"{found.uniform:.2f}); strongest heads: previous-token {strongest(found.previous)}, "
        f"induction {strongest(induction)}"
    )
    return Found(f"{table([['head', *tables], *rows])}\n{summary}", summary, files)


def strongest(scores: Tensor) -> str:
    """`1.3 (0.87)`: layer, head and score of the greatest; `unknown` where no head has one."""
    if scores.isnan().all():
        return "unknown"
    scores = scores.nan_to_num()
    layer, head = divmod(int(scores.argmax()), scores.shape[1])
    return f"{layer}.{head} ({scores.max():.2f})"


def report_activations(subject: Subject) -> Found:
    """Mean, standard deviation, outliers and dead units by layer."""
    ids, _ = subject.sequences()
    found = activation_statistics(subject.model, ids, subject.documents(ids))
    lines = [["layer", "place", "mean", "std", "largest", "outliers", "dead"]]
    for each in found:
        layer = "" if each.layer < 0 else str(each.layer)
        size = [f"{each.mean:.4f}", f"{each.std:.4f}", f"{each.largest:.1f}"]
        lines.append([layer, each.place, *size, f"{each.outliers:.3%}", f"{each.dead:.1%}"])
    units = [each for each in found if each.place == "units"]
    widest = max(found, key=lambda each: each.largest)
    where = widest.place if widest.layer < 0 else f"layer {widest.layer}, {widest.place}"
    summary = (
        f"standard deviation of the stream {found[0].std:.3g} after the embedding, {found[-1].std:.3g} after the last "
        f"block; dead units {sum(each.dead for each in units) / len(units):.1%}; largest value {widest.largest:.0f} "
        f"standard deviations out ({where})"
    )
    files = subject.save("activations", draw_activations(found, f"{subject.name}: activations"))
    return Found(f"{table(lines, left=2)}\n{summary}", summary, files)


def report_gradients(subject: Subject) -> Found:
    """Norms, signal and noise, histograms by layer."""
    ids, targets = subject.sequences()
    found = gradient_statistics(subject.model, ids, targets, subject.documents(ids))
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


def report_lens(subject: Subject) -> Found:
    """What each layer would say."""
    ids, targets = subject.sequences()
    views = layer_views(subject.model, ids, targets, subject.documents(ids))
    lines = [["after", "loss", "agreement", "divergence"]]
    for view in views:
        name = "embedding" if view.layer < 0 else f"layer {view.layer}"
        lines.append([name, f"{view.loss:.4f}", f"{view.agreement:.1%}", f"{view.divergence:.4f}"])
    drawn = subject.beginning()
    title = f"{subject.name}: what each layer would say"
    readings = read_layers(subject.model, drawn, subject.documents(drawn))
    figure = draw_lens(readings, drawn[0].tolist(), subject.words, title)
    losses = ", ".join(f"{view.loss:.2f}" for view in views)
    return Found(table(lines), f"loss after the embedding and each layer: {losses}", subject.save("lens", figure))


def report_tokens(subject: Subject) -> Found:
    """The loss of each token of a text."""
    losses = token_losses(subject.model, subject.tokenizer, subject.texts[0], SURPRISES)
    page = subject.out / "tokens.html"
    write_text(page, html_page(losses, subject.tokenizer, f"{subject.name}: loss of each token"))
    summary = f"{len(losses):,} tokens, loss {mean_loss(losses):.4f} nats per token"
    shown = show_losses(losses, subject.tokenizer, subject.color)
    return Found(f"{legend(subject.color)}\n{shown}\n{summary}", summary, [page])


REPORTS: dict[str, Callable[[Subject], Found]] = {
    "profile": report_profile,
    "attention": report_attention,
    "activations": report_activations,
    "gradients": report_gradients,
    "lens": report_lens,
    "tokens": report_tokens,
}
