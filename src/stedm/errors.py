"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A mistake in the user's input: one clear line naming the file, row or key, and the fix.

    The command line prints the message without a traceback and exits with code 2. Raise it before anything is
    written, so that nothing half-made is left behind.
    """


class Stopped(UserError):
    """Not a mistake in the input: the machine stopped the work (a full disk, a dead process).

    What is done is kept, and the same command continues once the cause is gone.
    """


class SharedError(UserError):
    """A UserError that every process of a command meets at the same place: the first one says it."""
