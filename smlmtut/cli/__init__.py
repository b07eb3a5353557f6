"""The command `smlmtut`; `main` holds its commands. This file imports nothing, so that `smlmtut --help` is quick."""
