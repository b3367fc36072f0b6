"""The one error class for mistakes that a user can mend; the command line prints it without a traceback."""


class UserError(ValueError):
    """A mistake the user can mend. Its message says what was given, what is allowed and what to do."""
