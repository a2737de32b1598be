"""Runs `tinylm analyze`."""

from command import run

if __name__ == "__main__":
    run("analyze")
