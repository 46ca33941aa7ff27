"""The one exception that means "the user can fix this"."""


class UserError(ValueError):
    """A mistake in what the user gave: one sentence that says what, where, and what would be right.

    The command line prints the sentence without a traceback and exits with status 2.
    """
