"""Trains a model by NumPy alone, with every gradient derived by hand: `tinylm train-numpy --config tiny.yaml`.

It reads the YAML and flags of `tinylm fit`, trains on the same tokens in the same order from the same initial weights,
and leaves a run folder of the same form, `runs/<config>-numpy`, with NumPy archives as checkpoints. It trains the
network of tinylm.reference on the CPU; options that it lacks (lora, compile, bf16 ...) are refused by name.
"""

import os

from tinylm.commands.fit_check import check_options
from tinylm.commands.train import announced_configs, resumed_run, wants_help

HELP = """
The options are those of `tinylm fit --help`, without the Trainer's options about devices, and

  --threads N          Number of parts of a batch that are computed at a time. Default: PyTorch's number of threads
"""


def run(arguments: list[str]) -> None:
    """Trains, or prints the help."""
    if wants_help(arguments):
        print(f"usage: tinylm train-numpy -c CONFIG [--OPTION VALUE ...]\n\n{__doc__}{HELP}")
        return
    words = resumed_run([word for word in arguments if word != "--debug"], default="tiny-numpy")
    words = announced_configs(words, default="tiny")
    check_options("train-numpy", words)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is imported: the twin's own threads call BLAS

    from tinylm.commands import numpy_run

    numpy_run.run(words)
