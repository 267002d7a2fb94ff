"""Record formats: what each becomes, and what is refused in one sentence."""

import pytest

from helpers.data import to_preference

PAIR = {"prompt": "2 + 2?", "response_0": "5", "response_1": "4"}


@pytest.mark.parametrize("better, chosen", [(0, "5"), (1, "4"), ("0", "5"), ("1", "4")])
def test_the_better_response_is_chosen(better, chosen):
    pair = to_preference({**PAIR, "better_response_id": better})
    rejected = {"5": "4", "4": "5"}[chosen]
    assert pair == {"prompt": "2 + 2?", "chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize("better", [True, False, 2, -1, 1.0, "2", "", "true", None, [1]])
def test_another_id_is_refused_in_a_sentence(better):
    with pytest.raises(ValueError, match="better_response_id holds .*, not 0 or 1"):
        to_preference({**PAIR, "better_response_id": better})


@pytest.mark.parametrize("field", ["prompt", "response_0", "response_1", "better_response_id"])
def test_a_missing_field_is_named(field):
    record = {**PAIR, "better_response_id": 0}
    del record[field]
    with pytest.raises(ValueError, match=f"the field {field} is missing"):
        to_preference(record)
