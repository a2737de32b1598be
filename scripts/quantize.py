"""Runs `tinylm quantize`."""

from command import run

if __name__ == "__main__":
    run("quantize")
