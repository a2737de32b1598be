"""The optimizers by hand: SGD with momentum, Adam, AdamW and Muon; gradient clipping; the learning rate at each step.

One function for each rule. It moves a weight W of any shape by its gradient G, in place, and keeps what it remembers of
earlier gradients in arrays of W's shape; `scratch`, of that shape too, holds what is computed on the way. Weight decay
is for matrices and embeddings: pulling the scale of a norm towards zero would be no regularization.

Left out: everything that a model of this size does without (sharding, mixed precision, foreach kernels).
Sources: Kingma, Ba 2015 (Adam); Loshchilov, Hutter 2019 (AdamW); Jordan et al. 2024 and Liu et al. 2025 (Muon).
"""

import math
from collections.abc import Mapping

import numpy as np

Arrays = dict[str, np.ndarray]
NAMES = ("adamw", "adam", "sgd", "muon")


# --- one rule each


def sgd_step(
    weight: np.ndarray,
    gradient: np.ndarray,
    velocity: np.ndarray,
    scratch: np.ndarray,
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
) -> None:
    """v ← μ v + (G + λ W), then W ← W - lr v. The decay λ is the gradient of a penalty λ/2 |W|²."""
    np.multiply(weight, weight_decay, out=scratch)
    scratch += gradient
    velocity *= momentum
    velocity += scratch
    np.multiply(velocity, lr, out=scratch)
    weight -= scratch


def adam_step(
    weight: np.ndarray,
    gradient: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    scratch: np.ndarray,
    *,
    step: int,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    decoupled: bool,
) -> None:
    """m ← β₁ m + (1 - β₁) G, s ← β₂ s + (1 - β₂) G², then W ← W - lr m̂ / (√ŝ + ε).

    m and s begin at zero and so are too small at first: m̂ = m / (1 - β₁ᵗ) and ŝ = s / (1 - β₂ᵗ) are right from step
    t = 1 on. The division gives every weight a step of about lr, however large its gradients.

    Args:
        weight: W
        gradient: G
        mean: m, the running mean of gradients
        square: s, that of their squares
        scratch: of the same shape
        step: t, from 1
        lr: learning rate
        weight_decay: λ
        betas: β₁ and β₂
        eps: ε
        decoupled: AdamW's decay, W ← (1 - lr λ) W, which no division weakens; otherwise Adam's, G ← G + λ W
    """
    beta1, beta2 = betas
    if decoupled:
        weight *= 1 - lr * weight_decay
    elif weight_decay:
        gradient = gradient + weight_decay * weight
    mean *= beta1
    mean += np.multiply(gradient, 1 - beta1, out=scratch)
    square *= beta2
    np.multiply(gradient, gradient, out=scratch)
    scratch *= 1 - beta2
    square += scratch
    np.sqrt(square, out=scratch)
    scratch /= math.sqrt(1 - beta2**step)
    scratch += eps
    np.divide(mean, scratch, out=scratch)
    scratch *= lr / (1 - beta1**step)
    weight -= scratch


