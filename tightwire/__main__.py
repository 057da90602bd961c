"""`python -m tightwire` is the command `tightwire`."""

from tightwire.cli import main

main()
