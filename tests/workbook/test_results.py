"""The tables of published and own figures: complete, and equal to what is made from the records."""

import re

import pytest

from workbook import results
from workbook.published import published_figures


def test_the_page_and_the_readmes_are_what_the_records_give():
    assert results.PAGE.read_text(encoding="utf-8") == results.results_page()
    for readme in results.READMES:
        text = readme.read_text(encoding="utf-8")
        assert results.with_table(text) == text, "run `python3 -m workbook results`"


def shape(path):
    """What two languages of one page share: headings, table rows, commands, links, in order."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.S)
    return {
        "headings": [line.split()[0] for line in text.splitlines() if line.startswith("#")],
        "columns": [line.count("|") for line in text.splitlines() if line.startswith("|")],
        "blocks": [re.sub(r" +#.*", "", block) for block in blocks],
        "code": sorted(set(re.findall(r"`[^`\n]+`", text.replace("```", "")))),
        "links": re.findall(r"\]\(((?!README)[^)]+)\)", text),
    }


def test_both_languages_have_the_same_parts():
    english, chinese = map(shape, results.READMES)
    assert english == chinese


def test_the_page_has_every_published_figure_once_a_lesson():
    page = results.results_page()
    rows = [line for line in page.splitlines() if line.startswith("| 0")]
    assert len(rows) == sum(len(entry.lessons) for entry in published_figures().values())
    assert len(set(rows)) == len(rows)


def test_each_row_of_ours_has_its_command_and_the_others_say_why():
    for line in [*results.results_page().splitlines(), *results.readme_table().splitlines()]:
        if line.startswith("| 0"):
            lesson, *_, own, command = line.strip("| ").split(" | ")
            at = re.search(r"\(lesson (\d\d)\)", own)
            run = f"`python3 -m workbook run {at[1] if at else lesson} --depth full`"
            assert command == run if re.search(r"\d", command) else own.startswith("not "), line


def test_the_readme_is_shorter_and_of_each_lesson():
    rows = [line for line in results.readme_table().splitlines() if line.startswith("| 0")]
    assert {row[2:4] for row in rows} == {f"0{k}" for k in range(1, 8)} and len(rows) < 40
    assert not any("Alpaca" in row or "beta" in row for row in rows)


def test_a_figure_of_ours_stands_beside_the_published_one():
    rows = [line for line in results.readme_table().splitlines() if "S4, row 64" in line]
    assert len(rows) == 2 and all(row.split(" | ")[4].endswith("%") for row in rows)


def test_a_readme_without_the_marks_is_refused():
    with pytest.raises(ValueError, match="results: begin"):
        results.with_table("# Nothing here")
