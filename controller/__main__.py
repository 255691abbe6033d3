"""The command `iongantry`, which is also `python -m controller`: listens for Ctrl-C, then loads the command line.

Not responsible for any command (`cli`).
"""

from controller.early_end import listen


def main() -> None:
    """Entry point."""
    listen()
    from controller.cli import main as command_line  # a tenth of a second, in which nobody else would answer a signal

    command_line()


if __name__ == "__main__":
    main()
