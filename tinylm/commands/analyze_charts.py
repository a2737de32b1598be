"""The tables, summaries and pictures of embeddings, weights, loss by position and choices."""

from collections import Counter
from collections.abc import Callable

import torch

from tinylm.analysis import charts
from tinylm.analysis.choices import choices, surprises, token_truths
from tinylm.analysis.embeddings import embedding_map
from tinylm.analysis.positions import PositionLoss, position_losses, ranges, summary
from tinylm.analysis.weights import matrices
from tinylm.commands.analyze_report import Report, Subject, cut_rows
from tinylm.console import table
from tinylm.data.grammar.stories import log_prob, story_grammar
from tinylm.errors import ConfigError, DataError

COMMON = 120  # number of most frequent tokens that are mapped


def report_embeddings(subject: Subject) -> Report:
    """The most frequent tokens in two dimensions, with their nearest neighbours."""
    encode = subject.tokenizer.encode
    counts = Counter(token for text in subject.texts for token in encode(text))
    ids = torch.tensor([token for token, _ in counts.most_common(COMMON)])
    found = embedding_map(subject.model.embedding.weight, ids)
    words = subject.words
    rows = [["token", "nearest, with the cosine"]]
    for token, near, cosines in zip(ids.tolist(), found.neighbours.tolist(), found.cosines.tolist(), strict=True):
        each = (f"{words[other]} {cosine:.2f}" for other, cosine in zip(near, cosines, strict=True))
        rows.append([words[token], "  ".join(each)])
    labels = [words[token] for token in ids.tolist()]
    files = subject.save("embeddings", charts.draw_embeddings(found, labels, f"{subject.name}: embeddings"))
    first, second = found.shares.tolist()
    line = f"the {len(ids)} most frequent tokens; two dimensions show {first + second:.0%} of their variance"
    return Report(f"{table(rows, left=2)}\n{line}", line, files)


def report_weights(subject: Subject) -> Report:
    """Standard deviation, largest value and stable rank of every matrix."""
    found = matrices(subject.model)
    rows = [["matrix", "layer", "shape", "std", "largest", "largest singular", "stable rank"]]
    for each in found:
        layer, shape = "" if each.layer < 0 else str(each.layer), f"{each.shape[0]:,} x {each.shape[1]:,}"
        sizes = [f"{each.std:.4f}", f"{each.largest:.3f}", f"{each.singular[0]:.3f}", f"{each.stable_rank:.1f}"]
        rows.append([each.kind, layer, shape, *sizes])
    files = subject.save("weights", charts.draw_weights(found, f"{subject.name}: weights"))
    least = min(found, key=lambda each: each.stable_rank / min(each.shape))
    place = least.kind if least.layer < 0 else f"layer {least.layer}, {least.kind}"
    line = f"lowest stable rank for its size: {least.stable_rank:.1f} of {min(least.shape)} ({place})"
    return Report(f"{table(rows)}\n{line}", line, files)


def report_positions(subject: Subject) -> Report:
    """The loss by position, beside the best possible one for built-in stories."""
    ids, targets, documents = subject.sequences()
    found, truth = position_losses(subject.model, ids, targets, documents), best_by_position(subject)
    rows = [["position", "loss", *(["best possible"] if truth else [])]]
    for first, last in ranges(len(found.mean)):
        part = slice(first, last + 1)
        name = str(first) if first == last else f"{first} to {last}"
        rows.append([name, *(f"{each.mean[part].mean():.4f}" for each in (found, truth) if each)])
    files = subject.save("positions", charts.draw_positions(found, truth, f"{subject.name}: loss by position"))
    half = len(found.mean) // 2
    line = f"loss {found.mean.mean():.4f}; in the second half of the context {found.mean[half:].mean():.4f}"
    return Report(f"{table(rows)}\n{line}", line, files)


def best_by_position(subject: Subject) -> PositionLoss | None:
    """The best possible loss by position; None unless all texts are built-in stories."""
    tokenizer, grammar = subject.tokenizer, story_grammar()
    if not all(log_prob(text) > -torch.inf for text in subject.texts):
        return None
    try:  # the end of a story is certain; nothing predicts the token that begins a text without a separator
        documents = [
            [*[0.0] * len(tokenizer.opening), *token_truths(grammar, tokenizer, text).tolist()]
            for text in subject.texts
        ]
    except DataError:
        return None
    return summary(torch.tensor(cut_rows(documents, subject.length, subject.rows), dtype=torch.float64)[:, 1:])


def report_choices(subject: Subject) -> Report:
    """The surprise at each choice of a story, beside its true probability."""
    text, words = subject.texts[0], subject.words
    if log_prob(text) == -torch.inf:
        raise ConfigError(
            "choices: the true probabilities of this text are unknown; give a story of the built-in corpus, or leave "
            "--text out for a run on stories"
        )
    found = surprises(subject.model, subject.tokenizer, story_grammar(), text)
    places = choices(found)
    rows = [["token", "model", "truth", "excess"]]
    for place in places:
        each = found[place]
        nats = (each.model, each.truth, each.model - each.truth)
        rows.append([words[each.id], f"{nats[0]:.3f}", f"{nats[1]:.3f}", f"{nats[2]:+.3f}"])
    model, truth = (sum(getattr(each, name) for each in found) for name in ("model", "truth"))
    worst = max(found, key=lambda each: each.model - each.truth)
    line = (
        f"{len(found)} tokens: {model:.2f} nats, {truth:.2f} at best, {model / truth - 1:+.1%}; "
        f"largest excess {worst.model - worst.truth:.2f} at {words[worst.id]}"
    )
    figure = charts.draw_choices(found, places, words, f"{subject.name}: surprise at each choice")
    return Report(f"{table(rows)}\n{line}", line, subject.save("choices", figure))


CHARTS: dict[str, Callable[[Subject], Report]] = {
    "embeddings": report_embeddings,
    "weights": report_weights,
    "positions": report_positions,
    "choices": report_choices,
}
