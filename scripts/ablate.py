"""Runs `tinylm ablate`."""

from command import run

if __name__ == "__main__":
    run("ablate")
