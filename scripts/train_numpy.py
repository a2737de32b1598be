"""Runs `tinylm train-numpy`."""

from command import run

if __name__ == "__main__":
    run("train-numpy")
