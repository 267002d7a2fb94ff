"""Checks of lesson 03: what `check()` runs on the learner's functions."""

import math
import random

import torch
from tokenizers import Tokenizer, models, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from tests.lessons.asserts import (
    assert_close,
    assert_close_tensor,
    assert_equal,
    assert_true,
)

# ---------------------------------------------------------------- tokenize_prompt_and_response

EOS = "<end>"
LETTERS = "abcdefgh =?"


def _tokenizer(pad: str = EOS) -> PreTrainedTokenizerFast:
    """Letters, three merges, an EOS behind a text unless it is told not to; it pads with its EOS."""
    merges = [("a", "b"), ("c", "d"), ("=", "e")]
    tokens = ["<unk>", EOS, "<pad>", *LETTERS, *("".join(pair) for pair in merges)]
    ids = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=ids, merges=merges))
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, ids[EOS])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, pad_token=pad)


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _kept(batch, name: str, mask: str) -> list[list[int]]:
    """The entries of a tensor where a mask holds, row by row."""
    return [row[keep.bool()].tolist() for row, keep in zip(batch[name], batch[mask], strict=True)]


def _word(rng, low: int, high: int) -> str:
    return "".join(rng.choice("abcdefgh") for _ in range(rng.randint(low, high)))


def test_tokenize_prompt_and_response__shift(fn, rng):
    "Four tensors of shape (B, T - 1); the label is the token after the input."
    tokenizer = _tokenizer()
    prompts, responses = ["abc?", _word(rng, 6, 9)], ["ef", _word(rng, 1, 3)]
    batch = fn(prompts, responses, tokenizer)
    names = {"input_ids", "labels", "response_mask", "attention_mask"}
    assert_equal(set(batch), names, hint="Return a dict with these four tensors.")
    rows = [
        _ids(tokenizer, p) + _ids(tokenizer, r) for p, r in zip(prompts, responses, strict=True)
    ]
    shape = (2, max(map(len, rows)) - 1)
    for name in sorted(names):
        assert_equal(
            tuple(batch[name].shape),
            shape,
            call=f'fn(...)["{name}"].shape',
            hint="T is the longest prompt + response; the shift takes one off.",
        )
    inputs, labels = (_kept(batch, name, "attention_mask") for name in ("input_ids", "labels"))
    whole = [row[:-1] if len(row) == shape[1] + 1 else row for row in rows]
    assert_equal(
        inputs,
        whole,
        call='fn(...)["input_ids"] where attention_mask',
        hint="input_ids is every token but the last of the padded row, and the tokenizer "
        "adds no special tokens (add_special_tokens=False).",
    )
    following = [row[1:] for row in rows]
    got = [row[: len(want)] for row, want in zip(labels, following, strict=True)]
    assert_equal(
        got,
        following,
        call='fn(...)["labels"]',
        hint="labels is every token but the first: labels[t] follows input_ids[t].",
    )


def test_tokenize_prompt_and_response__response_mask(fn, rng):
    "The response mask is True exactly where `labels` holds a response token."
    tokenizer = _tokenizer()
    prompts, responses = ["fgh?", _word(rng, 5, 8), "g"], ["ef", "h", _word(rng, 3, 6)]
    batch = fn(prompts, responses, tokenizer)
    assert_equal(batch["response_mask"].dtype, torch.bool, call='fn(...)["response_mask"].dtype')
    got = _kept(batch, "labels", "response_mask")
    assert_equal(
        got,
        [_ids(tokenizer, text) for text in responses],
        call='fn(...)["labels"] where response_mask',
        hint="The mask belongs to labels: the last prompt token already predicts the "
        "first response token.",
    )


def test_tokenize_prompt_and_response__eos_is_learnt(fn, rng):
    "The appended EOS is part of the response, also where padding uses the same id."
    for pad in (EOS, "<pad>"):
        tokenizer = _tokenizer(pad)
        prompts, responses = ["gh?", "abcdef?"], [_word(rng, 2, 3), "f"]
        batch = fn(prompts, responses, tokenizer, append_eos=True)
        end = [tokenizer.eos_token_id]
        assert_equal(
            _kept(batch, "labels", "response_mask"),
            [_ids(tokenizer, text) + end for text in responses],
            call=f'labels where response_mask, append_eos=True, pad "{pad}"',
            hint="Build the masks from lengths: a mask by id hides the EOS where "
            "padding has the same id, and a model that never learns EOS never stops.",
        )
    plain = fn(prompts, responses, tokenizer)
    assert_equal(
        _kept(plain, "labels", "response_mask"),
        [_ids(tokenizer, text) for text in responses],
        call="labels where response_mask, append_eos not given",
        hint="Without append_eos=True nothing is appended.",
    )


