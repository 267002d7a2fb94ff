"""Records of every shape that people report: read right, or named; none is lost in silence."""

import json
from itertools import permutations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.data import load_records
from helpers.data.conversion import unread_fields
from helpers.data.open_book import negatives
from helpers.data.registry import load_registered
from helpers.data.sampled import labelled_responses, on_policy_pairs

USER, FOUR, FIVE = ({"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"},
                    {"role": "assistant", "content": "5"})


def loaded(tmp_path, *records, **options):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return load_records(path, **options)


def sampled(key, text, reward, **more):
    return {"id": key, "prompt": f"p{key}", "generation": text, "finish_reason": "eos",
            "metrics": {"reward": reward}, **more}


# ---------------------------------------------------------------- groups


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_pairs_and_labels_do_not_depend_on_the_order_of_the_rows(order):
    rows = [sampled(0, " a", 1.0), sampled(0, " b", 0.0), sampled(1, " c", 0.0),
            sampled(1, " d", 1.0)]
    pairs, dropped = on_policy_pairs([rows[place] for place in order])
    assert {(p["prompt"], p["chosen"], p["rejected"]) for p in pairs} == {
        ("p0", " a", " b"), ("p1", " d", " c")}
    labels, _ = labelled_responses([rows[place] for place in order])
    assert not dropped and len(labels) == 4


def test_most_is_counted_per_prompt_wherever_its_rows_stand():
    rows = [sampled(key, f" {k}", 1.0) for k in range(3) for key in "xy"]
    labels, dropped = labelled_responses(rows, most=2)
    assert [record["prompt"] for record in labels] == ["px", "px", "py", "py"]
    assert dropped == {"not needed": 2}


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), None])
def test_a_response_without_a_reward_is_neither_best_nor_worst(reward):
    for place in range(3):
        rows = [sampled(0, " good", 1.0), sampled(0, " bad", 0.0)]
        rows.insert(place, sampled(0, " unknown", reward))
        pairs, dropped = on_policy_pairs(rows)
        assert [(p["chosen"], p["rejected"]) for p in pairs] == [(" good", " bad")]
        assert dropped == {"no reward": 1}
        labels, dropped = labelled_responses(rows)
        assert [record["completion"] for record in labels] == [" good", " bad"]
        assert dropped == {"no reward": 1}


def test_negatives_in_any_order_and_without_rewards():
    def wrong(key, text, *rewards):
        return {"id": key, "prompt": f"p{key}", "generation": text, "finish_reason": "eos",
                "metrics": dict(zip(("answer_reward", "reward"), rewards, strict=True))}

    rows = [wrong(0, "x", 0.0, 0.0), wrong(1, "y", 0.0, 0.0), wrong(0, "z", 0.0, 0.0),
            wrong(1, "n", None, None), wrong(1, "m", float("nan"), 0.0), wrong(1, "r", 1.0, 1.0)]
    for some in (rows, rows[::-1]):
        pairs, dropped = negatives(some, {0: "good", 1: "fine"}, most=2)
        assert sorted((p["chosen"], p["rejected"]) for p in pairs) == [
            ("fine", "y"), ("good", "x"), ("good", "z")]
        assert dropped == {"no reward": 2, "right": 1}
    with pytest.raises(ValueError, match="targets has no response for the question 1"):
        negatives(rows, {0: "good"})


# ---------------------------------------------------------------- system turns


@pytest.mark.parametrize("empty", ["", "  \n", None])
def test_an_empty_system_turn_is_no_system_turn(tmp_path, empty):
    chat = [{"role": "system", "content": empty}, USER, FOUR]
    data, report = loaded(tmp_path, {"messages": chat}, {"messages": chat[1:]})
    assert report.num_bad == 0 and data["turns"][:] == [[USER], [USER]]
    sharegpt = [{"from": "system", "value": empty}, {"from": "human", "value": "2 + 2?"}]
    data, report = loaded(tmp_path, {"conversations": sharegpt, "chosen": {
        "from": "gpt", "value": "4"}, "rejected": {"from": "gpt", "value": "5"}})
    assert report.num_bad == 0 and data[0]["turns"] == [USER]


def test_nothing_but_an_empty_system_turn_is_a_bad_record(tmp_path):
    with pytest.raises(ValueError, match="no user's turn stands before the answer"):
        loaded(tmp_path, {"messages": [{"role": "system", "content": ""}]})


# ---------------------------------------------------------------- answers of SQuAD


def test_answers_in_the_form_of_squad_are_gold_answers(tmp_path):
    answers = {"text": ["Arlo", "in Arlo"], "answer_start": [17, 14]}
    record = {"id": "56be", "title": "Luben", "question": "Where?", "context": "He was in Arlo."}
    none = {"text": [], "answer_start": []}
    data, report = loaded(tmp_path, record | {"answers": answers}, record | {"answers": none})
    assert data[0] == {"id": "56be", "question": "Where?", "passages": ["He was in Arlo."],
                       "answers": ["Arlo", "in Arlo"]}
    assert report.bad_by_kind == {"wrong_gold": 1} and "a.jsonl:2: the field answers holds no" in (
        report.problems[0])
    assert unread_fields(record | {"answers": answers}, "squad") == [
        "id", "title", "answers.answer_start"]


