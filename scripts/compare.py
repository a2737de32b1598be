"""Runs `tinylm compare`."""

from command import run

if __name__ == "__main__":
    run("compare")
