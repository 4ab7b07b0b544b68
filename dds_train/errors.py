"""What went wrong on the user's side, in one line that names the input and the remedy."""


class UserError(ValueError):
    """Shown by the command line as one line, without a stack trace, with exit code 2."""
