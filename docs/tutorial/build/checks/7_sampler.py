"""Properties of a sampler."""

import torch

from tinylm.generation import SamplingConfig, sampling


def properties(mine):
    """Yields (sentence, expected, how to find it, hint)."""
    inf = float("inf")
    chapter = torch.tensor([3.0, 2.0, 1.0, 0.0, -1.0])  # probabilities 0.636, 0.234, 0.086, 0.032, 0.012
    logits = torch.randn(20) * 2
    eighths = torch.tensor([0.125, 0.5, 0.125, 0.25]).log()

    def counts(times, **options):
        tokens = [mine.sample(eighths.clone(), (i + 0.5) / times, **options) for i in range(times)]
        return [tokens.count(token) for token in range(4)]

    def unchanged():
        given = logits.clone()
        mine.sample(given, 0.5, temperature=0.7, k=5, p=0.9)
        return given

    yield (
        "(1, 2) at the temperature 0.5 become (2, 4)",
        torch.tensor([2.0, 4.0]),
        lambda: mine.apply_temperature(torch.tensor([1.0, 2.0]), 0.5),
        "divide by the temperature: a low one makes differences larger",
    )
    yield (
        "top-k 2 of (0, 3, 1, 2) is (-inf, 3, -inf, 2)",
        torch.tensor([-inf, 3.0, -inf, 2.0]),
        lambda: mine.top_k(torch.tensor([0.0, 3.0, 1.0, 2.0]), 2),
        "tokens stay where they are; the k-th largest logit is the smallest that is kept",
    )
    yield (
        "top-k is tinylm's",
        sampling.top_k(logits, 7),
        lambda: mine.top_k(logits.clone(), 7),
        "",
    )
    yield (
        "top-k of more tokens than there are keeps all",
        chapter,
        lambda: mine.top_k(chapter.clone(), 50),
        "min(k, len(logits))",
    )
    yield (
        "top-p 0.6 of the probabilities (0.2, 0.5, 0.3) keeps 0.5 and 0.3",
        torch.tensor([-inf, 0.5, 0.3]).clamp(min=0).log(),
        lambda: mine.top_p(torch.tensor([0.2, 0.5, 0.3]).log(), 0.6),
        "the token that crosses p is kept: 0.5 alone is less than 0.6",
    )
    yield (
        "top-p 0.9 of the chapter's logits keeps three tokens",
        torch.tensor([3.0, 2.0, 1.0, -inf, -inf]),
        lambda: mine.top_p(chapter.clone(), 0.9),
        "0.636 + 0.234 = 0.870 is less than 0.9, so the third is needed",
    )
    yield (
        "top-p is tinylm's, wherever the likely tokens stand",
        torch.stack([sampling.top_p(logits, p) for p in (0.3, 0.8, 0.99)]),
        lambda: torch.stack([mine.top_p(logits.clone(), p) for p in (0.3, 0.8, 0.99)]),
        "`sort` gives the order as well: what is found for sorted tokens belongs to the tokens order[0], order[1] ...",
    )
    yield (
        "a small p keeps the most likely token",
        torch.tensor([3.0, -inf, -inf, -inf, -inf]),
        lambda: mine.top_p(chapter.clone(), 0.01),
        "there must be one token left",
    )
    yield (
        "of (1/4, 1/2, 1/4), u = 0, 0.2, 0.25, 0.7, 0.75, 0.99 choose 0, 0, 1, 1, 2, 2",
        [0, 0, 1, 1, 2, 2],
        lambda: [mine.choose(torch.tensor([0.25, 0.5, 0.25]), u) for u in (0.0, 0.2, 0.25, 0.7, 0.75, 0.99)],
        "the first token whose cumulative sum is above u (not equal to it)",
    )
    yield (
        "a token of probability 0 is never chosen",
        1,
        lambda: mine.choose(torch.tensor([0.0, 1.0]), 0.0),
        "0 > 0 is false",
    )
    yield (
        "at temperature 0 the most likely token is chosen, whatever u is",
        [1, 1, 1],
        lambda: [mine.sample(eighths.clone(), u, temperature=0) for u in (0.0, 0.5, 0.99)],
        "argmax, without a division by 0",
    )
    yield (
        "of 8 evenly spaced u, the probabilities (1/8, 1/2, 1/8, 1/4) choose (1, 4, 1, 2)",
        [1, 4, 1, 2],
        lambda: counts(8),
        "",
    )
    yield (
        "temperature 0.5 and top-k 2 leave the probabilities 0.8 and 0.2: of 10, (0, 8, 0, 2)",
        [0, 8, 0, 2],
        lambda: counts(10, temperature=0.5, k=2),
        "temperature 0.5 squares the probabilities: 1/4 to 1/16; the softmax after the filter makes them sum to 1",
    )
    yield (
        "top-p 0.7 at temperature 0.5 leaves the most likely token alone",
        [0, 8, 0, 0],
        lambda: counts(8, temperature=0.5, p=0.7),
        "the temperature comes first: it raises the most likely token from 0.5 to 0.73",
    )
    yield (
        "the tokens are those of tinylm's filters",
        [sampled(logits, (i + 0.5) / 50) for i in range(50)],
        lambda: [mine.sample(logits.clone(), (i + 0.5) / 50, temperature=1.5, k=8, p=0.8) for i in range(50)],
        "temperature, top-k, top-p, in this order",
    )
    yield (
        "the logits that were given are not changed",
        logits,
        unchanged,
        "`masked_fill` makes a new tensor; `logits[...] = ` and `/=` change the caller's",
    )


def sampled(logits, u):
    """The token at u under tinylm's probabilities."""
    config = SamplingConfig(temperature=1.5, top_k=8, top_p=0.8)
    return int(torch.searchsorted(sampling.probabilities(logits[None], config)[0].cumsum(0), u, right=True))
