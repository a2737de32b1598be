"""Runs `tinylm`, as in `python scripts/train.py fit --config small.yaml`."""

from command import run

if __name__ == "__main__":
    run()
