"""Trains a model, or evaluates one: `python scripts/train.py fit --config small.yaml`."""

import sys

from tinylm.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
