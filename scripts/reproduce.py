"""Runs `tinylm reproduce`."""

from command import run

if __name__ == "__main__":
    run("reproduce")
