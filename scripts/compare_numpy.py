"""Runs `tinylm compare-numpy`."""

from command import run

if __name__ == "__main__":
    run("compare-numpy")
