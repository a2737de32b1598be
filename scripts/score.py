"""Runs `tinylm score`."""

from command import run

if __name__ == "__main__":
    run("score")
