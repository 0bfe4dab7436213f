"""The errors that are meant for the person at the keyboard: a fault to put right, and an end that was asked for."""


class UserError(Exception):
    """Something that the user can put right.

    The message names what is wrong, which file, row or key it is about, and the remedy. The
    command line prints it without a traceback and exits with code 2.
    """


class RunInterruptedError(Exception):
    """A run that a signal asked to end, and that has saved all its work.

    The command line prints the message and exits with `EXIT_CODE`, so that a supervisor starts the command again.
    """

    EXIT_CODE = 75
    """EX_TEMPFAIL of sysexits.h: a temporary failure, try again."""
