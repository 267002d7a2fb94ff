"""The failure browser: choosing, stepping, safe text, and the static table under it."""

import pytest

from workbook.widgets import FailureBrowser, static_table


def row(category, generation="so it is <b>18</b>", gold="18"):
    return {
        "prompt": "How many eggs?", "generation": generation, "response_for_grader": None,
        "gold_answer": gold, "metrics": {"format_reward": 0.0, "reward": 0.0}, "lenient": True,
        "failure_category": category, "token_count": 7, "finish_reason": "eos",
    }


ROWS = [row("no format"), row("wrong"), row("no format", "second")]


def test_categories_are_counted_and_choosing_one_narrows_the_samples():
    browser = FailureBrowser(ROWS)
    assert [label for label, _ in browser.category.options] == [
        "all samples (3)", "no format (2)", "wrong (1)"
    ]
    browser.place.value = 3
    browser.category.value = "no format"
    assert (browser.place.value, browser.place.max) == (1, 2)
    browser.category.value = "wrong"
    assert browser.place.max == 1 and browser.next.disabled and browser.previous.disabled


def test_buttons_step_and_stop_at_both_ends():
    browser = FailureBrowser(ROWS)
    assert browser.previous.disabled
    for _ in range(5):
        browser.next.click()
    assert browser.place.value == 3 and browser.next.disabled
    assert "second" in browser.sample.value
    browser.previous.click()
    assert browser.place.value == 2


def test_a_generation_cannot_inject_html():
    browser = FailureBrowser(ROWS)
    assert "<b>18</b>" not in browser.sample.value + static_table(ROWS)
    assert "&lt;b&gt;18&lt;/b&gt;" in browser.sample.value


def test_the_static_table_shows_each_category_with_its_count():
    text = static_table(ROWS)
    assert "no format<br>2 of 3" in text and "wrong<br>1 of 3" in text
    assert text.count("<tr>") == 3  # the head and one sample a category


def test_no_rows_is_said():
    with pytest.raises(ValueError, match="run the evaluation first"):
        FailureBrowser([])
