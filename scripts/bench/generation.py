"""Compares decoding with transformers' cached `generate`: checks that greedy tokens agree, then measures speed.

    python scripts/bench/generation.py [--no-compile]
    python scripts/bench/generation.py --device cuda      # GPT-2 124M in bfloat16, batch 1, 16, 128 (decode_rates)

6 layers, width 256, 8 heads, context 256, vocabulary 65, float32, a prompt of 8 tokens, 200 new ones; in GPT-2's
architecture and in that of the presets (Qwen3's). All implementations have the same weights and run in turn, several
times over; ratios are of medians. transformers uses the better of one thread and all, tinylm the number that
`fastest_threads` finds. `uncached` runs a full forward pass for every token, as nanoGPT does. The bound is the time of
the matrix-vector products alone, by the fastest of three ways to call them.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers

from tinylm.generation import Generator, SamplingConfig
from tinylm.generation.fast.choice import compiled_decoder, fastest_threads
from tinylm.generation.fast.compiled import CompiledDecoder
from tinylm.generation.fast.decoder import Decoder
from tinylm.generation.text import Text
from tinylm.interop import export_huggingface
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import CharTokenizer

NEW, PROMPT, V = 200, 8, 65
SHAPE = dict(vocab_size=V, d_model=256, num_layers=6, num_heads=8, max_seq_len=256)
GPT2 = dict(positional_encoding="learned", norm="layernorm", activation="gelu_tanh", qk_norm=False, bias=True)
ARCHITECTURES: dict[str, dict] = {"gpt2": GPT2, "qwen3": {}}
TOKENIZER = CharTokenizer("".join(map(chr, range(48, 48 + V))))


def new_model(**changes: object) -> TransformerLM:
    """A model whose weights are so large that greedy decoding does not repeat itself immediately."""
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig.from_dict(SHAPE | changes)).eval()
    for weight in model.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.08)
    return model


def exported(model: TransformerLM) -> torch.nn.Module:
    """The transformers model that `export_huggingface` makes of a model."""
    with tempfile.TemporaryDirectory() as folder:
        export_huggingface(model, TOKENIZER, Path(folder) / "model")
        return transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / "model").eval()


# --- the implementations; each returns the new tokens, (B, NEW)


def by_transformers(model: torch.nn.Module, prompts: torch.Tensor) -> torch.Tensor:
    """transformers' `generate`, with its cache."""
    found = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
        pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return found[:, PROMPT:]


def by_us(generator: Generator, prompts: torch.Tensor) -> torch.Tensor:
    """tinylm's decoding loop."""
    texts = [Text(prompt) for prompt in prompts.tolist()]
    config = SamplingConfig(max_new_tokens=NEW, temperature=0)
    for _ in generator.decode(texts, config, len(texts)):
        pass
    return torch.tensor([text.ids for text in texts])


@torch.inference_mode()
def uncached(model: TransformerLM, prompts: torch.Tensor) -> torch.Tensor:
    """A forward pass over the whole text for each token."""
    ids = prompts
    for _ in range(NEW):
        ids = torch.cat((ids, model(ids[:, -256:])[:, -1].argmax(dim=-1, keepdim=True)), dim=1)
    return ids[:, PROMPT:]