def test_scored_answers_without_pm_score_are_no_gold_answers(tmp_path):
    with pytest.raises(ValueError) as raised:
        loaded(tmp_path, {"question": "q", "answers": [{"text": "a", "score": 3}]})
    sentence = str(raised.value)
    assert "fields of stack_exchange and closed_book, but other values" in sentence
    assert "\n" not in sentence


# ---------------------------------------------------------------- pairs as lists of turns


@pytest.mark.parametrize("prompt", [None, "", "2 + 2?", [USER], " 2 + 2?\n"])
def test_pairs_of_whole_conversations(tmp_path, prompt):
    data, _ = loaded(tmp_path, {"prompt": prompt, "chosen": [USER, FOUR], "rejected": [USER, FIVE]})
    assert (data[0]["turns"], data[0]["chosen"], data[0]["rejected"]) == ([USER], "4", "5")


@pytest.mark.parametrize("prompt", ["2 + 2?", [USER]])
def test_pairs_of_last_turns_behind_a_prompt(tmp_path, prompt):
    data, _ = loaded(tmp_path, {"prompt": prompt, "chosen": [FOUR], "rejected": [FIVE]})
    assert data[0]["turns"] == [USER] and data[0]["prompt"] == "2 + 2?"


@pytest.mark.parametrize("record, sentence", [
    ({"chosen": [USER, FOUR], "rejected": [{**USER, "content": "?"}, FIVE]}, "differ before"),
    ({"prompt": "3 + 3?", "chosen": [USER, FOUR], "rejected": [USER, FIVE]}, "field prompt holds"),
    ({"chosen": [FOUR], "rejected": [FIVE]}, "no user's turn"),
    ({"chosen": [USER], "rejected": [USER]}, "ends with the turn of user"),
])
def test_other_pairs_of_turns_are_named(tmp_path, record, sentence):
    with pytest.raises(ValueError, match=sentence):
        loaded(tmp_path, record)


def test_a_completion_is_not_dropped_from_its_prompt(tmp_path):
    data, report = loaded(tmp_path, {"prompt": "2 + 2?", "completion": "4"})
    assert report.format == "prompt_completion" and data[0]["response"] == "4"


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("score", ["NaN", "Infinity", "-Infinity", "1e999", '"7"', "null"])
def test_no_score_that_is_no_number_decides_a_pair(tmp_path, score):
    path = tmp_path / "a.jsonl"
    answers = ", ".join(f'{{"text": "{name}", "pm_score": {value}, "selected": false}}'
                        for name, value in (("a", 1), ("b", score), ("c", 2)))
    path.write_text(f'{{"question": "q",\t"answers": [{answers}]}}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="a.jsonl:1: ") as raised:
        load_records(path, format="stack_exchange")
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------- what would be lost without a word


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("turns", [
    [USER, SYSTEM, USER, FOUR],  # the chat template of transcripts would glue it to the question
    [SYSTEM, {**SYSTEM, "content": "Be kind."}, USER, FOUR],
])
def test_a_system_turn_stands_first_or_is_named(tmp_path, turns):
    data, report = loaded(tmp_path, {"messages": turns}, {"messages": [SYSTEM, USER, FOUR]})
    assert len(data) == 1 and report.num_bad == 1
    assert "a.jsonl:1: a system turn stands behind another turn" in report.problems[0]


@pytest.mark.parametrize("call", [{"tool_calls": [{"function": {"name": "add"}}]},
                                  {"function_call": {"name": "add"}}])
def test_a_call_of_a_tool_is_not_taught_as_its_text_alone(tmp_path, call):
    data, report = loaded(tmp_path, {"messages": [USER, {**FOUR, **call}]},
                          {"messages": [USER, {**FOUR, "tool_calls": None}]})
    assert data["response"][:] == ["4"]
    assert f"a turn holds {list(call)[0]}" in report.problems[0]


def test_a_column_of_parquet_that_stands_twice_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["z"])],
                                        names=["prompt", "response", "prompt"]), path)
    with pytest.raises(ValueError, match="the column 'prompt' stands twice"):
        load_records(path)


def test_a_column_of_a_registry_that_no_record_has_is_told(tmp_path):
    registry = tmp_path / "info.json"
    columns = {"prompt": "instruction", "query": "inptu", "response": "output"}
    registry.write_text(json.dumps({"x": {"file_name": "a.json", "columns": columns}}))
    (tmp_path / "a.json").write_text('[{"instruction": "i", "input": "n", "output": "o"}]')
    _, report = load_registered("x", registry)
    assert "no record has the column 'inptu'" in report.notes[0]
    registry.write_text(registry.read_text().replace("inptu", "input"))
    data, report = load_registered("x", registry)
    assert data[0]["prompt"] == "i\nn" and report.notes == []


def test_a_file_that_is_given_twice_is_told(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n')
    data, report = load_records([path, f"{tmp_path}/./a.jsonl"])
    assert len(set(data["id"])) == 2 and "given twice" in report.notes[0]


def test_records_that_stand_deeper_are_named_for_what_they_are(tmp_path):
    article = {"title": "T", "paragraphs": [{"context": "c", "qas": []}]}
    (tmp_path / "a.json").write_text(json.dumps({"version": "2.0", "data": [article]}))
    with pytest.raises(ValueError, match="SQuAD's original file"):
        load_records(tmp_path / "a.json")
    with pytest.raises(ValueError, match="stands in its field 'row'"):
        loaded(tmp_path, {"row_idx": 0, "row": {"prompt": "a", "response": "b"}})
