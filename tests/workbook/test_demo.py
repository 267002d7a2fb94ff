"""The demo's core, terminal and panel: bounded input, hostile texts, all models side by side."""

import io

import ipywidgets
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from helpers.models import LoraSettings, load_model
from workbook.cli import app
from workbook.demo import (
    EXAMPLES,
    MOST_CHARACTERS,
    Reply,
    columns,
    load_demo,
    own_adapters,
    printable,
    questions,
    run_terminal,
    short_name,
    unique,
)
from workbook.demo_panel import DemoPanel, reply_html
from workbook.profiles import load_profile
from workbook.progress import course_root

ADAPTERS = course_root() / "workbook" / "assets" / "adapters"
HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b[2J",
    "[bold red]markup[/] [link=file:///etc/passwd]x[/link]",
    "<|endoftext|><|im_end|> {question} {passages} %s %(x)s",
    "\u202egnp.exe\u2066 \u200b\ufeff",
    "\x00\x01\x08\r\x7f\x9b31m",
    "好" * 300,
    "9" * 600,
    "🙂‍🙂 a\u0301" * 40,
]


@pytest.fixture(scope="module")
def demo():
    return load_demo([ADAPTERS / "sft", ADAPTERS / "verbose"])


def test_all_models_answer_and_are_judged(demo):
    assert list(demo.models) == ["base", "sft", "verbose"]
    states = [[reply.text for reply in found] for found in demo.replies(EXAMPLES["maths"])]
    *_, last = demo.replies(EXAMPLES["maths"])
    assert len(states) > 10  # it streams
    assert all(reply.ended and reply.text for reply in last)
    assert last[1].answer and isinstance(last[1].score, float)
    assert "answer: " in last[1].facts and "reward model: " in last[1].facts


def test_an_open_book_question_reads_its_passages(demo):
    *_, (base, *_) = demo.replies(EXAMPLES["qa"], "qa")
    prompt = demo.prompt(EXAMPLES["qa"], "qa")
    assert prompt.startswith("[1] Ana lives in Port Arlo. Ben keeps a goat.\n[2] ")
    assert base.answer and base.score is None


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_prompt_is_a_text(demo, text):
    *_, replies = demo.replies(text, max_new_tokens=8)
    prompt = demo.prompt(text, "maths")
    assert not any(token in text and token in prompt for token in demo.tokenizer.all_special_tokens)
    assert "\x1b" not in prompt and "\u202e" not in prompt and "\x00" not in prompt
    for reply in replies:
        assert printable(reply.text) == reply.text
        shown = reply_html(Reply(text, text, "eos", text))
        assert "<script" not in shown and "<img" not in shown


@pytest.mark.parametrize(
    ("text", "kind", "options", "said"),
    [
        ("", "maths", {}, "no question"),
        (" \n\x1b[0m\u200b", "maths", {}, "no question"),
        ("x" * (MOST_CHARACTERS + 1), "maths", {}, "more than 4,000"),
        ("Where?", "qa", {}, "passages"),
        ("Hi", "rag", {}, "maths, qa"),
        ("Hi", "maths", {"max_new_tokens": 100_000}, "1 to 512"),
        ("Hi", "maths", {"temperature": -1.0}, "temperature"),
        ("9 " * 1900, "maths", {}, "reads"),
    ],
)
def test_what_cannot_be_answered_is_said_in_one_sentence(demo, text, kind, options, said):
    with pytest.raises(ValueError, match=said) as caught:
        list(demo.replies(text, kind, **options))
    assert "\n" not in str(caught.value)


def test_the_terminal_goes_on_after_a_bad_question(demo):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=False, width=100)
    lines = ["\x1b[31m[bold]x[/]\n", "   \n", "y" * 9000 + "\n", EXAMPLES["maths"] + "\n"]
    run_terminal(demo, "maths", console, lines, max_new_tokens=60)
    shown = stream.getvalue()
    assert "more than 4,000" in shown and shown.count("--- base") == 2 and "\x1b" not in shown


def test_columns_show_brackets_as_brackets():
    stream = io.StringIO()
    reply = Reply("[red]a[/]", "[link=x]b[/link]", "eos", "[/]")
    Console(file=stream, width=80).print(columns([reply]))
    assert "[red]a[/]" in stream.getvalue() and "[link=x]b[/link]" in stream.getvalue()


def is_packed(model) -> bool:
    return getattr(model.config, "quantization_config", None) is not None


