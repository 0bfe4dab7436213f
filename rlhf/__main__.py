"""`python -m rlhf`."""

from rlhf.commands.cli import main

if __name__ == "__main__":
    main()
