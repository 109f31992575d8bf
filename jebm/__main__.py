"""``python -m jebm`` is the command ``jebm``."""

import sys

from jebm.commands.main import main

sys.exit(main())
