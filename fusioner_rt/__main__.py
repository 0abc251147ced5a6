"""`python -m fusioner_rt` is `fusioner-rt`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
