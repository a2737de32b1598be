"""Trains a model by NumPy alone, every gradient by hand: `tinylm train-numpy --config tiny.yaml`.

The same YAML and flags as `tinylm fit`, the same tokens in the same order, the same weights to begin with, and a run
folder of the same shape, `runs/<config>-numpy`, whose checkpoints are NumPy archives. What learns is the network of
tinylm.reference, on one processor; what it does not know (lora, compile, bf16 ...) is refused by name.
"""

import os

from tinylm.commands.train import announced_configs, wants_help

HELP = """
Its options are those of `tinylm fit --help`, but for the Trainer's that are about devices, and

  --threads N          Parts of a batch that are computed at a time (as PyTorch takes)
"""


def run(arguments: list[str]) -> None:
    """Trains, or prints the help."""
    if wants_help(arguments):
        print(f"usage: tinylm train-numpy -c CONFIG [--OPTION VALUE ...]\n\n{__doc__}{HELP}")
        return
    words = announced_configs([word for word in arguments if word != "--debug"], default="tiny")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is imported: the twin's own threads call it

    from tinylm.commands import numpy_run

    numpy_run.run(words)
