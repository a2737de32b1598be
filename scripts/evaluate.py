"""Runs `tinylm evaluate`."""

from command import run

if __name__ == "__main__":
    run("evaluate")
