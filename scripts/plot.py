"""Runs `tinylm plot`."""

from command import run

if __name__ == "__main__":
    run("plot")
