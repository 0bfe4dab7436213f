"""`python -m rlhf`."""

from rlhf.cli import main

if __name__ == "__main__":
    main()
