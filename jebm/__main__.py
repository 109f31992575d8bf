"""``python -m jebm`` is the command ``jebm``."""

import sys

from jebm.cli import main

sys.exit(main())
