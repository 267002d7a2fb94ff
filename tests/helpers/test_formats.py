"""Record formats: what each becomes, and what is refused in one sentence."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.data import conversation, load_records, to_preference
from helpers.data.conversation import Template, register_template, with_prompt
from helpers.data.conversion import TARGETS, unread_fields, write_record
from helpers.data.fields import BadRecord
from helpers.data.files import write_records
from helpers.data.formats import COLUMNS, FORMATS, examples, format_of

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


# ---------------------------------------------------------------- every format

HELLO = [{"role": "user", "content": "Hi!"}]
ROWS = {  # the first example of each format, by hand
    "gsm8k": {"gold_answer": "42"},
    "nq_open": {"passages": [], "answers": ["Ida Bloom", "Bloom"]},
    "qa": {"answers": ["Arlo", "in Arlo"], "passages": ["Luben studied in Arlo.",
                                                        "Ana keeps a cat."]},
    "squad": {"passages": ["Luben studied in Arlo."], "answers": ["Arlo", "in Arlo"]},
    "closed_book": {"passages": [], "answers": ["Ida Bloom", "Bloom"]},
    "messages_preference": {"prompt": "What is 2 + 2?", "chosen": "4", "rejected": "5"},
    "prompt_completion": {"prompt": "Say hello.", "response": "Hello!"},
    "prompt_response": {"prompt": "Say hello.", "response": "Hello!"},
    "prompt_answer": {"prompt": "Say hello.", "response": "Hello!"},
    "prompt": {"prompt": "Say hello."},
    "alpaca": {"prompt": "Translate into German.\nGood morning.", "response": "Guten Morgen."},
    "alpaca_preference": {"prompt": "What is 2 + 2?", "chosen": "4", "rejected": "5"},
    "alpaca_unpaired": {"prompt": "What is 2 + 2?", "completion": "4", "label": True},
    "messages": {"prompt": "What is 2 + 2?", "response": "4",
                 "turns": [{"role": "user", "content": "What is 2 + 2?"}]},
    "sharegpt": {"prompt": "What is 2 + 2?", "response": "4"},
    "sharegpt_preference": {"prompt": "What is 2 + 2?", "chosen": "4", "rejected": "5"},
    "prompt_chosen_rejected": {"prompt": "What is 2 + 2?", "chosen": "4", "rejected": "5"},
    "prompt_chosen_response": {"prompt": "What is 2 + 2?", "chosen": "4", "rejected": "5"},
    "better_response_id": {"prompt": "What is 2 + 2?", "chosen": "4", "rejected": "5"},
    "unpaired": {"prompt": "What is 2 + 2?", "completion": "4", "label": True},
    "hh_rlhf": {"prompt": "\n\nHuman: What is 2 + 2?\n\nAssistant:", "chosen": " 4",
                "rejected": " 5"},
    "shp": {"prompt": "How do I boil rice?", "chosen": "With twice as much water.",
            "rejected": "Buy bread."},
    "stack_exchange": {"prompt": "How do I sort a list?", "chosen": "Use sorted.",
                       "rejected": "By hand."},
}


def test_every_format_has_two_examples():
    assert set(examples()) == set(FORMATS) == set(ROWS)
    assert all(len(example["records"]) == 2 for example in examples().values())


@pytest.mark.parametrize("name", FORMATS)
def test_the_examples_are_recognised_and_become_their_columns(tmp_path, name):
    records = examples()[name]["records"]
    assert [format_of(record) for record in records] == [name, name]
    write_records(tmp_path / "a.jsonl", records)
    data, report = load_records(tmp_path / "a.jsonl")
    assert (report.format, report.num_records, report.num_bad) == (name, 2, 0)
    assert set(data.column_names) - {"turns"} == {"id", *COLUMNS[FORMATS[name].kind]}
    assert {key: data[0][key] for key in ROWS[name]} == ROWS[name]


def turns(*texts: str) -> list[dict]:
    roles = ("user", "assistant") * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


BAD = [
    ("hh_rlhf", {"chosen": "Hello", "rejected": "Ho"}, "does not read"),
    ("hh_rlhf", {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
                 "rejected": "\n\nHuman: a\n\nAssistant: x\n\nHuman: c\n\nAssistant: e"},
     "differ before their last turn"),
    ("hh_rlhf", {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c",
                 "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: d"},
     "ends with the turn of user"),
    ("hh_rlhf", {"chosen": "\n\nHuman: a\n\nAssistant: b",
                 "rejected": "\n\nHuman: a\n\nAssistant:"}, "the field rejected is empty"),
    ("hh_rlhf", {"chosen": "\n\nAssistant: a\n\nAssistant: b",
                 "rejected": "\n\nAssistant: a\n\nAssistant: c"}, "no user's turn"),
    ("shp", {"history": "a", "human_ref_A": "b", "human_ref_B": "c", "labels": 2}, "not 0 or 1"),
    ("stack_exchange", {"question": "a", "answers": [{"text": "b"}]}, "pm_score"),
    ("stack_exchange", {"question": "a", "answers": [
        {"text": "b", "pm_score": 1, "selected": True}]}, "1 answers have one pm_score"),
    ("stack_exchange", {"question": "<![a[", "answers": [
        {"text": "b", "pm_score": 1, "selected": True},
        {"text": "c", "pm_score": 2, "selected": True}]}, "broken HTML"),
    ("prompt_chosen_rejected", {"prompt": "a", "chosen": "b", "rejected": "b"}, "the same text"),
    ("unpaired", {"prompt": "a", "completion": "b", "label": "yes"}, "'yes', not 0 or 1"),
    ("messages", {"messages": []}, "not a list of turns"),
    ("messages", {"messages": turns("Hi!")}, "ends with the turn of user"),
    ("messages", {"messages": turns("Hi!", "Hi.")[1:]}, "no user's turn"),
    ("messages", {"messages": [{"role": "tool", "content": "x"}]}, "the role 'tool'"),
    ("messages", {"messages": [*turns("Hi!"), {"role": "assistant", "content": None}]}, "'None'"),
    ("messages", {"messages": [{"role": None, "content": "x"}]}, "the role 'None'"),
    ("messages", {"messages": [None]}, "is no turn"),
    ("sharegpt", {"conversations": [{"role": "user", "content": "Hi"}]}, "with from and value"),
    ("alpaca", {"instruction": "a", "output": "b", "history": [["x"]]}, "no pair of texts"),
    ("alpaca", {"instruction": "a", "output": "b", "history": 1.5}, "'1.5', not pairs"),
    ("alpaca", {"instruction": None, "output": "b"}, "instruction holds 'None'"),
    ("nq_open", {"question": "a", "answer": [None]}, "answer holds 'None'"),
    ("nq_open", {"question": "a", "answer": []}, "not a list of texts"),
]


@pytest.mark.parametrize("name, record, sentence", BAD)
def test_a_bad_record_is_answered_in_a_sentence(name, record, sentence):
    with pytest.raises(BadRecord, match=sentence) as raised:
        FORMATS[name].convert(record)
    assert "\n" not in str(raised.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner,
                                                                max_size=3), max_leaves=6)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=30)
@given(data=st.data())
def test_no_value_raises_anything_but_bad_record(name, data):
    """Any field of an example replaced by any value gives a row or a BadRecord."""
    record = dict(data.draw(st.sampled_from(examples()[name]["records"])))
    record[data.draw(st.sampled_from(sorted(record)))] = data.draw(json_values)
    try:
        row = FORMATS[name].convert(record)
    except BadRecord:
        return
    with_prompt(row, FORMATS[name].template)


def test_the_selected_answer_wins_among_equal_scores():
    answers = [{"text": text, "pm_score": score, "selected": text == "c"}
               for text, score in (("a", 0), ("b", 2), ("c", 2), ("d", 2))]
    assert FORMATS["stack_exchange"].convert({"question": "?", "answers": answers})["chosen"] == "c"


def test_the_first_record_alone_does_not_decide(tmp_path):
    """One record without its response looks like a prompt."""
    records = [{"prompt": "a"}, *[{"prompt": "a", "response": "b"}] * 3]
    write_records(tmp_path / "a.jsonl", records)
    data, report = load_records(tmp_path / "a.jsonl")
    assert report.format == "prompt_response" and len(data) == 3
    assert report.bad_by_kind == {"missing_columns": 1}


# ---------------------------------------------------------------- templates


def test_the_align_anything_template_writes_all_three_forms(tmp_path):
    """The texts of its second homework: supervised, preference, prompt-only."""
    start = "BEGINNING OF CONVERSATION: USER: 2 + 2? ASSISTANT:"
    for record, row in (
        ({"prompt": "2 + 2?", "answer": "4"}, {"prompt": start, "response": "4"}),
        ({**PAIR, "better_response_id": 1}, {"prompt": start, "chosen": "4", "rejected": "5"}),
        ({"prompt": "2 + 2?"}, {"prompt": start}),
    ):
        write_records(tmp_path / "a.jsonl", [record])
        data, _ = load_records(tmp_path / "a.jsonl", template="align_anything")
        assert data[0] == {"id": "a-1", **row}


def test_a_long_conversation_is_one_text():
    row = {"turns": [{"role": "system", "content": "Be {input}."}, *turns("Hi!", "Hi.", "Bye!")],
           "response": "Bye."}
    plain = with_prompt(row)
    assert plain["prompt"] == ("Be {input}.\n\nHuman: Hi!\n\nAssistant: Hi."
                               "\n\nHuman: Bye!\n\nAssistant:")
    assert plain["response"] == " Bye." and plain["turns"] == row["turns"]
    other = with_prompt(row, "align_anything")
    assert other["prompt"] == ("BEGINNING OF CONVERSATION: Be {input}. USER: Hi! ASSISTANT:Hi."
                               "USER: Bye! ASSISTANT:")
    assert other["response"] == "Bye."


def test_templates_are_registered_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(conversation, "TEMPLATES", dict(conversation.TEMPLATES))
    register_template("mine", Template(user="Q {input}\n", assistant="A {output}</s>",
                                       separator="\n"))
    assert with_prompt({"prompt": "a", "response": "b"}, "mine") == {
        "prompt": "Q a\nA", "response": " b</s>"}
    long = with_prompt({"turns": turns("a", "b", "c"), "response": "d"}, "mine")
    assert long["prompt"] == "Q a\nA b</s>\nQ c\nA" and long["response"] == " d</s>"
    with pytest.raises(ValueError, match="'mine' already"):
        register_template("mine", Template(user="{input}", assistant="{output}"))
    with pytest.raises(ValueError, match="user needs .input. once"):
        Template(user="Q", assistant="{output}")
    write_records(tmp_path / "a.jsonl", [{"prompt": "a"}])
    with pytest.raises(ValueError, match="no template 'none'.*align_anything"):
        load_records(tmp_path / "a.jsonl", template="none")
    write_records(tmp_path / "q.jsonl", examples()["gsm8k"]["records"])
    with pytest.raises(ValueError, match="have questions"):
        load_records(tmp_path / "q.jsonl", template="hh")


# ---------------------------------------------------------------- and back

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
chats = st.lists(text, min_size=2, max_size=6).map(lambda texts: turns(*texts[len(texts) % 2:]))
systems = st.none() | text
pairs = st.tuples(text, text).filter(lambda pair: pair[0] != pair[1])
RECORDS = {
    "prompt_response": st.fixed_dictionaries({"prompt": text, "response": text}),
    "prompt_chosen_rejected": st.builds(
        lambda prompt, pair: {"prompt": prompt, "chosen": pair[0], "rejected": pair[1]},
        text, pairs),
    "messages": st.builds(
        lambda chat, system: {"messages": [{"role": "system", "content": system}] * bool(system)
                              + chat}, chats, systems),
    "alpaca": st.builds(
        lambda prompt, answer, history, system:
            {"instruction": prompt, "input": "", "output": answer}
            | ({"system": system} if system else {})
            | ({"history": [list(pair) for pair in history]} if history else {}),
        text, text, st.lists(st.tuples(text, text), max_size=2), systems),
}


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
def test_what_is_written_comes_back(name, data):
    record = data.draw(RECORDS[name])
    assert format_of(record) == name and unread_fields(record, name) == []
    written, lost = write_record(FORMATS[name].convert(record), name, name)
    assert written == record and lost == []


@pytest.mark.parametrize("name", ["messages", "alpaca"])
@given(data=st.data())
def test_chats_go_there_and_back(name, data):
    """messages to alpaca to messages, and the other way round, lose nothing."""
    other = {"messages": "alpaca", "alpaca": "messages"}[name]
    record = data.draw(RECORDS[name])
    between, lost = write_record(FORMATS[name].convert(record), name, other)
    again, lost_again = write_record(FORMATS[other].convert(between), other, name)
    assert again == record and lost + lost_again == []


@given(chats, text)
def test_transcripts_keep_their_turns(chat, other):
    """A chat written as HH transcripts and read again; contents without the speakers' marks."""
    clean = [{**turn, "content": turn["content"].replace("\n", " ").strip()} for turn in chat]
    rejected = clean[-1]["content"] + other
    hh = conversation.TEMPLATES["hh"]
    start = hh.prompt(clean[:-1])
    record = {"chosen": start + hh.response(clean[-1]["content"]),
              "rejected": start + hh.response(rejected)}
    row = FORMATS["hh_rlhf"].convert(record)
    assert row["turns"] == clean[:-1] and row["chosen"] == clean[-1]["content"]
    shown = with_prompt(row, "hh")
    assert shown["prompt"] + shown["chosen"] == record["chosen"]