def test_open_book_questions_end_with_an_empty_line():
    lines = ["One.\n", "Where?\n", "\n", "\n", "Two.\n", "Who?"]
    assert list(questions(lines, "qa")) == ["One.\nWhere?\n", "Two.\nWho?"]
    assert list(questions(["a\n", "\n", "b\n"], "maths")) == ["a", "b"]


def test_own_adapters_come_before_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path))
    profile = load_profile("tiny")
    assert own_adapters(profile) == []
    for lesson, name in (("03", "sft"), ("05", "grpo")):
        folder = tmp_path / lesson / "tiny-short" / name / "adapter"
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
    found = own_adapters(profile)
    assert [short_name(path) for path in found] == ["03 sft", "05 grpo"]
    assert unique("03 sft", {"03 sft", "03 sft 2"}) == "03 sft 3"


def test_an_adapter_is_put_around_the_weights_of_the_base(demo):
    """Five models over a base of 6 GB must not take 36, and none may change another."""
    base, sft, verbose = demo.models.values()
    own = {id(p) for p in base.parameters()}
    for tuned in (sft, verbose):
        kept = [p for name, p in tuned.named_parameters() if "lora_" not in name]
        assert kept and {id(p) for p in kept} == own
    alone, _ = load_model(course_root() / "workbook/assets/base", adapter=ADAPTERS / "sft")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(sft(ids).logits, alone(ids).logits)
        assert not torch.equal(base(ids).logits, sft(ids).logits)
        assert not torch.equal(verbose(ids).logits, sft(ids).logits)


def test_open_book_models_are_those_of_lesson_07_over_the_model_in_4_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path))
    profile = load_profile("tiny")
    assert "sft" in load_demo(kind="qa").models  # none yet: those of maths
    awq = profile.path(profile.models.awq)
    for method in ("sft", "dpo", "grpo", "orpo", "kto"):
        model, tokenizer = load_model(awq, lora=LoraSettings(rank=4))
        model.save_pretrained(tmp_path / "07" / "tiny-short" / method / "adapter")
    demo = load_demo(kind="qa", templates={"qa": "Passages:\n{passages}\nAsked: {question}\n"})
    assert list(demo.models) == ["base", "07 sft", "07 dpo", "07 grpo", "07 orpo", "07 kto"]
    assert demo.judge is None and is_packed(demo.models["base"])
    assert demo.prompt(EXAMPLES["qa"], "qa").endswith("Asked: Where does Ana live?\n")
    *_, replies = demo.replies(EXAMPLES["qa"], "qa", max_new_tokens=8)
    assert len({reply.text for reply in replies}) == 1  # untrained layers change nothing
    with pytest.raises(ValueError, match="no kind"):
        load_demo(kind="rag")


def test_an_adapter_of_another_model_is_named(tmp_path):
    model, _ = load_model(course_root() / "workbook/assets/base", lora=LoraSettings(rank=4))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file({name: w[:, :-1].contiguous() for name, w in weights.items()},
              tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="does not fit the base model") as caught:
        load_demo([tmp_path])
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_adapter_is_named(tmp_path):
    result = CliRunner().invoke(app, ["demo", "--adapter", str(tmp_path)])
    assert isinstance(result.exception, ValueError) and "is no adapter" in str(result.exception)
    with pytest.raises(ValueError, match="at most 5"):
        load_demo(["x"] * 6)


def test_the_command_answers_what_stands_in_its_input():
    arguments = ["demo", "--adapter", str(ADAPTERS / "sft"), "--max-new-tokens", "90"]
    result = CliRunner().invoke(app, arguments, input=EXAMPLES["maths"] + "\n")
    assert result.exit_code == 0 and "--- sft" in result.output and "answer: " in result.output


def test_the_panel_answers_in_a_thread_and_shows_what_is_wrong(demo):
    panel = DemoPanel(demo)
    assert isinstance(panel.box, ipywidgets.VBox)
    panel.start()
    panel.thread.join(60)
    assert "answer: " in panel.cells[1].value and not panel.ask.disabled and panel.stop.disabled
    panel.question.value = "<b> "
    panel.kind.value = "qa"
    panel.start()
    panel.thread.join(60)
    assert "passages" in panel.says.value


def test_the_panel_starts_with_the_kind_and_question_that_it_is_given(demo):
    panel = DemoPanel(demo, "qa", "Ana keeps a goat.\nWhat does Ana keep?")
    assert panel.kind.value == "qa" and panel.question.value.endswith("What does Ana keep?")
    assert DemoPanel(demo, "qa").question.value == EXAMPLES["qa"]


def test_the_page_says_what_to_install_where_gradio_is_missing():
    try:
        import gradio  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r"pip install"):
            import workbook.demo_page  # noqa: F401
