"""Compiled candidates of benchmarks in processes of their own: given up in time, and what they say."""

from __future__ import annotations

import pytest

from benchmarks.compiled import Compiled, closing_all

GENERATOR = "tidy loop with torch.compile of generator, NCHW"


def test_it_is_given_up() -> None:
    with closing_all() as made:
        made.append(Compiled("r3gan-64", 8, GENERATOR, "cpu"))
        with pytest.raises(TimeoutError, match="did not compile in 0 s"):
            made[0].ready(0.2)
        assert made[0].process.wait(5) < 0


@pytest.mark.long
def test_it_says_why_it_does_not_work_and_steps_where_it_does() -> None:
    with closing_all() as made:
        made += [Compiled("no-such", 8, GENERATOR, "cpu"), Compiled("digits", 8, "tidy loop, NCHW", "cpu")]
        with pytest.raises(RuntimeError, match="KeyError: 'no-such'"):
            made[0].ready(300)
        assert made[1].ready(300) > 0
        made[1]()
        assert made[1].process.poll() is None
    assert made[1].process.wait(5) < 0
