"""The tables, summaries and pictures of `tinylm analyze`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tinylm.analysis import pictures
from tinylm.analysis.activations import activation_statistics
from tinylm.analysis.attention import attention_maps, entropy, head_scores, induction_scores
from tinylm.analysis.gradients import gradient_statistics
from tinylm.analysis.lens import layer_views, read_layers
from tinylm.analysis.profile import profile
from tinylm.console import table
from tinylm.errors import DataError
from tinylm.evaluation.log_probs import document_ids
from tinylm.evaluation.tokens import LOSS, mean_loss, show_losses, token_losses
from tinylm.model import TransformerLM
from tinylm.model.attention import documents_apart
from tinylm.runs.plots import save_figure
from tinylm.tokenizer import Tokenizer
from tinylm.tokenizer.pieces import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_TOKENS = 10_000  # of a text whose losses are shown


@dataclass(frozen=True)
class Subject:
    """A model and the texts to analyze it on."""

    name: str  # for titles
    model: TransformerLM
    tokenizer: Tokenizer
    texts: list[str]  # documents; pictures of a text show the first
    length: int  # tokens per sequence
    rows: int  # most sequences to compute statistics from
    shown: int  # tokens in pictures of a text
    out: Path  # folder of the pictures
    formats: Sequence[str] = ("png", "svg")  # of the pictures
    color: bool = False  # of printed text

    def sequences(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Token ids, the token after each, and document numbers where documents are kept apart: (N, T) each."""
        ids = text_rows(self.tokenizer, self.texts, self.length, self.rows).to(self.model.embedding.weight.device)
        return ids[:, :-1], ids[:, 1:], self._documents(ids[:, :-1])

    def beginning(self) -> tuple[Tensor, Tensor | None]:
        """Token ids of the text in pictures, and document numbers: (1, T) each."""
        T = min(self.shown, self.length)
        ids = text_rows(self.tokenizer, self.texts, T, 1)[:, :T].to(self.model.embedding.weight.device)
        return ids, self._documents(ids)

    def _documents(self, ids: Tensor) -> Tensor | None:
        return documents_apart(self.model.config, ids, self.tokenizer.end_of_text)

    @property
    def words(self) -> list[str]:
        """Every token of the vocabulary, with visible spaces."""
        return [visible(piece).replace(" ", "·") for piece in self.tokenizer.token_bytes]

    def save(self, name: str, figure: "Figure") -> list[Path]:
        """Writes a figure in every format."""
        paths = [self.out / f"{name}.{suffix}" for suffix in self.formats]
        for path in paths:
            save_figure(figure, path)
        return paths


def text_rows(tokenizer: Tokenizer, texts: Iterable[str], length: int, most: int) -> Tensor:
    """Cuts texts into sequences of equal length.

    Each text begins a new sequence, with the end-of-text token before it. If a text ends within a sequence, the
    sequence is filled up from the next text. The token ids, (N <= most, length + 1), are inputs and, shifted by one,
    targets; if the texts fill no sequence, the result is one shorter row.
    """
    rows = cut_rows((document_ids(tokenizer, text).tolist() for text in texts), length, most)
    if len(rows[0]) < 2:
        raise DataError("the text has no token to predict; give a longer one")
    return torch.tensor(rows)


def cut_rows(documents: Iterable[Sequence[Any]], length: int, most: int) -> list[list[Any]]:
    """Documents in rows of `length + 1` values, cut as in `text_rows`; one shorter row if none is full."""
    values: list[Any] = []
    begins: list[int] = []
    for document in documents:
        begins += range(len(values), len(values) + len(document), length)
        values += document
        if len(begins) >= most and len(values) > begins[most - 1] + length:
            break
    whole = [values[begin : begin + length + 1] for begin in begins[:most] if begin + length < len(values)]
    return whole or [values]


@dataclass(frozen=True)
class Report:
    """The result of one analysis: a text to print, its summary, and the files written."""

    text: str
    summary: str
    files: Sequence[Path] = ()


