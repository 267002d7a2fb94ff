"""The naming table of CONTRIBUTING is current, and no wrong name stands in it."""

import pytest

from tests.mistakes import table
from tests.mistakes.naming import EXERCISES, IDS


@pytest.mark.parametrize(("lesson", "exercise"), EXERCISES, ids=IDS)
def test_a_row_is_current_and_without_a_wrong_name(lesson, exercise):
    rows = [row for row in table.stored().splitlines() if f"`{exercise}`" in row]
    assert len(rows) == 1, "run: python tests/mistakes/table.py --write"
    assert rows[0].startswith(table.counts(lesson, exercise)), "run table.py --write"
    rates = [cell for cell in rows[0].split(" | ")[5:] if "/" in cell]
    assert rates and all(rate.strip(" |").endswith("/ 0") for rate in rates)


def test_a_row_can_be_measured_again():
    lesson, exercise = EXERCISES[0]
    right, none, wrong = table.naming(lesson, exercise, [99]).split(" | ")[0].strip(" |").split("/")
    assert int(right) > 0 and int(none) == int(wrong) == 0
