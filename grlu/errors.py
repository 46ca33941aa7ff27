"""The one exception that means "the user can fix this"."""


class UserError(ValueError):
    """A mistake in what the user gave: one sentence that says what, where, and what would be right.

    The command line prints the sentence without a traceback and exits with status 2.
    """


class RunError(Exception):
    """A run that cannot go on, such as one whose reward is not a number: one sentence.

    The command line prints it and exits with status 1. What was saved before stays.
    """


class Interrupted(Exception):  # noqa: N818 - not an error: the run is saved
    """A run that was asked to stop, and has saved its state.

    Attributes:
        signal: number of the signal; the command line exits with 128 + signal.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal
