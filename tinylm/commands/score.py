"""How well a model predicts a text, or answers prompts.

tinylm score --model runs/small --text letter.txt
tinylm score --model runs/finetune --pairs questions/test.jsonl
"""

import argparse
import time
from pathlib import Path

from tinylm.console import Parser, add_model_option, announce_model, pick_device
from tinylm.errors import ConfigError
from tinylm.files import read_chunks


def run(arguments: list[str]) -> None:
    """Prints how well a text is predicted, or prompts are answered."""
    parser = Parser("score", __doc__)
    add_model_option(parser)
    parser.add_argument("--text", type=Path, help="a UTF-8 text file, read as one document")
    parser.add_argument("--stride", type=int, help="with --text: tokens between windows (context / 2)")
    parser.add_argument("--pairs", type=Path, help="prompts with their responses: .jsonl, .json or .csv")
    parser.add_argument("--template", default="pairs", help="with --pairs: pairs or chat, as in training (%(default)s)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, help="with --pairs: longest answer, in tokens (%(default)s)"
    )
    parser.add_argument("--show", type=int, default=3, help="with --pairs: wrong answers to print (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="windows or prompts at once (%(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps; auto takes the fastest (%(default)s)")
    options = parser.parse(arguments)
    if (options.text is None) == (options.pairs is None):
        raise ConfigError("give either --text or --pairs")
    if options.text is not None:
        print_score(options)
    else:
        print_answers(options)


def print_score(options: argparse.Namespace) -> None:
    """Tokens, bytes, loss, perplexity and bits per byte of a text."""
    text = "".join(read_chunks(options.text))
    _, found = announce_model(options.model)

    import tinylm
    from tinylm.evaluation import score_text

    model, tokenizer = tinylm.load(found, device=pick_device(options.device))
    started = time.perf_counter()
    score = score_text(model, tokenizer, text, stride=options.stride, batch_size=options.batch_size)
    seconds = time.perf_counter() - started
    print(f"{options.text}: {score.tokens:,} tokens, {score.bytes:,} bytes, {score.tokens / seconds:,.0f} tokens/s")
    print(
        f"loss {score.nats / score.tokens:.4f} nats per token, perplexity {score.perplexity:.2f}, "
        f"{score.bits_per_byte:.4f} bits per byte"
    )


def print_answers(options: argparse.Namespace) -> None:
    """Loss on the responses, exact matches of greedy answers, and some that are wrong."""
    _, found = announce_model(options.model)

    import tinylm
    from tinylm.data import encode_pairs, find_template, prompt_ids, read_pairs
    from tinylm.evaluation import exact_match, score_answers
    from tinylm.generation import Generator

    template, pairs = find_template(options.template), read_pairs(options.pairs)
    model, tokenizer = tinylm.load(found, device=pick_device(options.device))
    examples = encode_pairs(tokenizer, pairs, template, model.config.max_seq_len, name=str(options.pairs))
    score = score_answers(model, tokenizer, examples, batch_size=options.batch_size)
    match = exact_match(
        Generator(model, tokenizer),
        [prompt_ids(tokenizer, turns, template) for turns in pairs],
        [turns[-1].content for turns in pairs],
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
    )
    print(f"{options.pairs}: {len(pairs):,} pairs, {score.tokens:,} tokens in the responses")
    print(f"loss {score.nats / score.tokens:.4f} nats per token, exact match {match.fraction:.1%}")
    wrong = [number for number, right in enumerate(match.right) if not right]
    for number in wrong[: options.show]:
        prompt = pairs[number][-2].content if len(pairs[number]) > 1 else ""
        print(f"\n{prompt}\n  answered: {match.answers[number]}\n  expected: {match.expected[number]}")
