"""Runs `tinylm prepare`."""

from command import run

if __name__ == "__main__":
    run("prepare")
