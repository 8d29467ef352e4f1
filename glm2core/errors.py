"""The one error that is shown to a user as a sentence, without a traceback."""


class UserError(ValueError):
    """Something the user can mend: names the place, the value, the rule and the fix."""
