"""The optimizers by hand: SGD with momentum, Adam, AdamW and Muon; gradient clipping; the learning rate at each step.

Each rule is one function. It moves a weight W by its gradient G, both of any shape, and updates its running averages of
earlier gradients; all in place. Weight decay is for matrices and embeddings: pulling the scale of a norm towards zero
would not regularize.

Left out: techniques that a model of this size does not need (sharding, mixed precision, foreach kernels).
Sources: Kingma, Ba 2015 (Adam); Loshchilov, Hutter 2019 (AdamW); Jordan et al. 2024 and Liu et al. 2025 (Muon).
"""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field

import numpy as np

Array = np.ndarray
Arrays = dict[str, Array]
NAMES = ("adamw", "adam", "sgd", "muon")
COEFFICIENTS = {  # a, b and c of each round of `orthogonalize`; the last also of those that follow
    "jordan": [(3.4445, -4.7750, 2.0315)],
    "polar_express": [
        (8.0934, -23.6204, 17.4462),
        (3.6366, -2.7219, 0.5365),
        (2.6613, -1.9772, 0.4526),
        (1.9562, -1.3375, 0.3839),
        (1.875, -1.25, 0.375),
    ],
}


# --- the rules


def sgd_step(weight: Array, gradient: Array, velocity: Array, *, lr: float, decay: float, momentum: float) -> None:
    """v ← μ v + (G + λ W), then W ← W - lr v. The decay λ is the gradient of a penalty λ/2 |W|²."""
    velocity *= momentum
    velocity += gradient + decay * weight
    weight -= lr * velocity


def adam_step(
    weight: Array,
    gradient: Array,
    mean: Array,
    square: Array,
    *,
    step: int,
    lr: float,
    decay: float,
    betas: tuple[float, float],
    eps: float,
    decoupled: bool,
) -> None:
    """m ← β₁ m + (1 - β₁) G, s ← β₂ s + (1 - β₂) G², then W ← W - lr m̂ / (√ŝ + ε).

    m and s start at zero and are too small at first; m̂ = m / (1 - β₁ᵗ) and ŝ = s / (1 - β₂ᵗ) correct that. The
    division gives every weight a step of about lr, whatever the size of its gradients.

    Args:
        weight: W
        gradient: G
        mean: m, the running mean of the gradients
        square: s, the running mean of their squares
        step: t, from 1
        lr: learning rate
        decay: λ
        betas: β₁ and β₂
        eps: ε
        decoupled: AdamW's decay, W ← (1 - lr λ) W, which the division does not scale; otherwise Adam's, G ← G + λ W
    """
    beta1, beta2 = betas
    if decoupled:
        weight *= 1 - lr * decay
    elif decay:
        gradient = gradient + decay * weight
    mean *= beta1
    mean += (1 - beta1) * gradient
    square *= beta2
    square += (1 - beta2) * gradient * gradient
    root = np.sqrt(square) / math.sqrt(1 - beta2**step)
    weight -= lr / (1 - beta1**step) * mean / (root + eps)


