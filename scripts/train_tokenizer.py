"""Runs `tinylm tokenizer`."""

from command import run

if __name__ == "__main__":
    run("tokenizer")