def test_tokenize_prompt_and_response__boundary(fn):
    "A merge across the boundary moves no response token into the prompt."
    tokenizer = _tokenizer()
    for prompt, response in (("fa", "bc"), ("gc", "d"), ("h=", "ef")):
        batch = fn([prompt], [response], tokenizer)
        assert_equal(
            _kept(batch, "labels", "response_mask"),
            [_ids(tokenizer, response)],
            call=f'labels where response_mask of fn(["{prompt}"], ["{response}"], ...)',
            hint="Tokenise prompt and response apart and join the ids; in the joined "
            "text the tokenizer merges the last letter with the first.",
        )


def test_tokenize_prompt_and_response__attention(fn):
    "The attention mask is True on tokens and False on padding, which stands on the right."
    tokenizer = _tokenizer()
    batch = fn(["abgh", "f"], ["ef", "g"], tokenizer, append_eos=True)  # 6 and 3 tokens
    assert_equal(batch["attention_mask"].dtype, torch.bool, call='fn(...)["attention_mask"].dtype')
    want = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    assert_equal(
        batch["attention_mask"].tolist(),
        want.tolist(),
        call='fn(...)["attention_mask"]',
        hint="It belongs to input_ids. A row shorter than the longest keeps all its "
        "tokens there, the EOS too; only the longest loses its last to the shift.",
    )
    pad = batch["input_ids"][1][3:].tolist()
    assert_equal(pad, [tokenizer.pad_token_id] * 2, call='fn(...)["input_ids"], the padding')


def test_tokenize_prompt_and_response__max_length(fn):
    "A sequence over max_length loses its end; the boundary stays where it was."
    tokenizer = _tokenizer()
    batch = fn(["fgh", "g"], ["efghef", "hf"], tokenizer, append_eos=True, max_length=6)
    assert_true(
        batch["input_ids"].shape[1] <= 5,
        expected="at most 5 columns (6 tokens, shifted)",
        got=str(tuple(batch["input_ids"].shape)),
        hint="Cut each sequence to max_length.",
    )
    want = [_ids(tokenizer, "efg"), [*_ids(tokenizer, "hf"), tokenizer.eos_token_id]]
    assert_equal(
        _kept(batch, "labels", "response_mask"),
        want,
        call="labels where response_mask, max_length=6",
        hint="Cut the end of the response, not the start of the prompt: the response mask "
        "must still start behind the prompt, and a cut response has no EOS.",
    )
    long = fn(["fghfgh", "g"], ["ef", "h"], tokenizer, max_length=4)
    assert_equal(
        _kept(long, "labels", "response_mask"),
        [[], _ids(tokenizer, "h")],
        call="labels where response_mask, a prompt longer than max_length",
        hint="A prompt that fills max_length leaves no response token.",
    )


def test_tokenize_prompt_and_response__one_row(fn):
    "One row, a response of one token, an empty response."
    tokenizer = _tokenizer()
    one = fn(["gh"], ["e"], tokenizer)
    assert_equal(one["response_mask"].tolist(), [[False, True]], call='mask of fn(["gh"], ["e"])')
    empty = fn(["gh", "g"], ["", "ef"], tokenizer)
    assert_equal(
        _kept(empty, "labels", "response_mask"),
        [[], _ids(tokenizer, "ef")],
        call='labels where response_mask of fn(["gh", "g"], ["", "ef"], ...)',
        hint="An empty response has no response token, and its row stays.",
    )


# ---------------------------------------------------------------- sft_loss