def orthogonalize(matrices: np.ndarray, steps: int = 5) -> np.ndarray:
    """The nearest matrix with orthogonal rows (or columns), nearly: U Vᵀ for U S Vᵀ, without computing U, S and V.

    X ← a X + (b A + c A²) X with A = X Xᵀ leaves U and V as they are and turns every singular value s into
    a s + b s³ + c s⁵. With these a, b, c five rounds lift all s in (0, 1], but the tiniest, to between 0.7 and 1.2.

    Args:
        matrices: (n, rows, columns)
        steps: rounds

    Returns:
        (n, rows, columns)
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.swapaxes(1, 2) if tall else matrices  # (n, r, k) with r <= k, so that A is the smaller product
    x = x / (np.sqrt(np.square(x).sum(axis=(1, 2), keepdims=True)) + 1e-7)  # then all s <= 1
    for _ in range(steps):
        gram = x @ x.swapaxes(1, 2)  # A (n, r, r)
        polynomial = gram @ gram
        polynomial *= c
        gram *= b
        polynomial += gram
        change = polynomial @ x
        x *= a
        x += change
    return x.swapaxes(1, 2) if tall else x


def muon_step(
    weights: list[np.ndarray],
    gradients: list[np.ndarray],
    means: np.ndarray,
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
) -> None:
    """m ← μ m + (1 - μ) G, then W ← (1 - lr λ) W - lr 0.2 √max(rows, columns) orthogonalize(μ m + (1 - μ) G).

    All directions of a matrix's space are learned at one speed, those too that gradients rarely point to. The update of
    an orthogonal matrix has a root mean square of 1 / √max(rows, columns); 0.2 is about that of Adam's updates, so one
    learning rate serves both.

    Args:
        weights: n matrices W of one shape, which are moved together: (rows, columns) each
        gradients: the G of each
        means: m of all, (n, rows, columns)
        lr: learning rate
        weight_decay: λ
        momentum: μ
    """
    ahead = np.stack(gradients)  # (n, rows, columns)
    ahead *= 1 - momentum
    means *= momentum
    means += ahead
    ahead += momentum * means  # Nesterov: as if the same gradient came once more
    updates = orthogonalize(ahead)
    updates *= lr * 0.2 * math.sqrt(max(means.shape[1:]))
    for weight, update in zip(weights, updates, strict=True):
        weight *= 1 - lr * weight_decay
        weight -= update


# --- the rule of every parameter


class Optimizer:
    """A rule for each of a network's parameters, and what the rules remember.

    Arguments as `make_optimizer`'s.
    """

    def __init__(
        self,
        parameters: Arrays,
        *,
        name: str,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        momentum: float,
    ) -> None:
        self.parameters, self.name, self.lr = parameters, name, lr
        self.weight_decay, self.betas, self.eps, self.momentum = weight_decay, betas, eps, momentum
        self.steps = 0
        self._stacks = self._stack_matrices()
        self._memory = self._make_memory()
        largest = max(array.size for array in parameters.values())
        self._scratch = np.empty(largest, next(iter(parameters.values())).dtype)

    def _stack_matrices(self) -> dict[str, list[str]]:
        """The names of the matrices that are Muon's, those of one shape together: `64x128` -> names."""
        stacks: dict[str, list[str]] = {}
        for name, array in self.parameters.items():
            if self.name == "muon" and array.ndim == 2 and name.startswith("blocks."):
                stacks.setdefault("{}x{}".format(*array.shape), []).append(name)
        return stacks

    def _make_memory(self) -> dict[str, Arrays]:
        """Zeros: for each stack and for each parameter outside of them the arrays that its rule keeps."""
        stacked = {name for names in self._stacks.values() for name in names}
        memory = {
            stack: {"mean": np.stack([np.zeros_like(self.parameters[name]) for name in names])}
            for stack, names in self._stacks.items()
        }
        kept = ("velocity",) if self.name == "sgd" else ("mean", "square")
        for name, array in self.parameters.items():
            if name not in stacked:
                memory[name] = {each: np.zeros_like(array) for each in kept}
        return memory

    def step(self, grads: Mapping[str, np.ndarray], lr: float | None = None) -> None:
        """Moves every parameter by its gradient.

        Args:
            grads: the gradients, by the parameters' names
            lr: the learning rate of this step
        """
        self.steps += 1
        lr = self.lr if lr is None else lr
        for name, memory in self._memory.items():
            if name in self._stacks:
                self._step_stack(self._stacks[name], grads, memory["mean"], lr)
            else:
                self._step_one(name, grads[name], memory, lr)

    def _step_stack(self, names: list[str], grads: Mapping[str, np.ndarray], means: np.ndarray, lr: float) -> None:
        weights, gradients = [self.parameters[name] for name in names], [grads[name] for name in names]
        muon_step(weights, gradients, means, lr=lr, weight_decay=self.weight_decay, momentum=self.momentum)

    def _step_one(self, name: str, gradient: np.ndarray, memory: Arrays, lr: float) -> None:
        weight = self.parameters[name]
        scratch = self._scratch[: weight.size].reshape(weight.shape)
        weight_decay = self.weight_decay if weight.ndim >= 2 else 0.0
        if self.name == "sgd":
            sgd_step(
                weight, gradient, **memory, scratch=scratch, lr=lr, weight_decay=weight_decay, momentum=self.momentum
            )
        else:
            adam_step(
                weight, gradient, **memory, scratch=scratch, step=self.steps, lr=lr, weight_decay=weight_decay,
                betas=self.betas, eps=self.eps, decoupled=self.name != "adam",
            )  # fmt: skip

    def state(self) -> Arrays:
        """What the rules remember, by `name/array`, and how many steps they have taken: the arrays themselves."""
        arrays = {f"{name}/{kept}": array for name, memory in self._memory.items() for kept, array in memory.items()}
        return {"steps": np.array(self.steps), **arrays}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from a `state`.

        Raises:
            ValueError: if it is that of another optimizer or of other parameters.
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


def make_optimizer(
    parameters: Arrays,
    *,
    name: str = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    momentum: float = 0.95,
) -> Optimizer:
    """The optimizer of a name.

    Args:
        parameters: the arrays by name, which it moves in place
        name: adamw, adam, sgd, or muon: Muon for the matrices of the blocks, AdamW for embeddings, head, norms, biases
        lr: learning rate, where `step` is given none
        weight_decay: of matrices and embeddings
        betas: of Adam
        eps: of Adam
        momentum: of SGD and Muon

    Raises:
        ValueError: for a name that is none of these.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    return Optimizer(parameters, name=name, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, momentum=momentum)


# --- before the step


def clip_gradients(grads: Mapping[str, np.ndarray], max_norm: float | None = None) -> float:
    """Scales all gradients down by one factor, in place, where their common norm exceeds `max_norm`.

    Args:
        grads: the gradients
        max_norm: the largest norm that a step may have; empty: only measure

    Returns:
        √Σ G² over all of them, as it was
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
    """The learning rate of a step: a line up from zero, then a course down to `min_lr`.

    Args:
        step: steps done before this one
        total_steps: of the whole run
        lr: the rate after warmup
        name: cosine (half a wave), linear, trapezoid (a plateau with a line at its end) or constant
        warmup_steps: how long it rises
        min_lr: where it ends
        decay_steps: of the trapezoid's last line; empty: a fifth of the run

    Raises:
        ValueError: for a name that is none of these.
    """
    if step < warmup_steps:
        return lr * (step + 1) / (warmup_steps + 1)
    done = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    last = max(total_steps // 5, 1) if decay_steps is None else max(decay_steps, 1)
    courses = {
        "cosine": 0.5 + 0.5 * math.cos(math.pi * done),
        "linear": 1.0 - done,
        "trapezoid": max(min((total_steps - step) / last, 1.0), 0.0),
        "constant": 1.0,
    }
    if name not in courses:
        raise ValueError(f"name must be one of {', '.join(courses)}, got {name!r}")
    return min_lr + (lr - min_lr) * courses[name]
