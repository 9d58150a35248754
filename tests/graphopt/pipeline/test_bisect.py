import pytest

from graphopt.context import Edit
from graphopt.pipeline.bisect import MOST, guilty_edits

EDITS = [Edit("Rule", f"node_{k}") for k in range(40)]


def attempt_with(bad, log=None):
    def attempt(allow):
        made = [e for e in EDITS if allow(e)]
        if log is not None:
            log.append(len(made))
        return made, not any(e in bad for e in made)

    return attempt


@pytest.mark.parametrize("bad", [[0], [39], [7], [3, 21], [0, 1, 2, 39]])
def test_finds_every_guilty_edit_and_no_other(bad):
    guilty = [EDITS[k] for k in bad]
    assert sorted(guilty_edits(EDITS, attempt_with(guilty)), key=EDITS.index) == guilty


def test_takes_about_log2_runs_for_one():
    log = []
    guilty_edits(EDITS, attempt_with([EDITS[17]], log))
    assert len(log) <= 9  # the empty run, 6 halvings, the final run


def test_gives_up_when_no_edit_is_at_fault():
    assert guilty_edits(EDITS, lambda allow: (EDITS, False)) is None


def test_gives_up_on_a_rule_that_is_wrong_everywhere():
    assert len(EDITS) > MOST
    assert guilty_edits(EDITS, attempt_with(EDITS)) is None
