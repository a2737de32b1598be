"""Scores a model on a text, or on its answers to prompts.

tinylm score --model runs/small --text letter.txt
tinylm score --model runs/finetune --pairs questions/test.jsonl
"""

import argparse
import math
import time
from pathlib import Path

from tinylm.console import Mode, Parser, announce_model, check_at_least, pick_device
from tinylm.errors import ConfigError
from tinylm.files import read_chunks

MODES = (Mode("with --text", ("--template", "--max-new-tokens", "--show")), Mode("with --pairs", ("--stride",)))


def run(arguments: list[str]) -> None:
    """Prints the score of a text, or of the answers to prompts."""
    parser = Parser("score", __doc__, MODES)
    add = parser.add_argument
    parser.add_model_option()
    add("--text", type=Path, help="UTF-8 text file, read as one document")
    add("--stride", type=int, help="with --text: tokens between window starts (default: half the context)")
    add(
        "--pairs", type=Path, help="file of prompt/response pairs: .jsonl, .json, .csv or .parquet, or a compressed one"
    )
    add("--template", default="pairs", help="with --pairs: pairs or chat, as in training")
    add("--fields", nargs=2, metavar=("PROMPT", "RESPONSE"), help="with --pairs: names of the two fields in the file")
    add("--max-new-tokens", type=int, default=64, help="with --pairs: longest answer, in tokens")
    add("--show", type=int, default=3, help="with --pairs: number of wrong answers to print")
    add("--batch-size", type=int, default=8, help="windows or prompts read at once")
    parser.add_device_option()
    options = parser.parse(arguments)
    if (options.text is None) == (options.pairs is None):
        raise ConfigError("give either --text or --pairs")
    check_at_least(1, options, "stride", "batch_size", "max_new_tokens")
    check_at_least(0, options, "show")
    (print_score if options.pairs is None else print_answers)(options)


def print_score(options: argparse.Namespace) -> None:
    """Prints the tokens, bytes, loss, perplexity and bits per byte of a text."""
    text = "".join(read_chunks(options.text))
    _, found = announce_model(options.model)

    import tinylm
    from tinylm.evaluation import score_text

    model, tokenizer = tinylm.load(found, device=pick_device(options.device))
    started = time.perf_counter()
    score = score_text(model, tokenizer, text, stride=options.stride, batch_size=options.batch_size)
    speed = score.tokens / (time.perf_counter() - started)
    print(f"{options.text}: {score.tokens:,} tokens, {score.bytes:,} bytes, {speed:,.0f} tokens/s")
    perplexity = f"{score.perplexity:.2f}" if score.perplexity < math.inf else "above 10^307"
    figures = f"perplexity {perplexity}, {score.bits_per_byte:.4f} bits per byte"
    print(f"loss {score.loss:.4f} nats per token, {figures}")


def print_answers(options: argparse.Namespace) -> None:
    """Prints the loss on the responses, the share of exact matches, and some wrong answers."""
    _, found = announce_model(options.model)

    import tinylm
    from tinylm.data import encode_pairs, find_template, prompt_ids, read_pairs
    from tinylm.evaluation import exact_match, score_answers
    from tinylm.generation import Generator

    find_template(options.template)
    pairs = read_pairs(options.pairs, options.fields)
    model, tokenizer = tinylm.load(found, device=pick_device(options.device))
    template = find_template(options.template, tokenizer)
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
    print(f"loss {score.loss:.4f} nats per token, exact match {match.fraction:.1%}")
    wrong = [number for number, right in enumerate(match.right) if not right]
    for number in wrong[: options.show]:
        prompt = pairs[number][-2].content if len(pairs[number]) > 1 else ""
        print(f"\n{prompt}\n  answered: {match.answers[number]}\n  expected: {match.expected[number]}")
