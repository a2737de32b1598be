"""Runs `tinylm scaling`."""

from command import run

if __name__ == "__main__":
    run("scaling")
