"""The command `smlmtut`. This file loads nothing, so that `smlmtut --help` is quick; `main` holds the commands."""
