"""`python -m tinylm`: the same as `tinylm`."""

import sys

from tinylm.commands import main

if __name__ == "__main__":
    sys.exit(main())
