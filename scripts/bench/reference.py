"""Compares the speed of a training step of the NumPy twin with eager float32 PyTorch on the same number of threads.

    python scripts/bench/reference.py --threads 2

The model has 2 layers, width 128, 4 heads, d_ff 512, context 128 and a vocabulary of 1,000; the batch size is 32. It is
timed with GPT-2's architecture (LayerNorm, exact GELU, learned positions, biases) and with that of the presets
(RMSNorm, SwiGLU, rotary embeddings, QK-norm). A step computes the loss and its gradients, clips them and applies AdamW.
The two models take steps alternately. Finally the time of each part of the twin is printed, on one thread.
"""

import argparse
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BATCH, CONTEXT, VOCABULARY = 32, 128, 1000
SHAPE = dict(vocab_size=VOCABULARY, d_model=128, num_layers=2, num_heads=4, d_ff=512, max_seq_len=CONTEXT)
FORMS = {
    "as GPT-2": dict(positional_encoding="learned", norm="layernorm", activation="gelu", qk_norm=False, bias=True),
    "as the presets": {},
}
PARTS = {  # module and function of the twin: the part that it computes
    ("transformer", "cross_entropy"): "cross-entropy",
    ("transformer", "embedding"): "embedding",
    ("attention", "project"): "attention: queries, keys, values",
    ("attention", "attend"): "attention: softmax(q kT) v",
    ("feedforward", "linear"): "feed-forward: projections",
    ("feedforward", "swiglu"): "feed-forward: SwiGLU",
}


def torch_step(config: dict, ids) -> Callable[[], None]:
    """Makes a training step of the PyTorch model."""
    import torch
    import torch.nn.functional as F

    from tinylm.model import ModelConfig, TransformerLM

    model, tokens = TransformerLM(ModelConfig(**config)), torch.from_numpy(ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        logits = model(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def numpy_step(config: dict, ids, threads: int) -> Callable[[], None]:
    """Makes a training step of the NumPy twin."""
    from tinylm.kernels.heap import keep_freed_memory
    from tinylm.reference import Config
    from tinylm.reference.fast import FastTransformerLM
    from tinylm.reference.optim import Optimizer, clip_gradients

    keep_freed_memory()
    model = FastTransformerLM(Config(**config), threads=threads)
    optimizer = Optimizer(model.parameters, name="adamw", lr=1e-3, weight_decay=0.01)

    def step() -> None:
        _, grads = model.loss_and_grads(ids[:, :-1], ids[:, 1:])
        clip_gradients(grads, 1.0)
        optimizer.step(grads, 1e-3)

    return step


@contextmanager
def timed_parts() -> Iterator[dict[str, list[float]]]:
    """Measures the forward and backward seconds of each part inside the `with` block."""
    from importlib import import_module

    seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def timed(part: str, way: int, function: Callable) -> Callable:
        def run(*arguments, **named):
            started = time.perf_counter()
            result = function(*arguments, **named)
            seconds[part][way] += time.perf_counter() - started
            if way == 0 and callable(result[1]):
                return result[0], timed(part, 1, result[1])
            return result

        return run

    modules = {module: import_module(f"tinylm.reference.{module}") for module, _ in PARTS}
    before = {key: getattr(modules[key[0]], key[1]) for key in PARTS}
    for (module, name), part in PARTS.items():
        setattr(modules[module], name, timed(part, 0, before[module, name]))
    try:
        yield seconds
    finally:
        for (module, name), function in before.items():
            setattr(modules[module], name, function)


def print_parts(config: dict, ids, turns: int) -> None:
    """Prints the forward and backward time of each part of the twin."""
    from tinylm.kernels.heap import keep_freed_memory
    from tinylm.reference import Config
    from tinylm.reference.fast import FastTransformerLM

    keep_freed_memory()
    model = FastTransformerLM(Config(**config))
    model.loss_and_grads(ids[:, :-1], ids[:, 1:])
    with timed_parts() as seconds:
        started = time.perf_counter()
        for _ in range(turns):
            model.loss_and_grads(ids[:, :-1], ids[:, 1:])
        whole = time.perf_counter() - started
    seconds["everything else"][0] = whole - sum(map(sum, seconds.values()))
    print(f"  {'part':34}{'forward':>10}{'backward':>10}{'share':>8}")
    for part, (forward, backward) in seconds.items():
        share = (forward + backward) / whole
        print(f"  {part:34}{forward / turns * 1e3:7.1f} ms{backward / turns * 1e3:7.1f} ms{share:8.0%}")


def main() -> None:
    """Prints the steps/s of both models, their ratio, and the time of each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads per model (%(default)s)")
    parser.add_argument("--turns", type=int, default=15, help="timed turns (%(default)s)")
    options = parser.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy is imported: the twin's own threads call it

    import numpy as np
    import torch

    torch.set_num_threads(options.threads)
    ids = np.random.default_rng(0).integers(VOCABULARY, size=(BATCH, CONTEXT + 1))
    for form, fields in FORMS.items():
        config = SHAPE | fields
        steps = {"PyTorch": torch_step(config, ids), "NumPy": numpy_step(config, ids, options.threads)}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(options.turns + 2):
            for name, step in steps.items():
                started = time.perf_counter()
                step()
                if turn >= 2:  # the first two turns are warm-ups
                    times[name].append(time.perf_counter() - started)
        middle = {name: statistics.median(each) for name, each in times.items()}
        ratio = statistics.median(t / n for t, n in zip(times["PyTorch"], times["NumPy"], strict=True))
        print(f"{form}, {options.threads} threads: " + ", ".join(f"{n} {1 / s:.2f} steps/s" for n, s in middle.items()))
        print(f"NumPy at {ratio:.0%} of PyTorch's speed (median of {options.turns} paired turns)")
        print_parts(config, ids, max(options.turns // 3, 1))


if __name__ == "__main__":
    main()
