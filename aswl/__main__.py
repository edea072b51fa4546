"""python -m aswl, and torchrun -m aswl."""

import sys

from aswl.cli import main

sys.exit(main())
