"""Compares a PyTorch model with its NumPy twin, part by part, to find where they first differ.

tinylm compare-numpy --model runs/small

Both compute the same batch of random tokens, forward and backward. For each part the table shows the largest difference
of its output, then that of the loss's gradient with respect to this output, relative to the largest value.
An error in a forward pass shows from its part on. An error in a backward pass shows in the gradients only, which are
listed in the order of the backward pass, again from its part on.
"""

import argparse

import numpy as np

from tinylm.console import Parser, announce_model
from tinylm.errors import ConfigError

TOLERANCES = {"float64": 1e-10, "float32": 1e-4}
TITLES = {
    "activations": "part",
    "gradients": "gradient with respect to a part",
    "parameters": "gradient of a parameter",
}
Results = dict[str, dict[str, np.ndarray]]  # by the keys of TITLES, then by name


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = Parser("compare-numpy", __doc__)
    parser.add_model_option()
    parser.add_argument("--batch-size", type=int, default=4, help="random sequences to compare on (%(default)s)")
    parser.add_argument("--length", type=int, help="tokens in each sequence (default: the model's context)")
    parser.add_argument("--precision", choices=TOLERANCES, default="float64", help="type of both models (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random tokens (%(default)s)")
    return parser.parse(arguments)


def run(arguments: list[str]) -> None:
    """Prints the table, and the first part in which the two differ."""
    options = parse(arguments)
    _, found = announce_model(options.model)

    import tinylm
    from tinylm.known import check_known
    from tinylm.reference import Config
    from tinylm.reference.trace import TracedTransformerLM

    model, _ = tinylm.load(found)
    check_known(model, "the NumPy twin")
    if not 1 <= (length := options.length or model.config.max_seq_len) <= model.config.max_seq_len:
        raise ConfigError(f"--length must be from 1 to the context, {model.config.max_seq_len}, got {length}")
    if options.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1, got {options.batch_size}")
    weights = {name: tensor.double().numpy().astype(options.precision) for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del weights["head.weight"]
    try:
        twin = TracedTransformerLM(Config.from_dict(model.config.to_dict()), weights)
    except ValueError as error:
        raise ConfigError(f"{found}: the twin supports plain linear layers only ({error})") from error
    random = np.random.default_rng(options.seed)
    ids = random.integers(model.config.vocab_size, size=(options.batch_size, length + 1))
    theirs = torch_results(model.double() if options.precision == "float64" else model.float(), ids)
    print_differences(theirs, twin_results(twin, ids), TOLERANCES[options.precision])


def twin_results(twin, ids: np.ndarray) -> Results:
    """The outputs of all parts of the twin, the gradients with respect to them, and those of the parameters."""
    _, grads = twin.loss_and_grads(ids[:, :-1], ids[:, 1:])
    results = {"activations": dict(twin.activations), "gradients": twin.gradients, "parameters": grads}
    results["activations"]["head"] = twin.logits(ids[:, :-1])
    return results


def torch_results(model, ids: np.ndarray) -> Results:
    """PyTorch's results, recorded by a hook on every module."""
    import torch
    import torch.nn.functional as F

    outputs = {}

    def keep(name: str):
        def hook(module, inputs, output) -> None:
            if output.requires_grad:  # tables of positions have no gradient
                outputs[name] = output
                output.retain_grad()

        return hook

    hooks = [part.register_forward_hook(keep(name)) for name, part in model.named_modules() if name]
    tokens = torch.from_numpy(ids)
    F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for hook in hooks:
        hook.remove()
    return {
        "activations": {name: output.detach().numpy() for name, output in outputs.items()},
        "gradients": {name: output.grad.numpy() for name, output in outputs.items()},
        "parameters": {name: p.grad.numpy() for name, p in model.named_parameters()},
    }


def print_differences(theirs: Results, ours: Results, tolerance: float) -> None:
    """Prints one line for each part and parameter, then the first of each kind to differ by more than `tolerance`."""
    print(f"{'largest of PyTorch':>60}  difference")
    first = {}
    for kind, title in TITLES.items():
        print(title)
        for name, found in ours[kind].items():
            largest = np.abs(theirs[kind][name]).max()
            difference = np.abs(found - theirs[kind][name]).max() / (largest or 1)
            wrong = not difference <= tolerance  # NaN counts as wrong
            if wrong:
                first.setdefault(kind, name)
            print(f"  {name:40} {largest:17.3e}  {difference:10.1e}{' <' if wrong else ''}")
    for kind, name in first.items():
        print(f"the first {TITLES[kind]} to differ by more than {tolerance:g}: {name}")
    if not first:
        print(f"all equal within {tolerance:g}")