def orthogonalize(matrices: Array, steps: int = 5, coefficients: str = "jordan") -> Array:
    """Approximates the nearest matrix with orthogonal rows (or columns): U Vᵀ for U S Vᵀ, without computing the SVD.

    X ← a X + (b A + c A²) X with A = X Xᵀ keeps U and V and maps every singular value s to a s + b s³ + c s⁵. With
    Jordan's a, b and c five rounds move all s in (0, 1], except the tiniest, to between 0.7 and 1.2. Those of Polar
    Express differ by round and move s in [0.01, 1] to between 0.73 and 1.27 with three, 0.99 and 1.01 with four.

    Args:
        matrices: (n, rows, columns)
        steps: rounds
        coefficients: "jordan" or "polar_express"

    Returns:
        (n, rows, columns)
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.swapaxes(1, 2) if tall else matrices  # (n, r, k) with r <= k, so that A is the smaller product
    x = x / (np.sqrt(np.square(x).sum(axis=(1, 2), keepdims=True)) + 1e-7)  # now all s <= 1
    if coefficients == "polar_express":  # √|A| too is at least the largest s, and less than |X|
        x = x / np.sqrt(1.01 * np.sqrt(np.square(x @ x.swapaxes(1, 2)).sum(axis=(1, 2), keepdims=True)) + 1e-7)
    rounds = COEFFICIENTS[coefficients]
    for a, b, c in (rounds + rounds[-1:] * steps)[:steps]:
        gram = x @ x.swapaxes(1, 2)  # A (n, r, r)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.swapaxes(1, 2) if tall else x


def even_rows(updates: Array, neurons: Array, beta: float) -> Array:
    """NorMuon (Li et al. 2025): s ← β s + (1 - β) |r|² for each row r, then r ← c r / √s; c keeps the matrix's norm.

    Args:
        updates: (n, rows, columns)
        neurons: s of each row, (n, rows, 1), updated in place
        beta: β

    Returns:
        (n, rows, columns)
    """
    squares = np.square(updates).sum(axis=2, keepdims=True)  # (n, rows, 1)
    neurons *= beta
    neurons += (1 - beta) * squares
    even = updates / np.sqrt(neurons + 1e-12)
    before, after = (np.square(each).sum(axis=(1, 2), keepdims=True) for each in (updates, even))  # (n, 1, 1)
    return even * np.sqrt(before / (after + 1e-12))


def muon_step(
    weights: list[Array], gradients: list[Array], mean: Array, neurons: Array | None = None, *, lr: float, decay: float,
    momentum: float, ns_steps: int = 5, ns_coefficients: str = "jordan", neuron_beta: float = 0.0,
) -> None:  # fmt: skip
    """m ← μ m + (1 - μ) G, then W ← (1 - lr λ) W - lr 0.2 √max(rows, columns) orthogonalize(μ m + (1 - μ) G).

    All directions of a matrix's space are learned at the same speed, including those that gradients rarely point to. An
    orthogonal matrix has a root mean square of 1 / √max(rows, columns); 0.2 is about the root mean square of Adam's
    updates, so one learning rate serves both.

    Args:
        weights: n matrices W of one shape, updated together: (rows, columns) each
        gradients: the G of each
        mean: m of all, (n, rows, columns)
        neurons: running means of the squared norms of the updates' rows, (n, rows, 1); None: rows stay as they are
        lr: learning rate
        decay: λ
        momentum: μ
        ns_steps: rounds of `orthogonalize`
        ns_coefficients: their coefficients
        neuron_beta: decay rate of `neurons`
    """
    scaled = (1 - momentum) * np.stack(gradients)  # (n, rows, columns)
    mean *= momentum
    mean += scaled
    # Nesterov: the average that the same gradient would give next
    updates = orthogonalize(scaled + momentum * mean, ns_steps, ns_coefficients)
    if neurons is not None:
        updates = even_rows(updates, neurons, neuron_beta)
    updates = lr * 0.2 * math.sqrt(max(mean.shape[1:])) * updates
    for weight, update in zip(weights, updates, strict=True):
        weight *= 1 - lr * decay
        weight -= update


# --- the optimizer


@dataclass
class Optimizer:
    """Applies a rule to each parameter and keeps the rules' running averages.

    Attributes:
        parameters: the arrays by name, updated in place
        name: adamw, adam, sgd, or muon: Muon for the matrices of the blocks, AdamW for embeddings, head, norms, biases
        lr: learning rate if `step` is not given one
        weight_decay: of matrices and embeddings
        betas: of Adam
        eps: of Adam
        momentum: of SGD and Muon
        ns_steps: rounds of Muon's `orthogonalize`
        ns_coefficients: their coefficients
        neuron_beta: decay rate of Muon's `even_rows`; 0: rows stay as they are
        factors: of the learning rate, by parameter; decay is divided by them. Default: 1
        steps: steps taken
    """

    parameters: Arrays
    _: KW_ONLY
    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95
    ns_steps: int = 5
    ns_coefficients: str = "jordan"
    neuron_beta: float = 0.0
    factors: Mapping[str, float] = field(default_factory=dict)
    steps: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"name must be one of {', '.join(NAMES)}, got {self.name!r}")
        self._stacks: dict[str, list[str]] = {}  # Muon's matrices of one shape, `64x128`: their names
        self._averages: dict[
            str, Arrays
        ] = {}  # for each stack and each other parameter: the arrays that its rule keeps
        for name, array in self.parameters.items():
            if self.name == "muon" and array.ndim == 2 and name.startswith("blocks."):
                self._stacks.setdefault("{}x{}".format(*array.shape), []).append(name)
            else:
                kept = ("velocity",) if self.name == "sgd" else ("mean", "square")
                self._averages[name] = {each: np.zeros_like(array) for each in kept}
        for stack, names in self._stacks.items():
            mean = np.zeros_like([self.parameters[name] for name in names])
            self._averages[stack] = {"mean": mean} | ({"neurons": mean[:, :, :1].copy()} if self.neuron_beta else {})

    def step(self, grads: Mapping[str, Array], lr: float | None = None) -> None:
        """Moves every parameter by its gradient.

        Args:
            grads: the gradients, by the parameters' names
            lr: the learning rate of this step. Default: the optimizer's
        """
        self.steps += 1
        lr = self.lr if lr is None else lr
        for name, averages in self._averages.items():
            if name in self._stacks:
                weights, gradients = ([each[key] for key in self._stacks[name]] for each in (self.parameters, grads))
                factor = self.factors.get(self._stacks[name][0], 1.0)
                muon_step(
                    weights, gradients, **averages, lr=lr * factor, decay=self.weight_decay / factor,
                    momentum=self.momentum, ns_steps=self.ns_steps, ns_coefficients=self.ns_coefficients,
                    neuron_beta=self.neuron_beta,
                )  # fmt: skip
                continue
            weight, factor = self.parameters[name], self.factors.get(name, 1.0)
            decay = self.weight_decay / factor if weight.ndim >= 2 else 0.0
            if self.name == "sgd":
                sgd_step(weight, grads[name], **averages, lr=lr * factor, decay=decay, momentum=self.momentum)
            else:
                adam_step(
                    weight, grads[name], **averages, step=self.steps, lr=lr * factor, decay=decay, betas=self.betas,
                    eps=self.eps, decoupled=self.name != "adam",
                )  # fmt: skip

    def state(self) -> Arrays:
        """The running averages, by `parameter/average`, and the number of steps; the arrays are not copied."""
        averages = {f"{name}/{kept}": array for name, each in self._averages.items() for kept, array in each.items()}
        return {"steps": np.array(self.steps), **averages}

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Continues from a `state`.

        Raises:
            ValueError: if it belongs to another optimizer or to other parameters.
        """
        ours = self.state()
        if state.keys() != ours.keys():
            differ = ", ".join(sorted(state.keys() ^ ours.keys())[:4])
            raise ValueError(f"the state is not of {self.name} over these parameters: {differ}")
        for name, array in ours.items():
            if state[name].shape != array.shape:
                raise ValueError(f"the state's {name} has shape {state[name].shape}, needs {array.shape}")
            array[...] = state[name]
        self.steps = int(state["steps"])