def report_profile(subject: Subject) -> Report:
    """Parameters, operations and memory."""
    found = profile(subject.model, subject.length)
    lines = [["", "parameters", "share", "forward", "backward", "share", "prefill", "decode"]]
    T = found.length
    for name, parts in [*((part.name, (part,)) for part in found.parts), ("all", found.parts)]:
        parameters, forward = sum(part.parameters for part in parts), sum(part.flops(1, T) for part in parts)
        row = [name, f"{parameters:,}", f"{parameters / found.parameters:.1%}"]
        row += [f"{forward:,}", f"{2 * forward:,}", f"{forward / found.forward:.1%}"]
        intensity = [f"{found.prefill_intensity(parts):.2f}", f"{found.decode_intensity(parts):.2f}"]
        lines.append([*row, *(intensity if forward else ["-", "-"])])
    memory = (
        f"weights {found.weight_bytes / 1e6:,.2f} MB; KV cache {found.cache_bytes_per_token:,} bytes per token, "
        f"{found.cache_bytes / 1e6:,.2f} MB at full context; activations kept for the backward pass "
        f"{found.activation_bytes / 1e6:,.2f} MB per sequence of {T:,} tokens"
    )
    notes = (
        f"forward, backward: FLOPs per token in sequences of {T:,}; "
        "prefill, decode: FLOPs per byte when reading a sequence at once, or one more token"
    )
    whole = f"{found.parameters:,} parameters, {found.forward:,} FLOPs per token forward, {found.backward:,} backward"
    return Report(f"{table(lines)}\n{notes}\n{memory}", f"{whole}\n{memory}")


def report_attention(subject: Subject) -> Report:
    """Attention maps, entropy, previous-token and induction scores of every head."""
    ids, _, documents = subject.sequences()
    found, induction = head_scores(subject.model, ids, documents), induction_scores(subject.model)
    tables = {"entropy (nats)": found.entropy, "previous token": found.previous, "induction": induction}
    layers, heads = map(range, induction.shape)
    rows = [
        [f"{layer}.{head}", *(f"{scores[layer, head]:.3f}" for scores in tables.values())]
        for layer, head in product(layers, heads)
    ]
    shown, documents = subject.beginning()
    maps = attention_maps(subject.model, shown, documents)[:, 0]
    means = entropy(maps).mean(dim=-1)  # of the text in the picture, (layers, H)
    notes = [[f"head {layer}.{head}, entropy {means[layer, head]:.2f}" for head in heads] for layer in layers]
    words = subject.words
    labels = [words[token] for token in shown[0].tolist()]
    most = (maps > 0).sum(dim=-1).double().log().mean()
    title = (
        f"{subject.name}: attention (hatched: keys to come)\n"
        f"entropy of a query's weights in nats, mean over these tokens; of equal weights: {most:.2f}"
    )
    figure = pictures.draw_attention(maps, labels, notes, title)
    files = subject.save("attention", figure)
    files += subject.save("heads", pictures.draw_heads(tables, f"{subject.name}: heads"))
    least, most = (f"{value:.2f}" for value in found.uniform.aminmax())
    even = least if least == most else f"{least} to {most}"  # layers with and without a window
    summary = (
        f"entropy {found.entropy.min():.2f} to {found.entropy.max():.2f} nats "
        f"(uniform attention: {even} nats); strongest previous-token head {strongest(found.previous)}, "
        f"strongest induction head {strongest(induction)}"
    )
    return Report(f"{table([['head', *tables], *rows])}\n{summary}", summary, files)


def strongest(scores: Tensor) -> str:
    """Layer, head and score of the highest score, such as `1.3 (0.87)`; `unknown` if all are NaN."""
    if scores.isnan().all():
        return "unknown"
    scores = scores.nan_to_num()
    layer, head = divmod(int(scores.argmax()), scores.shape[1])
    return f"{layer}.{head} ({scores.max():.2f})"


