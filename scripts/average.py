"""Runs `tinylm average`."""

from command import run

if __name__ == "__main__":
    run("average")
