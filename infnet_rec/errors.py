"""What goes wrong in ways that a person can mend.

The command line turns a `UserError` into one message and exit code 2, a `Failure` into one message and exit code 1, a
`Refusal` into one message and exit code 3. An `Interrupted` run was asked to stop and can be continued, and one that is
`Busy` waits for another process: one message and exit code 75.
Everything else is a bug or a failure of the machine and keeps its traceback.
"""

import difflib
from collections.abc import Iterable

# EX_TEMPFAIL of sysexits.h, "try again later": what schedulers are told to put back into the queue.
TRY_AGAIN = 75


class UserError(ValueError):
    """A usage, configuration or data fault. The message names the thing, its value, the rule and the remedy."""


class CommonUserError(UserError):
    """A fault that every rank raises with the same words: rank 0 says it, and all end with exit code 2."""


class Failure(Exception):
    """A run that failed for a reason that one line says, such as a loss that is not finite; exit code 1."""


class Refusal(Exception):
    """A question that was understood and whose answer is no, such as a plan that does not fit; exit code 3."""


class Interrupted(Exception):
    """A run that a signal ended; what it did is saved. The message says how to go on; exit code 75."""


class Busy(Exception):
    """Another process does it, and has not finished: the same command works when that has ended; exit code 75."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" for the closest known word, or "" when nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
