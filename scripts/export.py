"""Runs `tinylm export`."""

from command import run

if __name__ == "__main__":
    run("export")
