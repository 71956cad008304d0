"""Errors that a user can mend: one line that names the thing, what was expected, what came, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FastganError(ValueError):
    """A mistake in what was asked for (flag, path, shape, file, key), not in fastgan.

    The command line prints it as one line and exits with status 2. Anything else that escapes is a bug.
    """


class UnsupportedCritic(FastganError):
    """A critic cannot be differentiated in the way that was asked for; the message says why, and where in it."""


class RankLost(Exception):
    """Another rank is gone, or did not come in time: this one cannot go on."""


class StoppedElsewhere(Exception):
    """Another rank has failed and says why; this one stops with it and has nothing to add. Str: what rank 0 prints."""


class RankFailed(Exception):
    """This rank, which is not the first, has failed with what a user can mend, and the others do not know it."""


def suggest(name: str, options: Iterable[str]) -> str:
    """End of an error line for an unknown `name`: the nearest of `options`, or all of them."""
    options = sorted(options)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; expected one of {', '.join(options)}"