@torch.inference_mode()
def bound(model: TransformerLM, rows: int) -> float:
    """Median seconds for the matrix products of one step, by the fastest of three ways."""
    weights = [weight for block in model.blocks for weight in block.parameters() if weight.dim() == 2]
    x = {size: torch.randn(rows, size) for size in {weight.shape[1] for weight in weights}}
    transposed = [weight.T.contiguous() for weight in weights]
    halves = [weight.view(2, len(weight) // 2, -1).transpose(1, 2).contiguous() for weight in weights]
    ways: list[Callable[[], object]] = [
        lambda: [F.linear(x[w.shape[1]], w) for w in weights],
        lambda: [x[w.shape[0]] @ w for w in transposed],
        lambda: [torch.bmm(x[w.shape[1]].expand(2, -1, -1), w) for w in halves],
    ]
    medians = []
    for way in ways:
        times = []
        for _ in range(50):
            started = time.perf_counter()
            way()
            times.append(time.perf_counter() - started)
        medians.append(statistics.median(times))
    return min(medians)


# --- the table


def bench(name: str, rows: int, turns: int, compiled: bool, most: int) -> None:
    """Prints the table of one architecture and batch size, with at most `most` threads."""
    ours = new_model(**ARCHITECTURES[name])
    theirs = exported(ours)
    torch.set_num_threads(most)
    threads = fastest_threads(ours, rows)
    prompts = torch.randint(V, (rows, PROMPT), generator=torch.Generator().manual_seed(1))
    eager = Generator(ours, TOKENIZER, Decoder(ours))
    sides: dict[str, tuple[int, Callable[[], torch.Tensor]]] = {
        "tinylm, eager": (threads, lambda: by_us(eager, prompts)),
        **{f"transformers, {n} threads": (n, lambda: by_transformers(theirs, prompts)) for n in sorted({1, most})},
    }
    if rows == 1:
        sides["uncached"] = threads, lambda: uncached(ours, prompts)
    if compiled:
        program = Generator(ours, TOKENIZER, CompiledDecoder(ours))
        started = time.perf_counter()
        by_us(program, prompts)
        print(f"compiled in {time.perf_counter() - started:.0f} s")
        sides["tinylm, compiled"] = threads, lambda: by_us(program, prompts)
    times: dict[str, list[float]] = {side: [] for side in sides}
    bounds = []
    expected = sides["tinylm, eager"][1]()
    for side, (count, run) in sides.items():
        torch.set_num_threads(count)
        assert torch.equal(run(), expected), f"{side}: the tokens differ"
    for _ in range(turns):
        for side, (count, run) in sides.items():
            torch.set_num_threads(count)
            started = time.perf_counter()
            run()
            times[side].append(time.perf_counter() - started)
        torch.set_num_threads(threads)
        bounds.append(bound(ours, rows))
    medians = {side: statistics.median(seconds) for side, seconds in times.items()}
    peer = min(seconds for side, seconds in medians.items() if side.startswith("transformers"))
    print(f"\n{name}, batch {rows}: {NEW} tokens each, all equal; tinylm on {threads} of {most} threads")
    for side, seconds in medians.items():
        speed, best = rows * NEW / seconds, rows * NEW / min(times[side])
        share = NEW * statistics.median(bounds) / seconds
        print(f"  {side:26} {speed:7.0f} tokens/s (best {best:6.0f})   {peer / seconds:5.2f} x transformers   "
              f"{share:4.0%} of the bound")  # fmt: skip
    if "uncached" in medians:
        ratios = {side: medians["uncached"] / seconds for side, seconds in medians.items() if "tinylm" in side}
        print("  " + ", ".join(f"{side}: {ratio:.1f} x uncached" for side, ratio in ratios.items()))
    print(f"  bound: {rows / statistics.median(bounds):.0f} tokens/s, matrix products alone")


# --- on a GPU


def decode_rates(
    device: torch.device | str, batches: Sequence[int], *, compiled: bool = True, turns: int = 3
) -> list[dict[str, Any]]:
    """Milliseconds a step of GPT-2 124M in bfloat16, beside transformers with a static cache, compiled.

    On a CPU a miniature in float32 is measured, to check the script. Weights are random and the sides take turns.

    Args:
        device: of the models
        batches: numbers of rows
        compiled: whether to measure the compiled sides; each takes a minute to start
        turns: runs of each side; the median counts

    Returns:
        a row for each batch and side: batch, side, ms (per step, the prompt's pass included), tokens_per_s, ratio (of
        tokens/s to the fastest transformers side of the batch)
    """
    device = torch.device(device)
    cuda = device.type == "cuda"
    context, prompt, new = (1024, 64, 200) if cuda else (64, 4, 12)
    sizes = dict(vocab_size=50257, d_model=768, num_layers=12, num_heads=12) if cuda else SHAPE | dict(num_layers=2)
    kind = torch.bfloat16 if cuda else torch.float32
    ours = new_model(**GPT2 | sizes | dict(max_seq_len=context)).to(device, kind)
    config = transformers.GPT2Config(
        vocab_size=ours.config.vocab_size, n_positions=context, n_embd=ours.config.d_model,
        n_layer=ours.config.num_layers, n_head=ours.config.num_heads,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).to(device, kind).eval()
    tokenizer = CharTokenizer("".join(chr(0x10000 + i) for i in range(ours.config.vocab_size)))
    rows: list[dict[str, Any]] = []
    for batch in batches:
        prompts = torch.randint(ours.config.vocab_size, (batch, prompt), generator=torch.Generator().manual_seed(1))
        sides = _sides(ours, theirs, tokenizer, prompts, new, compiled)
        times: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(turns + 1):
            for side, run in sides.items():
                started = time.perf_counter()
                run()
                if cuda:
                    torch.cuda.synchronize(device)
                if turn:  # the first run compiles and captures
                    times[side].append(time.perf_counter() - started)
        seconds = {side: statistics.median(each) / new for side, each in times.items()}
        peer = min(each for side, each in seconds.items() if side.startswith("transformers"))
        rows += [
            dict(batch=batch, side=side, ms=each * 1e3, tokens_per_s=batch / each, ratio=peer / each)
            for side, each in seconds.items()
        ]
    return rows


def _sides(
    ours: TransformerLM,
    theirs: torch.nn.Module,
    tokenizer: CharTokenizer,
    prompts: torch.Tensor,
    new: int,
    compiled: bool,
) -> dict[str, Callable[[], object]]:
    """The implementations that `decode_rates` compares; each generates `new` tokens for every prompt."""

    def by(generator: Generator, **options: Any) -> Callable[[], object]:
        config = SamplingConfig(max_new_tokens=new, **options)
        return lambda: deque(generator.decode([Text(ids, 0) for ids in prompts.tolist()], config, len(prompts)), 0)

    def static(model: torch.nn.Module) -> Callable[[], object]:
        ids = prompts.to(ours.embedding.weight.device)
        return lambda: model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
            pad_token_id=0, eos_token_id=None, cache_implementation="static", disable_compile=not compiled,
        )  # fmt: skip

    best = Generator(ours, tokenizer)
    sides = {
        "transformers, static cache" + ", compiled" * compiled: static(theirs),
        "tinylm, eager": by(Generator(ours, tokenizer, Decoder(ours)), temperature=0),
        "tinylm": by(best, temperature=0),
        "tinylm, sampled": by(best, temperature=0.8, top_k=50),
    }
    if compiled:
        program = Generator(ours, tokenizer, compiled_decoder(ours))
        sides["tinylm, compiled"] = by(program, temperature=0)
        sides["tinylm, compiled, sampled"] = by(program, temperature=0.8, top_k=50)
    return sides


def print_rates(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the rows of `decode_rates`."""
    for row in rows:
        print("batch {batch:3}  {side:42} {ms:8.3f} ms a step {tokens_per_s:9,.0f} tokens/s   {ratio:5.2f} x "
              "transformers".format(**row))  # fmt: skip


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="runs of each implementation (default: %(default)s)")
    parser.add_argument("--no-compile", action="store_true", help="skip the compiled decoder")
    parser.add_argument("--architectures", nargs="+", default=[*ARCHITECTURES], choices=ARCHITECTURES)
    parser.add_argument("--batches", nargs="+", type=int, help="numbers of rows (default: 1 16; on a GPU 1 16 128)")
    parser.add_argument(
        "--device", help="compare on this device by decode_rates, such as cuda (default: the CPU table)"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    most = torch.get_num_threads()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    if options.device is not None:
        batches = options.batches or [1, 16, 128]
        return print_rates(decode_rates(options.device, batches, compiled=not options.no_compile))
    for name in options.architectures:
        for rows in options.batches or [1, 16]:
            bench(name, rows, options.turns, not options.no_compile, most)


if __name__ == "__main__":
    main()
