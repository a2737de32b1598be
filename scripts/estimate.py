"""Runs `tinylm estimate`."""

from command import run

if __name__ == "__main__":
    run("estimate")
