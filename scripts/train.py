"""The same as `tinylm`: `python scripts/train.py fit --config small.yaml`."""

from command import run

if __name__ == "__main__":
    run()
