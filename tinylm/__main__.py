"""Lets `python -m tinylm` run the `tinylm` command."""

import sys

from tinylm.commands import main

if __name__ == "__main__":
    sys.exit(main())
