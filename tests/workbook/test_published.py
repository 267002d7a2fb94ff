"""The published figures: well formed, each shown by its lessons, and the table beside them."""

import pytest

from workbook.hints import CourseFileError
from workbook.progress import course_root
from workbook.published import (
    Figure,
    comparison_table,
    number_text,
    own_value,
    project_name,
    published,
    published_figures,
    published_group,
)
from workbook.recorded import read_recorded


def lesson_source(lesson):
    found = sorted((course_root() / "solutions").glob(f"{lesson}_*.py"))
    assert found, f"published.yaml names lesson {lesson}, which has no source"
    return found[0].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", published_figures())
def test_every_entry_is_shown_by_each_lesson_that_it_names(name):
    entry = published(name)
    for lesson in entry.lessons:
        source = lesson_source(lesson)
        shown = f'"{name}"' in source or f'"{name.rpartition(".")[0]}"' in source  # or its group
        assert shown, f"lesson {lesson} does not show {name}"
    assert name.startswith(entry.project.lower() + ".") and project_name(entry.project)


def test_the_baseline_is_the_published_one():
    assert published("s0.num_examples").value == 1319
    assert round(published("s0.format_rate").value * 1319) == 33
    assert round(published("s0.accuracy").value * 1319) == 5
    assert published("s0.accuracy").source == "S0, row 11"


def test_figures_that_belong_together_come_by_their_last_name():
    counts = published_group("s4.alpaca_7b")
    assert counts["worse_worse_than_better_count"].value == 2017
    with pytest.raises(CourseFileError, match="s4.alpaca_9b"):
        published_group("s4.alpaca_9b")


def test_an_unknown_id_lists_the_known_ones():
    with pytest.raises(CourseFileError, match="s0.accuracy"):
        published("s0.acuracy")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.025018, "share", "2.5 %"),
        (0.0037907, "share", "0.38 %"),
        (0.0, "share", "0.0 %"),
        (1319, "count", "1,319"),
        (0.4454, "score", "0.445"),
        (None, "share", "–"),
    ],
)
def test_numbers_are_written_by_their_unit(value, unit, text):
    assert number_text(value, unit) == text


def test_the_table_puts_own_numbers_beside_the_published(tmp_path, monkeypatch):
    recorded = tmp_path / "solutions" / "recorded" / "01.json"
    recorded.parent.mkdir(parents=True)
    recorded.write_text('{"strict_format_rate": 0.04}', encoding="utf-8")
    monkeypatch.setenv("WORKBOOK_ROOT", str(tmp_path))
    shown = comparison_table("01", {"strict_format_rate": 0.05}, ["s0.format_rate", "s0.accuracy"])
    assert shown.rows[0][1:] == ("S0, row 11", "2.5 %", "4.0 %", "5.0 %")
    assert shown.rows[1][3:] == ("–", "–")
    assert "S0: SFT, GRPO and DPO" in repr(shown)
    assert shown._repr_html_().count("<tr>") == 3
    assert len(comparison_table("01", {}).rows) == len(published_figures("01"))


def test_two_published_numbers_are_a_range_or_two_measures():
    assert published("s2.base_accuracy").text == "60.0 % to 65.0 %"
    assert published("s1.methods.base").text == "0.445 and 0.411"


def test_own_numbers_are_found_under_keys_of_keys():
    findings = {"accuracy": 0.5, "seeds": [0.4, 0.6], "P2 8 0.02": {"mean only": {"f1": 0.25}}}
    path = ["P2 8 0.02", "mean only", "f1"]
    assert own_value(findings, path) == 0.25 == own_value({"a": {"b": 0.25}}, "a.b")
    assert own_value(findings, ["seeds", 1]) == 0.6 and own_value({"3": [7]}, [3, 0]) == 7
    assert own_value(findings, [["accuracy"], path]) == [0.5, 0.25]
    assert own_value(findings, [["accuracy"], ["methods", "dpo"]]) is None
    for missing in (None, "other", "methods.dpo.f1", "accuracy.f1", ["seeds", 2], ["seeds", "f1"]):
        assert own_value(findings, missing) is None


def test_own_text_shows_seeds_pairs_and_names_of_ours():
    def own_text(findings, **changes):
        return published("s0.accuracy").model_copy(update=changes).own_text(findings)

    findings = {"a": [0.4, 0.6], "b": 0.5}
    assert own_text(findings, finding="a") == "40.0 %, 60.0 %" and own_text({}) == "–"
    assert own_text(findings, finding=[["b"], ["b"]], is_pair=True) == "50.0 % and 50.0 %"
    two = {"main run": "a", "other": ["b"], "not there": "c"}
    assert own_text(findings, finding=two) == "40.0 %, 60.0 % (main run); 50.0 % (other)"
    assert own_text({}, finding=two) == "–"
    assert own_text(findings, finding=None, absent="not run here") == "not run here"


@pytest.mark.parametrize("name", published_figures())
def test_every_finding_is_in_the_recorded_findings_and_beside_them_stand_numbers(name):
    entry = published(name)
    for lesson in [entry.found_in] if entry.found_in else entry.lessons:
        assert entry.own_text(read_recorded(lesson)) != "–", "no such path in solutions/recorded"


def test_final_and_best_of_grpo_are_of_runs_that_are_named():
    recorded = read_recorded("05")
    final, best = (published(f"s0.grpo.grpo.{end}").own_text(recorded) for end in ("final", "best"))
    assert final.count("(main run)") == final.count("(ablation run)") == 1
    assert best.endswith("(ablation run)") and best != final
    runs = recorded["ablations"]["GRPO"]
    assert all(a >= b for a, b in zip(runs["best"], runs["final"], strict=True))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"finding": None}, "either finding or absent"),
        ({"absent": "not run here"}, "either finding or absent"),
        ({"lessons": ["01", "02"]}, "found_in"),
    ],
)
def test_an_entry_says_what_stands_beside_it_or_why_nothing_does(changes, says):
    with pytest.raises(ValueError, match=says):
        Figure.model_validate(published("s0.accuracy").model_dump() | changes)


def test_a_table_leaves_out_what_another_lesson_measures():
    measured = [row[0] for row in comparison_table("07", {}).rows]
    assert "SubEM and F1, open-book questions, after DPO" in measured
    assert not any("beta" in name for name in measured)
