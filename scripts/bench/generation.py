"""Compares decoding with transformers' cached `generate`: checks that greedy tokens agree, then measures speed.

    python scripts/bench/generation.py [--no-compile]

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
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers

from tinylm.generation import Generator, SamplingConfig
from tinylm.generation.fast.compiled import CompiledDecoder
from tinylm.generation.fast.decoder import Decoder, fastest_threads
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
    """A model whose weights are large enough that greedy decoding does not repeat itself at once."""
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


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="runs of each implementation (default: %(default)s)")
    parser.add_argument("--no-compile", action="store_true", help="skip the compiled decoder")
    parser.add_argument("--architectures", nargs="+", default=[*ARCHITECTURES], choices=ARCHITECTURES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    most = torch.get_num_threads()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    for name in options.architectures:
        for rows in options.batches:
            bench(name, rows, options.turns, not options.no_compile, most)


if __name__ == "__main__":
    main()
