"""Exceptions that the command line reports without a traceback."""


class UserError(ValueError):
    """Invalid input from the user: one sentence on what was wrong, where, and what would be right.

    The command line prints the sentence without a traceback and exits with status 2.
    """


class RunError(Exception):
    """Failure of a run, such as a reward that is not a number: one sentence.

    The command line prints the sentence and exits with status 1. Saved checkpoints stay.
    """


class Interrupted(Exception):  # noqa: N818 - not an error: the run is saved
    """Interruption of a run, raised after the run has saved its state.

    Attributes:
        signal: number of the signal; the command line exits with 128 + signal.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal
