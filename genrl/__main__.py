"""`python -m genrl`."""

import sys

from genrl.cli import main

if __name__ == "__main__":
    sys.exit(main())