# --- clipping and the schedule


def clip_gradients(grads: Mapping[str, Array], max_norm: float | None = None) -> float:
    """Scales all gradients down by one factor, in place, if their common norm exceeds `max_norm`.

    Args:
        grads: the gradients
        max_norm: the largest norm that a step may have. Default: only measure

    Returns:
        √Σ G² over all gradients, before scaling
    """
    flat = [gradient.reshape(-1) for gradient in grads.values()]
    norm = math.sqrt(sum(float(np.dot(gradient, gradient)) for gradient in flat))
    if max_norm is not None and max_norm < norm + 1e-6:
        for gradient in grads.values():
            gradient *= max_norm / (norm + 1e-6)
    return norm


def learning_rate(
    step: int,
    total_steps: int,
    *,
    lr: float,
    name: str = "cosine",
    warmup_steps: int = 100,
    min_lr: float = 0.0,
    decay_steps: int | None = None,
) -> float:
    """The learning rate of a step: linear warmup from zero, then decay to `min_lr`.

    Args:
        step: steps done before this one
        total_steps: of the whole run
        lr: the rate after warmup
        name: cosine (half a period), linear, trapezoid (constant, then linear decay) or constant
        warmup_steps: length of the warmup
        min_lr: the final rate
        decay_steps: length of the trapezoid's decay. Default: a fifth of the run

    Raises:
        ValueError: for any other name.
    """
    if step < warmup_steps:
        return lr * (step + 1) / (warmup_steps + 1)
    done = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    decay = max(total_steps // 5, 1) if decay_steps is None else max(decay_steps, 1)
    factors = {
        "cosine": 0.5 + 0.5 * math.cos(math.pi * done),
        "linear": 1.0 - done,
        "trapezoid": max(min((total_steps - step) / decay, 1.0), 0.0),
        "constant": 1.0,
    }
    if name not in factors:
        raise ValueError(f"name must be one of {', '.join(factors)}, got {name!r}")
    return min_lr + (lr - min_lr) * factors[name]
