"""The one error that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something that the user can put right.

    The message names what is wrong, which file, row or key it is about, and the remedy. The
    command line prints it without a traceback and exits with code 2.
    """
