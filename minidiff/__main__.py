"""``python -m minidiff`` is ``minidiff``."""

import sys

from .experiments.cli import main

sys.exit(main())