def report_activations(subject: Subject) -> Report:
    """Mean, standard deviation, outliers and dead units by layer."""
    ids, _, documents = subject.sequences()
    found = activation_statistics(subject.model, ids, documents)
    lines = [["layer", "place", "mean", "std", "largest", "outliers", "dead"]]
    for each in found:
        size = [f"{each.mean:.4f}", f"{each.std:.4f}", f"{each.largest:.1f}"]
        layer = "" if each.layer < 0 else str(each.layer)
        lines.append([layer, each.place, *size, f"{each.outliers:.3%}", f"{each.dead:.1%}"])
    dead = [each.dead for each in found if each.place == "units"]
    widest = max(found, key=lambda each: each.largest)
    place = widest.place if widest.layer < 0 else f"layer {widest.layer}, {widest.place}"
    summary = (
        f"standard deviation of the residual stream {found[0].std:.3g} after the embedding, {found[-1].std:.3g} after "
        f"the last block; dead units {sum(dead) / len(dead):.1%}; largest value {widest.largest:.0f} standard "
        f"deviations from the mean ({place})"
    )
    files = subject.save("activations", pictures.draw_activations(found, f"{subject.name}: activations"))
    return Report(f"{table(lines, left=2)}\n{summary}", summary, files)


def report_gradients(subject: Subject) -> Report:
    """Gradient norms, signal-to-noise ratio and histograms by part."""
    ids, targets, documents = subject.sequences()
    found = gradient_statistics(subject.model, ids, targets, documents)
    lines = [["part", "weights", "norm", "signal/noise", "noise scale", "zeros"]]
    for each in found:
        figures = [f"{each.norm:.4g}", f"{each.signal_to_noise:.4f}", f"{each.noise_scale:.1f}"]
        lines.append([each.part, f"{each.weights:,}", *figures, f"{each.zeros / each.weights:.1%}"])
    norm = sum(each.norm**2 for each in found) ** 0.5
    signal, noise = sum(each.signal for each in found), sum(each.noise for each in found)
    scale = f"{noise / signal:.0f} sequences" if signal > 0 else "too large to estimate from these"
    summary = f"gradient norm {norm:.4g} over {len(ids)} sequences; gradient noise scale: {scale}"
    files = subject.save("gradients", pictures.draw_gradients(found, f"{subject.name}: gradients"))
    return Report(f"{table(lines)}\n{summary}", summary, files)


def report_lens(subject: Subject) -> Report:
    """The prediction after each layer."""
    views = layer_views(subject.model, *subject.sequences())
    lines = [["after", "loss", "agreement", "divergence"]]
    for view in views:
        name = "embedding" if view.layer < 0 else f"layer {view.layer}"
        lines.append([name, f"{view.loss:.4f}", f"{view.agreement:.1%}", f"{view.divergence:.4f}"])
    ids, documents = subject.beginning()
    title = f"{subject.name}: prediction after each layer"
    readings = read_layers(subject.model, ids, documents)
    text = text_rows(subject.tokenizer, subject.texts, ids.shape[1], 1)[0].tolist()  # with the token after the last
    files = subject.save("lens", pictures.draw_lens(readings, text, subject.words, title))
    losses = ", ".join(f"{view.loss:.2f}" for view in views)
    return Report(table(lines), f"loss after the embedding and each layer: {losses}", files)


def report_tokens(subject: Subject) -> Report:
    """The loss of each token of a text."""
    losses = token_losses(subject.model, subject.tokenizer, subject.texts[0], MOST_TOKENS)
    summary = f"{len(losses):,} tokens, loss {mean_loss(losses):.4f} nats per token"
    shown = show_losses(losses, subject.tokenizer, subject.color)
    return Report(f"{LOSS.legend(subject.color)}\n{shown}\n{summary}", summary)


REPORTS: dict[str, Callable[[Subject], Report]] = {
    "profile": report_profile,
    "attention": report_attention,
    "activations": report_activations,
    "gradients": report_gradients,
    "lens": report_lens,
    "tokens": report_tokens,
}
