"""`python -m smlmtut` is the command `smlmtut`; so `accelerate launch -m smlmtut train …` works."""

import sys

from .cli.main import app

sys.exit(app())
