"""The coloured tokens say what carries loss, also where padding is the EOS."""

from helpers.logprobs import tokenize_prompt_and_response
from helpers.models import load_model
from workbook.tokens import token_view


def test_loss_prompt_and_padding_are_told_apart():
    _, tokenizer = load_model("workbook/assets/base")
    batch = tokenize_prompt_and_response(["1+2=", "Ben <b>"], ["3", ""], tokenizer, append_eos=True)
    view = token_view(batch, tokenizer)
    text = repr(view).splitlines()
    assert text[0].startswith("+ 2 = [3] [<|endoftext|>]")
    assert "[<|endoftext|>]" in text[1]
    kinds = [kind for _, kind in view.rows[0]]
    assert kinds[:5] == ["prompt"] * 3 + ["response"] * 2 and set(kinds[5:]) <= {"padding"}
    shown = view._repr_html_()
    assert "<b>" not in shown and "carries\u00a0loss" in shown