def _batch(seed: int, rows: int = 4, width: int = 7):
    """Log-probs (float64) and a mask with rows of unequal numbers of response tokens."""
    generator = torch.Generator().manual_seed(seed)
    log_probs = -3 * torch.rand(rows, width, generator=generator, dtype=torch.float64) - 0.1
    mask = torch.zeros(rows, width, dtype=torch.bool)
    for row in range(rows):
        mask[row, 1 : 2 + row * (width - 2) // (rows - 1)] = True
    return log_probs, mask


def test_sft_loss__worked_case(fn):
    "The mean of -log p over the response tokens."
    log_probs = torch.tensor([[-9.0, -1.0, -3.0]])
    assert_close(
        fn(log_probs, torch.tensor([[False, True, True]])),
        2.0,
        hint="Two response tokens with -log p of 1 and 3: the mean is 2.",
    )


def test_sft_loss__token_mean(fn, seed):
    "Each response token weighs the same, whichever row it stands in."
    log_probs, mask = _batch(seed)
    assert_close(
        fn(log_probs, mask),
        -log_probs[mask].mean().item(),
        tol=1e-8,
        call="fn(log_probs, response_mask), rows of 1 to 6 response tokens",
        hint="One sum over all response tokens of the batch, divided by their number; a "
        "mean of row means would weigh the tokens of short rows more.",
    )


def test_sft_loss__scalar_and_gradient(fn, seed):
    "The gradient is -1 / tokens at response tokens and 0 elsewhere."
    log_probs, mask = _batch(seed)
    log_probs = log_probs.float().requires_grad_()
    loss = fn(log_probs, mask)
    assert_equal(tuple(loss.shape), (), call="fn(log_probs, response_mask).shape")
    loss.backward()
    assert_close_tensor(
        log_probs.grad,
        -mask.float() / mask.sum(),
        call="gradient of the loss by log_probs",
        hint="The loss falls when the log-probs of response tokens rise, and the "
        "prompt takes no part.",
    )


def test_sft_loss__normalizer(fn, seed):
    "`normalizer` replaces the count: the tokens of the whole optimiser step."
    log_probs, mask = _batch(seed)
    total = -log_probs[mask].sum().item()
    assert_close(
        fn(log_probs, mask, normalizer=50),
        total / 50,
        tol=1e-8,
        call="fn(log_probs, response_mask, normalizer=50)",
        hint="Divide the sum by normalizer where it is given.",
    )


def test_sft_loss__accumulation(fn, seed):
    "Four micro-batches of one row give the gradient of one batch of four."
    log_probs, mask = _batch(seed)
    whole = log_probs.clone().requires_grad_()
    fn(whole, mask).backward()
    parts = log_probs.clone().requires_grad_()
    for row in range(4):
        fn(parts[row : row + 1], mask[row : row + 1], normalizer=mask.sum().item()).backward()
    assert_close_tensor(
        parts.grad,
        whole.grad,
        tol=1e-8,
        call="gradient of 4 x 1 rows with the normalizer of the step",
        hint="With the same normaliser the parts add up to the whole.",
    )


def test_sft_loss__empty(fn):
    "A batch without a response token gives 0 and no gradient, not NaN."
    log_probs = torch.full((2, 3), -1.0, requires_grad=True)
    loss = fn(log_probs, torch.zeros(2, 3, dtype=torch.bool))
    assert_close(
        loss, 0.0, call="fn(log_probs, all-False mask)", hint="0 / 0 is NaN: divide by at least 1."
    )
    loss.backward()
    assert_close_tensor(log_probs.grad, torch.zeros(2, 3), call="its gradient")


def test_sft_loss__padding_is_ignored(fn):
    "What stands outside the mask does not matter, were it -inf."
    log_probs = torch.tensor([[-math.inf, -1.0, -3.0, -math.inf]])
    mask = torch.tensor([[False, True, True, False]])
    assert_close(
        fn(log_probs, mask),
        2.0,
        hint="0 * inf is NaN: select with torch.where or masked_fill, not by a product.",
    )


# ---------------------------------------------------------------- LoRALinear


def _layers(fn, seed: int, rank: int = 3, alpha: float = 12.0, bias: bool = True):
    """A linear layer of 5 inputs and 4 outputs, and the learner's layer over a copy of it."""
    torch.manual_seed(seed)
    plain, wrapped = nn.Linear(5, 4, bias=bias), nn.Linear(5, 4, bias=bias)
    wrapped.load_state_dict(plain.state_dict())
    return plain, fn(wrapped, rank, alpha)


def _trained(layer) -> dict[str, torch.Tensor]:
    return {name: p for name, p in layer.named_parameters() if p.requires_grad}


def _matrices(layer) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank, in) and B (out, rank), told apart by their names."""
    found = _trained(layer)
    named = {
        key: [p for name, p in found.items() if name.split(".")[-1] in (f"lora_{key}", key)]
        for key in "AB"
    }
    assert_true(
        len(found) == 2 and all(len(ps) == 1 for ps in named.values()),
        expected="two trained parameters, lora_A and lora_B",
        got=", ".join(found) or "none",
        call="the trained parameters of LoRALinear(...)",
        hint="self.lora_A and self.lora_B are nn.Parameter; the wrapped layer is frozen.",
    )
    return named["A"][0], named["B"][0]


def test_LoRALinear__starts_unchanged(fn, seed):
    "At the start it computes what the wrapped layer computes: B is zero, A is not."
    plain, layer = _layers(fn, seed)
    x = torch.randn(2, 3, 5)
    assert_close_tensor(
        layer(x),
        plain(x),
        call="LoRALinear(linear, 3, 12.0)(x)",
        hint="B starts at zero, so that the update starts at zero.",
    )
    a, b = _matrices(layer)
    assert_true(
        float(a.detach().abs().max()) > 0,
        expected="a random A",
        got="A is all zero",
        call="lora_A at the start",
        hint="With both at zero the gradient of both is zero: nothing would ever be learnt.",
    )
    assert_close_tensor(b.detach(), torch.zeros_like(b), call="lora_B at the start")


def test_LoRALinear__shapes_and_frozen(fn, seed):
    "Only A (rank, in) and B (out, rank) are trained."
    _, layer = _layers(fn, seed)
    a, b = _matrices(layer)
    assert_equal((tuple(a.shape), tuple(b.shape)), ((3, 5), (4, 3)), call="shapes of A and B")
    layer(torch.randn(2, 5)).sum().backward()
    moved = [name for name, p in layer.named_parameters() if p.grad is not None]
    assert_equal(
        sorted(moved),
        sorted(_trained(layer)),
        call="parameters that receive a gradient",
        hint="Freeze the wrapped layer: linear.requires_grad_(False).",
    )


def test_LoRALinear__forward(fn, seed):
    "h = W x + b + (alpha / rank) B A x."
    for bias in (True, False):
        plain, layer = _layers(fn, seed, bias=bias)
        a, b = _matrices(layer)
        with torch.no_grad():
            b.normal_()
        x = torch.randn(2, 3, 5)
        want = plain(x) + 12.0 / 3 * x @ a.T @ b.T
        assert_close_tensor(
            layer(x).detach(),
            want.detach(),
            call=f"LoRALinear(linear, rank=3, alpha=12.0)(x), bias={bias}",
            hint="The update is (alpha / rank) * x A^T B^T; here alpha / rank = 4.",
        )


def test_LoRALinear__gradients(fn, seed):
    "The gradients of A, B and x are those of the formula."
    plain, layer = _layers(fn, seed)
    a, b = _matrices(layer)
    with torch.no_grad():
        b.normal_()
    x = torch.randn(3, 5, requires_grad=True)
    weights = torch.randn(3, 4)
    (layer(x) * weights).sum().backward()
    scale = 12.0 / 3
    for name, got, want in (
        ("lora_A", a.grad, scale * (weights @ b).T @ x),
        ("lora_B", b.grad, scale * weights.T @ (x @ a.T)),
        ("x", x.grad, weights @ (plain.weight + scale * b @ a)),
    ):
        assert_true(
            got is not None,
            expected=f"a gradient of {name}",
            got="None",
            hint="Is a part computed under no_grad, or from .data?",
        )
        assert_close_tensor(got, want.detach(), tol=1e-4, call=f"gradient of {name}")


def test_LoRALinear__half_precision(fn, seed):
    "Over a bfloat16 layer A and B stay float32, and the output keeps the layer's dtype."
    torch.manual_seed(seed)
    layer = fn(nn.Linear(5, 4).to(torch.bfloat16), 2, 4.0)
    dtypes = {str(p.dtype).removeprefix("torch.") for p in _trained(layer).values()}
    assert_equal(
        dtypes,
        {"float32"},
        call="dtypes of A and B over a bfloat16 layer",
        hint="A step of 1e-5 is lost on a bfloat16 weight of 0.01.",
    )
    out = layer(torch.randn(2, 5, dtype=torch.bfloat16))
    assert_equal(out.dtype, torch.bfloat16, call="dtype of the output")


# ---------------------------------------------------------------- dequantize_awq

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word, from its lowest bits, holds this column


def _pack(values: list[list[int]]) -> torch.Tensor:
    """Rows of 4-bit numbers to 32-bit words, in plain Python arithmetic."""
    rows = []
    for row in values:
        words = []
        for start in range(0, len(row), 8):
            word = sum(row[start + column] << (4 * nibble) for nibble, column in enumerate(ORDER))
            words.append(word - 2**32 if word >= 2**31 else word)
        rows.append(words)
    return torch.tensor(rows, dtype=torch.int32)


def _awq(rng: random.Random, inputs: int, outputs: int, group: int):
    """A random packed layer and its weight (out, in) by the definition, number by number."""
    q = [[rng.randrange(16) for _ in range(outputs)] for _ in range(inputs)]
    z = [[rng.randrange(16) for _ in range(outputs)] for _ in range(inputs // group)]
    s = [[rng.randrange(1, 64) / 256 for _ in range(outputs)] for _ in range(inputs // group)]
    weight = [
        [(q[i][o] - z[i // group][o]) * s[i // group][o] for i in range(inputs)]
        for o in range(outputs)
    ]
    return _pack(q), _pack(z), torch.tensor(s, dtype=torch.float16), torch.tensor(weight)


def test_dequantize_awq__one_word(fn):
    "Eight numbers of one word, in the interleaved order 0, 2, 4, 6, 1, 3, 5, 7."
    qweight, qzeros = _pack([[1, 2, 3, 4, 5, 6, 7, 0]]), _pack([[0] * 8])
    got = fn(qweight, qzeros, torch.ones(1, 8, dtype=torch.float16), 1)
    want = torch.tensor([[1.0], [2], [3], [4], [5], [6], [7], [0]])
    assert_close_tensor(
        got,
        want,
        call="one input, zeros of 0, scales of 1",
        hint="Nibble i from the lowest bits holds column (0, 2, 4, 6, 1, 3, 5, 7)[i].",
    )


def test_dequantize_awq__sign_bit(fn):
    "A word whose highest bit is set is a negative int32; its numbers are still 0 to 15."
    qweight, qzeros = _pack([[15] * 8]), _pack([[0] * 8])
    got = fn(qweight, qzeros, torch.ones(1, 8, dtype=torch.float16), 1)
    assert_close_tensor(
        got,
        torch.full((8, 1), 15.0),
        call="one input, all numbers 15",
        hint="The shift of a negative int32 brings ones in: take & 15 after it.",
    )


def test_dequantize_awq__formula(fn, rng):
    "w = (q - z) s, with the zero point and scale of the group, as (out, in)."
    for inputs, outputs, group in ((8, 16, 4), (12, 8, 6), (4, 24, 4)):
        qweight, qzeros, scales, weight = _awq(rng, inputs, outputs, group)
        got = fn(qweight, qzeros, scales, group)
        call = f"{inputs} inputs, {outputs} outputs, groups of {group}"
        assert_equal(
            tuple(got.shape),
            (outputs, inputs),
            call=f"shape of the weight, {call}",
            hint="AWQ stores (in, out); nn.Linear wants (out, in).",
        )
        assert_close_tensor(
            got.float(),
            weight,
            call=call,
            hint="Each group of neighbouring *inputs* shares a zero point and a "
            "scale a column; the zero points are packed like the weight.",
        )


def test_dequantize_awq__exact(fn, rng):
    "The result is exact: float32, not rounded to float16."
    qweight, qzeros, scales, _ = _awq(rng, 8, 8, 4)
    scales = (scales.float() / 3).half()
    got = fn(qweight, qzeros, scales, 4)
    assert_equal(got.dtype, torch.float32, call="dtype of the weight")
    wide = fn(qweight, qzeros, torch.full_like(scales, 0.1), 4)
    step = torch.tensor(0.1, dtype=torch.float16).float()
    off = float((wide / step - (wide / step).round()).abs().max())
    assert_true(
        off < 1e-4,
        expected="whole multiples of the scale",
        got=f"off by {off:.2g} steps",
        hint="Multiply in float32: a product in float16 is rounded.",
    )


def test_dequantize_awq__leaves_its_inputs(fn, rng):
    "The packed tensors are not changed."
    parts = _awq(rng, 8, 8, 4)[:3]
    copies = [part.clone() for part in parts]
    fn(*parts, 4)
    same = all(torch.equal(part, copy) for part, copy in zip(parts, copies, strict=True))
    assert_true(
        same,
        expected="the inputs as they were",
        got="changed inputs",
        hint="Shift into a new tensor instead of `>>=`.",
    )


# ---------------------------------------------------------------- rejection_sample


def _reasoned(answer: str, reason: str = "It says so.") -> str:
    return f" {reason}\nAnswer: {answer}"


def _responses(rows) -> list[tuple[str, str]]:
    return [(row["prompt"], row["response"]) for row in rows]


def test_rejection_sample__keeps_the_right_ones(fn, rng):
    "A response is kept where its stated answer reaches the threshold, with prompt and F1."
    town, other = rng.sample(["Nelgar", "Halden", "Mirow", "Osterby"], 2)
    rows = fn(["Where?"], [[_reasoned(town), _reasoned(other)]], [[town]])
    assert_equal(
        _responses(rows), [("Where?", _reasoned(town))], call="one right, one wrong sample"
    )
    assert_equal(set(rows[0]), {"prompt", "response", "f1"}, call="keys of a row")
    assert_close(rows[0]["f1"], 1.0, call="its f1")


def test_rejection_sample__threshold(fn):
    "A response whose F1 equals the threshold is kept."
    samples = [[_reasoned("dark blue"), _reasoned("a very dark blue coat")]]
    rows = fn(["Which?"], samples, [["blue"]], threshold=2 / 3)  # 2/3 and 2/5
    assert_equal(
        _responses(rows),
        [("Which?", samples[0][0])],
        call="threshold=2/3, F1 2/3 and 2/5",
        hint="At least the threshold: >=.",
    )
    assert_equal(
        fn(["Which?"], samples, [["blue"]]),
        [],
        call="the default threshold, 0.9",
        hint="The default is 0.9, and no response is kept because it is the best.",
    )


def test_rejection_sample__grades_the_answer(fn):
    'Graded is the text behind the last "Answer:", not the reasoning.'
    right = _reasoned("fox", "Vera has a fox and Hugo a cat.")
    wrong = _reasoned("cat", "fox")
    twice = " Answer: cat? No.\nAnswer: fox"
    rows = fn(["Which pet?"], [[right, wrong, twice]], [["fox"]])
    assert_equal(
        _responses(rows),
        [("Which pet?", right), ("Which pet?", twice)],
        call="one right, one whose reason holds the gold, one corrected",
        hint='response.rpartition("Answer:") splits at the last one.',
    )


def test_rejection_sample__no_answer(fn):
    "A response that states no answer is left out, were its text the gold."
    rows = fn(["Which pet?"], [["fox", " fox\nAnswer", _reasoned("fox")]], [["fox"]])
    assert_equal(
        _responses(rows),
        [("Which pet?", _reasoned("fox"))],
        call="two unstated, one stated",
        hint="The reasoned form is what the model is to learn.",
    )


def test_rejection_sample__best_gold(fn):
    "The best of the accepted answers counts."
    rows = fn(["Which?"], [[_reasoned("dark blue")]], [["blue", "dark blue", "navy"]])
    assert_equal(len(rows), 1, call='golds ["blue", "dark blue", "navy"]')


def test_rejection_sample__duplicates_and_order(fn, rng):
    "Equal responses to a prompt are kept once; the order is that of prompts and samples."
    first, second = _reasoned("red", f"Because {rng.randrange(100)}."), _reasoned("red")
    samples = [[first, second, first], [], [second, second]]
    rows = fn(["p", "q", "r"], samples, [["red"], ["red"], ["red"]])
    assert_equal(
        _responses(rows),
        [("p", first), ("p", second), ("r", second)],
        call="three prompts with samples [x, y, x], [] and [y, y]",
        hint="A greedy policy repeats itself; copies would weigh the easy prompts more. "
        "The same text under another prompt is another example.",
    )