@pytest.mark.parametrize("name, target, lost", [
    ("hh_rlhf", "messages", ["rejected"]),
    ("shp", "prompt_response", ["rejected"]),
    ("unpaired", "alpaca", ["label"]),
    ("gsm8k", "prompt_response", []),
    ("qa", "alpaca", ["answers but the first"]),
    ("prompt_response", "messages", []),
    ("sharegpt_preference", "prompt_chosen_rejected", []),
])
def test_what_cannot_go_back_is_named(name, target, lost):
    row = FORMATS[name].convert(examples()[name]["records"][0])
    record, named = write_record(row, name, target)
    assert named == lost and format_of(record) == target


def test_roles_of_a_long_chat_become_text():
    row = FORMATS["hh_rlhf"].convert(examples()["hh_rlhf"]["records"][1])
    record, lost = write_record(row, "hh_rlhf", "prompt_chosen_rejected")
    assert lost == ["turns (now text in the prompt)"]
    assert record["prompt"].endswith("\n\nHuman: A joke?\n\nAssistant:")


def test_fields_that_are_not_read_are_named():
    record = {"messages": [{"role": "user", "content": "Hi!", "name": "Ann"},
                           {"role": "assistant", "content": "Hi.", "weight": 1, "name": None}],
              "source": "web", "id": 3, "note": None}
    assert unread_fields(record, "messages") == [
        "source", "id", "messages.name", "messages.weight"]
    alpaca = {"instruction": "a", "input": "b", "output": "c"}
    assert unread_fields(alpaca, "alpaca") == ["input (joined to the prompt)"]


def test_a_row_that_cannot_go_there_is_a_bad_record():
    unwanted = FORMATS["unpaired"].convert(examples()["unpaired"]["records"][1])
    with pytest.raises(BadRecord, match="undesirable"):
        write_record(unwanted, "unpaired", "prompt_response")
    two_questions = {"turns": [*HELLO, *HELLO], "response": "Hi."}
    with pytest.raises(BadRecord, match="in turn.*not user, user"):
        write_record(two_questions, "messages", "alpaca")
    with pytest.raises(ValueError, match="prompt_response cannot be made of prompt records"):
        write_record({"prompt": "a"}, "prompt", "prompt_response")
