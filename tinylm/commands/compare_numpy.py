"""The network in PyTorch beside its NumPy twin, part by part: where do they part?

tinylm compare-numpy --model runs/small

Both compute the same batch of random tokens, forward and backward. For every part it prints the largest difference of
what the part gives, then that of the loss's gradient with respect to it, as fractions of the largest number there.
An edit that broke forward shows from its place on. One that broke backward shows in the gradients only, which stand in
the order of backward: again from its place on.
"""

import argparse

import numpy as np

from tinylm.console import Parser, announce_model
from tinylm.errors import ConfigError

TOLERANCES = {"float64": 1e-10, "float32": 1e-4}


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = Parser("compare-numpy", __doc__)
    parser.add_model_option()
    parser.add_argument("--batch-size", type=int, default=4, help="random sequences to compare on (%(default)s)")
    parser.add_argument("--length", type=int, help="tokens of each sequence (the context)")
    parser.add_argument("--precision", choices=TOLERANCES, default="float64", help="type of both (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random tokens (%(default)s)")
    return parser.parse(arguments)


def run(arguments: list[str]) -> None:
    """Prints the table, and the first place where the two differ."""
    options = parse(arguments)
    _, found = announce_model(options.model)

    import tinylm
    from tinylm.reference import Config, NumpyTransformerLM

    model, _ = tinylm.load(found)
    if not 1 <= (length := options.length or model.config.max_seq_len) <= model.config.max_seq_len:
        raise ConfigError(f"--length must be from 1 to the context, {model.config.max_seq_len}, got {length}")
    if options.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1, got {options.batch_size}")
    weights = {name: tensor.numpy().astype(options.precision) for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del weights["head.weight"]
    try:
        twin = NumpyTransformerLM(Config.from_dict(model.config.to_dict()), weights)
    except ValueError as error:
        raise ConfigError(f"{found}: the twin knows plain linear layers only ({error})") from error
    random = np.random.default_rng(options.seed)
    ids = random.integers(model.config.vocab_size, size=(options.batch_size, length + 1))
    theirs = torch_numbers(model.double() if options.precision == "float64" else model.float(), ids)
    print_differences(theirs, twin_numbers(twin, ids), TOLERANCES[options.precision])


def twin_numbers(twin, ids: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """What passes through the twin: `activations`, `gradients` with respect to them, `parameters`' gradients."""
    from tinylm.reference import Trace

    trace = Trace()
    _, grads = twin.loss_and_grads(ids[:, :-1], ids[:, 1:], trace=trace)
    trace.activations["head"] = twin.logits(ids[:, :-1])
    return {"activations": trace.activations, "gradients": trace.gradients, "parameters": grads}


def torch_numbers(model, ids: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """The same of PyTorch's: every module gives up its result by a hook."""
    import torch
    import torch.nn.functional as F

    results = {}

    def keep(name: str):
        def hook(module, inputs, result) -> None:
            if result.requires_grad:  # tables of positions do not
                results[name] = result
                result.retain_grad()

        return hook

    hooks = [part.register_forward_hook(keep(name)) for name, part in model.named_modules() if name]
    tokens = torch.from_numpy(ids)
    F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for hook in hooks:
        hook.remove()
    results["embedding"] = results["dropout"]  # with positions
    return {
        "activations": {name: result.detach().numpy() for name, result in results.items()},
        "gradients": {name: result.grad.numpy() for name, result in results.items()},
        "parameters": {name: p.grad.numpy() for name, p in model.named_parameters()},
    }


def print_differences(theirs: dict, ours: dict, tolerance: float) -> None:
    """One line for each part, then the parameters' gradients, then the first that differ by more than `tolerance`."""
    titles = {
        "activations": "part",
        "gradients": "gradient with respect to a part",
        "parameters": "gradient of a parameter",
    }
    print(f"{'largest of PyTorch':>60}  difference")
    first = {}
    for kind, title in titles.items():
        print(title)
        for name, found in ours[kind].items():
            largest = np.abs(theirs[kind][name]).max()
            difference = np.abs(found - theirs[kind][name]).max() / (largest or 1)
            wrong = not difference <= tolerance  # NaN is wrong, too
            if wrong:
                first.setdefault(kind, name)
            print(f"  {name:40} {largest:17.3e}  {difference:10.1e}{' <' if wrong else ''}")
    for kind, title in titles.items():
        if kind in first:
            print(f"the first {title} to differ by more than {tolerance:g}: {first[kind]}")
    if not first:
        print(f"all equal within {tolerance:g}")
