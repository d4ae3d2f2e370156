"""``python -m minidiff`` is ``minidiff``."""

import sys

from .cli.parser import main

sys.exit(main())
