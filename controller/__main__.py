"""`python -m controller` is the command `iongantry`."""

from controller.cli import main

main()
