"""Named mistakes of lesson 03, and correct variants (form: workbook/mistakes.py)."""

import torch
from torch import nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import pad_sequence

from helpers.rewards import token_f1
from workbook.mistakes import mistake, probe, switches, variant

# ---------------------------------------------------------------- tokenize_prompt_and_response


@switches(
    "tokenize_prompt_and_response",
    joined=("tokenises prompt and response as one text",
            "A merge across the boundary moves it: tokenise apart and join the ids."),
    special=("lets the tokenizer add its special tokens",
             "Say add_special_tokens=False: a BOS or EOS in the middle of a row is foreign."),
    by_id=("builds the masks from ids that are not padding",
           "Where padding is the EOS, this hides the EOS: build the masks from lengths."),
    no_eos=("never appends the EOS", "With append_eos the response ends with the EOS."),
    always_eos=("always appends the EOS", "Append it only where append_eos is True."),
    unshifted=("puts the mask one place too late",
               "The mask belongs to labels, which are already one ahead of the inputs."),
    prompt_too=("counts the prompt as response", "Only response tokens carry loss."),
    front_cut=("cuts the start of a long row", "A long row loses its end: row[:max_length]."),
    left=("pads on the left", "Pad on the right: each row starts at place 0."),
    eos_after_cut=("appends the EOS after the cut",
                   "A cut response has no end to learn: append the EOS first, then cut."),
)
def lists_of_ids(prompts, responses, tokenizer, *, append_eos=False, max_length=None,
                 joined=False, special=False, by_id=False, no_eos=False, always_eos=False,
                 unshifted=False, prompt_too=False, front_cut=False, left=False,
                 eos_after_cut=False):
    def ids(text):
        return tokenizer(text, add_special_tokens=special)["input_ids"]

    rows, starts = [], []
    end = [tokenizer.eos_token_id] if (append_eos or always_eos) and not no_eos else []
    for prompt, response in zip(prompts, responses, strict=True):
        first = ids(prompt)
        both = ids(prompt + response) if joined else first + ids(response)
        if eos_after_cut and max_length is not None:
            row = both[: max_length - len(end)] + end
        else:
            row = both + end
            cut = max_length is not None and len(row) > max_length
            row = row[-max_length:] if cut and front_cut else row[:max_length]
        rows.append(row)
        starts.append(0 if prompt_too else min(len(first), len(row)))
    longest = max(map(len, rows))
    pads = [[tokenizer.pad_token_id] * (longest - len(row)) for row in rows]
    together = zip(rows, pads, strict=True)
    table = torch.tensor([pad + row if left else row + pad for row, pad in together])
    empty = torch.tensor([len(pad) for pad in pads])[:, None] * left
    length = torch.tensor([len(row) for row in rows])[:, None] + empty
    start = torch.tensor(starts)[:, None] + empty
    place = torch.arange(1, longest)
    late = int(unshifted)
    mask = (place - late >= start) & (place - late < length)
    attention = (place - 1 < length) & (place - 1 >= empty)
    if by_id:
        mask = mask & (table[:, 1:] != tokenizer.pad_token_id)
        attention = table[:, :-1] != tokenizer.pad_token_id
    return {"input_ids": table[:, :-1], "labels": table[:, 1:], "response_mask": mask,
            "attention_mask": attention}


@mistake("tokenize_prompt_and_response", "does not shift: labels are the inputs",
         hint="input_ids = ids[:, :-1] and labels = ids[:, 1:].")
def not_shifted(prompts, responses, tokenizer, *, append_eos=False, max_length=None):
    batch = padded_sequences(
        prompts, responses, tokenizer, append_eos=append_eos, max_length=max_length
    )
    return batch | {"labels": batch["input_ids"]}


@mistake("tokenize_prompt_and_response", "drops the first response token",
         hint="The last prompt token predicts it: the mask starts one place earlier.")
def first_dropped(prompts, responses, tokenizer, *, append_eos=False, max_length=None):
    batch = padded_sequences(
        prompts, responses, tokenizer, append_eos=append_eos, max_length=max_length
    )
    mask = batch["response_mask"].clone()
    for row in mask:
        if row.any():
            row[row.long().argmax()] = False
    return batch | {"response_mask": mask}


@variant("tokenize_prompt_and_response")
def padded_sequences(prompts, responses, tokenizer, *, append_eos=False, max_length=None):
    """By one tensor a row, and a mask that is padded along with it."""
    rows, marks = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        first = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        then = tokenizer(response, add_special_tokens=False)["input_ids"]
        then = then + [tokenizer.eos_token_id] * append_eos
        rows.append(torch.tensor((first + then)[:max_length], dtype=torch.long))
        marks.append(torch.tensor(([0] * len(first) + [1] * len(then))[:max_length]))
    ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    marks = pad_sequence(marks, batch_first=True, padding_value=0).bool()
    there = pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True).bool()
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:], "response_mask": marks[:, 1:],
            "attention_mask": there[:, :-1]}


@variant("tokenize_prompt_and_response")
def cell_by_cell(prompts, responses, tokenizer, *, append_eos=False, max_length=None):
    """By filling empty tables number by number."""
    encode = [
        [tokenizer.encode(text, add_special_tokens=False) for text in pair]
        for pair in zip(prompts, responses, strict=True)
    ]
    width = max(len(p) + len(r) + append_eos for p, r in encode)
    width = min(width, max_length or width)
    shape = (len(encode), width - 1)
    tables = {"input_ids": torch.full(shape, tokenizer.pad_token_id),
              "labels": torch.full(shape, tokenizer.pad_token_id),
              "response_mask": torch.zeros(shape, dtype=torch.bool),
              "attention_mask": torch.zeros(shape, dtype=torch.bool)}
    for row, (prompt, response) in enumerate(encode):
        tokens = prompt + response + ([tokenizer.eos_token_id] if append_eos else [])
        for place, token in enumerate(tokens[:width]):
            if place < width - 1:
                tables["input_ids"][row, place] = token
                tables["attention_mask"][row, place] = True
            if place > 0:
                tables["labels"][row, place - 1] = token
                tables["response_mask"][row, place - 1] = place >= len(prompt)
    return tables


# ---------------------------------------------------------------- sft_loss


@switches(
    "sft_loss",
    rows=("averages row means, so tokens of short rows weigh more",
          "One sum over all response tokens, divided by their number."),
    everything=("divides by all places, padding and prompt included",
                "Divide by the number of response tokens."),
    no_mask=("counts prompt and padding", "Only places of the response mask count."),
    sign=("has the wrong sign", "The loss is -log p: it falls as log-probs rise."),
    summed=("does not divide by the number of tokens", "The loss is a mean over tokens."),
    ignores=("ignores normalizer", "Divide by normalizer where it is given."),
    both=("divides by normalizer and by the batch's own tokens",
          "normalizer replaces the count of this batch."),
    unsafe=("gives NaN for an empty batch", "Divide by at least 1."),
    product=("multiplies by the mask, so -inf outside it gives NaN",
             "Use masked_fill or torch.where: 0 * inf is NaN."),
)
def summed_and_divided(log_probs, response_mask, *, normalizer=None, rows=False,
                       everything=False, no_mask=False, sign=False, summed=False, ignores=False,
                       both=False, unsafe=False, product=False):
    mask = torch.ones_like(response_mask, dtype=torch.bool) if no_mask else response_mask.bool()
    kept = log_probs * mask if product else torch.where(mask, log_probs, 0.0)
    count = torch.tensor(float(log_probs.numel())) if everything else mask.sum()
    count = count if unsafe else count.clamp(min=1)
    if summed:
        count = 1
    if rows and normalizer is None:
        loss = -(kept.sum(1) / mask.sum(1).clamp(min=1)).mean()
    elif normalizer is None or ignores:
        loss = -kept.sum() / count
    else:
        loss = -kept.sum() / (normalizer * count if both else normalizer)
    return -loss if sign else loss


@variant("sft_loss")
def by_indexing(log_probs, response_mask, *, normalizer=None):
    chosen = log_probs[response_mask.bool()]
    if normalizer is None:
        normalizer = max(chosen.numel(), 1)
    return chosen.sum().neg() / normalizer


@variant("sft_loss")
def by_a_loop(log_probs, response_mask, *, normalizer=None):
    total, count = 0.0 * log_probs[response_mask.bool()].sum(), 0
    for row, marks in zip(log_probs, response_mask, strict=True):
        for value, counts in zip(row, marks, strict=True):
            if counts:
                total, count = total - value, count + 1
    return total / (normalizer or max(count, 1))


@probe("sft_loss")
def uneven_rows(fn, rng):
    values = -torch.rand(3, 5).double() - 0.2
    mask = torch.tensor([[0, 1, 0, 0, 0], [0, 1, 1, 1, 1], [0, 0, 1, 1, 0]]).bool()
    fn(values.clone().requires_grad_(), mask)
    fn(values.clone().requires_grad_(), mask, normalizer=rng.randint(9, 20))


# ---------------------------------------------------------------- LoRALinear


def _layer(**flags):
    """A LoRALinear class with some mistakes switched on."""

    class Layer(nn.Module):
        def __init__(self, linear_layer, rank, alpha):
            super().__init__()
            self.linear = linear_layer
            if not flags.get("thawed"):
                self.linear.requires_grad_(False)
            dtype = linear_layer.weight.dtype if flags.get("half") else torch.float32
            width, height = linear_layer.in_features, linear_layer.out_features
            a = torch.randn(rank, width) * (0.0 if flags.get("zeros") else 0.1)
            b = torch.randn(height, rank) * (0.1 if flags.get("random") else 0.0)
            self.lora_A, self.lora_B = nn.Parameter(a.to(dtype)), nn.Parameter(b.to(dtype))
            self.scaling = alpha / rank
            if flags.get("unscaled"):
                self.scaling = 1.0
            if flags.get("alpha_only"):
                self.scaling = alpha
            if flags.get("inverse"):
                self.scaling = rank / alpha

        def forward(self, x):
            frozen = self.linear(x)
            update = x.to(self.lora_A.dtype) @ self.lora_A.T
            update = (update.detach() if flags.get("detached") else update) @ self.lora_B.T
            if flags.get("replaces"):
                return (self.scaling * update).to(frozen.dtype)
            bias = self.linear.bias
            if flags.get("no_bias") and bias is not None:
                frozen = frozen - bias
            out = frozen + self.scaling * update
            return out if flags.get("wide") else out.to(frozen.dtype)

    return Layer


LAYER_MISTAKES = {
    "zeros": ("starts with A at zero, too", "With A and B at zero nothing is ever learnt."),
    "random": ("starts with B at random",
               "B starts at zero, so that the layer starts as the one that it wraps."),
    "unscaled": ("leaves out alpha / rank", "The update is scaled by alpha / rank."),
    "alpha_only": ("scales by alpha alone", "The update is scaled by alpha / rank."),
    "inverse": ("scales by rank / alpha", "It is alpha / rank: a larger alpha, a larger update."),
    "thawed": ("trains the wrapped layer, too", "linear.requires_grad_(False) freezes it."),
    "replaces": ("gives the update without the frozen layer", "h = W x + b + update."),
    "no_bias": ("loses the bias of the wrapped layer", "Call the layer: self.linear(x)."),
    "half": ("makes A and B in the layer's half precision",
             "Trained parameters are float32: a small step is lost on a bfloat16 weight."),
    "wide": ("gives float32 out of a bfloat16 layer",
             "Turn the sum back into the dtype of the frozen output."),
    "detached": ("cuts the gradient of A", "No detach and no no_grad around x A^T."),
}
for _flag, (_name, _hint) in LAYER_MISTAKES.items():
    mistake("LoRALinear", _name, hint=_hint)(_layer(**{_flag: True}))


@variant("LoRALinear")
class TwoLinears(nn.Module):
    """The update as two linear layers without bias, merged in the weight at forward."""

    def __init__(self, linear_layer, rank, alpha):
        super().__init__()
        self.linear = linear_layer
        for parameter in self.linear.parameters():
            parameter.requires_grad = False
        self.lora_A = nn.Parameter(torch.randn(rank, linear_layer.in_features) / rank)
        self.lora_B = nn.Parameter(torch.zeros(linear_layer.out_features, rank))
        self.rank, self.alpha = rank, alpha

    def forward(self, x):
        wide = x.float()
        update = linear(linear(wide, self.lora_A), self.lora_B) * (self.alpha / self.rank)
        return self.linear(x) + update.to(x.dtype)


@variant("LoRALinear")
class MergedWeight(nn.Module):
    """One product with W + (alpha / r) B A."""

    def __init__(self, linear_layer, rank, alpha):
        super().__init__()
        self.linear = linear_layer.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.empty(rank, linear_layer.in_features).uniform_(-0.2, 0.2))
        self.lora_B = nn.Parameter(torch.zeros(linear_layer.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x):
        weight = self.linear.weight.float() + self.scale * self.lora_B @ self.lora_A
        bias = self.linear.bias
        out = linear(x.float(), weight, None if bias is None else bias.float())
        return out.to(x.dtype)


@probe("LoRALinear")
def built_and_used(layer, rng):
    """What a layer starts with, computes with given A and B, and whose gradient it fills."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(rng.randrange(1000))
        wrapped = nn.Linear(6, 5).to(dtype)
        built = layer(wrapped, 2, 6.0)
        named = dict(built.named_parameters())
        found += [float(p.detach().abs().max()) > 0 for p in (named["lora_A"], named["lora_B"])]
        trained = sorted(name for name, p in named.items() if p.requires_grad)
        found += [str(named["lora_A"].dtype), trained]
        with torch.no_grad():
            for seed, name in enumerate(("lora_A", "lora_B")):
                generator = torch.Generator().manual_seed(seed)
                named[name].copy_(torch.randn(named[name].shape, generator=generator))
        x = torch.arange(18).view(3, 6).sin().to(dtype)
        out = built(x)
        found += [str(out.dtype), out.detach().float().round(decimals=1)]
        out.float().sum().backward()
        grads = [named[name].grad for name in ("lora_A", "lora_B")]
        found += [None if g is None else g.float().round(decimals=1) for g in grads]
    return found


# ---------------------------------------------------------------- dequantize_awq


@switches(
    "dequantize_awq",
    in_order=("reads the numbers of a word in plain order",
              "Nibble i holds column (0, 2, 4, 6, 1, 3, 5, 7)[i] of its eight."),
    wrong_way=("uses the order where its inverse belongs",
               "Column c sits in nibble (0, 4, 1, 5, 2, 6, 3, 7)[c]."),
    from_top=("reads the words from the highest bits", "Nibble 0 is the lowest four bits."),
    unmasked=("does not take & 15 after the shift", "A negative word drags ones in: & 15."),
    no_zeros=("does not subtract the zero points", "w = (q - z) s."),
    plus_one=("adds 1 to the zero points, as GPTQ's layout does",
              "AWQ stores the zero point itself."),
    half=("multiplies in float16", "scales.float() first: a product in float16 is rounded."),
    untransposed=("gives the weight as (in, out)", "nn.Linear holds (out, in): transpose."),
    strided=("gives neighbouring inputs to different groups",
             "A group is group_size neighbouring inputs: repeat_interleave, not repeat."),
)
def unpacked(qweight, qzeros, scales, group_size, *, in_order=False, wrong_way=False,
             from_top=False, unmasked=False, no_zeros=False, plus_one=False, half=False,
             untransposed=False, strided=False):
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    if in_order:
        order = list(range(8))
    if wrong_way:
        order = [0, 2, 4, 6, 1, 3, 5, 7]
    shifts = 4 * torch.tensor(order, dtype=torch.int32)
    shifts = 28 - shifts if from_top else shifts

    def unpack(packed):
        shifted = packed[..., None] >> shifts
        return (shifted if unmasked else shifted & 15).flatten(-2)

    def per_input(values):
        repeats = (group_size, 1)
        return values.repeat(repeats) if strided else values.repeat_interleave(group_size, 0)

    zeros = per_input(unpack(qzeros) + int(plus_one)) * (not no_zeros)
    numbers = unpack(qweight) - zeros
    scales = per_input(scales)
    weight = (numbers.half() * scales).float() if half else numbers * scales.float()
    return weight if untransposed else weight.T


@variant("dequantize_awq")
def column_by_column(qweight, qzeros, scales, group_size):
    inputs, outputs = qweight.shape[0], scales.shape[1]
    weight = torch.empty(outputs, inputs)
    group = torch.arange(inputs) // group_size
    for out in range(outputs):
        word, nibble = out // 8, (0, 4, 1, 5, 2, 6, 3, 7)[out % 8]
        q = (qweight[:, word] >> (4 * nibble)) & 15
        z = (qzeros[:, word] >> (4 * nibble)) & 15
        weight[out] = (q - z[group]).float() * scales[group, out].float()
    return weight


@variant("dequantize_awq")
def by_division(qweight, qzeros, scales, group_size):
    def unpack(packed):
        words, found = packed.long() % 2**32, []
        for _ in range(8):
            found.append(words % 16)
            words = words // 16
        return torch.stack([found[k] for k in (0, 4, 1, 5, 2, 6, 3, 7)], dim=-1).flatten(-2)

    q = unpack(qweight).float().view(-1, group_size, scales.shape[1])
    weight = (q - unpack(qzeros).float()[:, None]) * scales.float()[:, None]
    return weight.reshape(-1, scales.shape[1]).t()


@probe("dequantize_awq")
def random_words(fn, rng):
    words = [[rng.randrange(-(2**31), 2**31) for _ in range(2)] for _ in range(6)]
    zeros = [[rng.randrange(-(2**31), 2**31) for _ in range(2)] for _ in range(3)]
    scales = torch.tensor([[rng.randrange(1, 99) / 300 for _ in range(16)] for _ in range(3)])
    words, zeros = (torch.tensor(table, dtype=torch.int32) for table in (words, zeros))
    fn(words, zeros, scales.half(), 2)


# ---------------------------------------------------------------- rejection_sample


@switches(
    "rejection_sample",
    strict=("keeps only what is above the threshold", "At least the threshold: >=."),
    whole=("grades the whole response", "Grade the text behind the last 'Answer:'."),
    first_answer=("grades from the first 'Answer:' on", "The last one is the final answer."),
    copies=("keeps a response as often as it was drawn", "dict.fromkeys drops repeats in order."),
    across=("drops a response that another prompt had, too",
            "The same text under another prompt is another example."),
    best=("keeps one response a prompt", "Keep every distinct right one."),
    unstated=("keeps responses that state no answer", "Leave out a text without 'Answer:'."),
    first_gold=("compares with the first gold only", "token_f1 takes the list of golds."),
    stripped=("strips the responses", "Train on the text as it was sampled."),
)
def graded(prompts, samples, golds, threshold=0.9, *, strict=False, whole=False,
           first_answer=False, copies=False, across=False, best=False, unstated=False,
           first_gold=False, stripped=False):
    kept, seen = [], set()
    for prompt, responses, accepted in zip(prompts, samples, golds, strict=True):
        seen = seen if across else set()
        mine = []
        for response in responses:
            head, mark, said = response.partition("Answer:") if first_answer else (
                response.rpartition("Answer:"))
            if not mark and unstated:
                said = response
            if (not mark and not unstated) or (response in seen and not copies):
                continue
            seen.add(response)
            f1 = token_f1(response if whole else said, accepted[:1] if first_gold else accepted)
            if f1 > threshold or (f1 == threshold and not strict):
                text = response.strip() if stripped else response
                mine.append({"prompt": prompt, "response": text, "f1": f1})
        kept += mine[:1] if best else mine
    return kept


@mistake("rejection_sample", "keeps the best response of a prompt, be it wrong",
         hint="Nothing is kept for a prompt whose samples all stay below the threshold.")
def best_of_each(prompts, samples, golds, threshold=0.9):
    kept = []
    for prompt, responses, accepted in zip(prompts, samples, golds, strict=True):
        scored = [(token_f1(r.rpartition("Answer:")[2], accepted), r) for r in responses]
        if scored:
            f1, response = max(scored, key=lambda pair: pair[0])
            kept.append({"prompt": prompt, "response": response, "f1": f1})
    return kept


@variant("rejection_sample")
def in_two_passes(prompts, samples, golds, threshold=0.9):
    rows = [{"prompt": p, "response": r, "f1": token_f1(r.split("Answer:")[-1], accepted)}
            for p, drawn, accepted in zip(prompts, samples, golds, strict=True)
            for n, r in enumerate(drawn) if r not in drawn[:n] and "Answer:" in r]
    return [row for row in rows if row["f1"] >= threshold]


@variant("rejection_sample")
def by_slicing(prompts, samples, golds, threshold=0.9):
    kept = {}
    for place, prompt in enumerate(prompts):
        for response in samples[place]:
            at = response.rfind("Answer:")
            if at < 0:
                continue
            score = max(token_f1(response[at + 7 :], [gold]) for gold in golds[place])
            if not score < threshold:
                row = {"prompt": prompt, "response": response, "f1": score}
                kept.setdefault((place, response), row)
    return list(kept.values())


@probe("rejection_sample")
def odd_samples(fn, rng):
    samples = [
        [" a b\nAnswer: red", "Answer: red", " Answer: blue. Answer: red fox", "red"],
        ["Answer: red", " x\nAnswer: cat ", " x\nAnswer: cat "],
    ]
    for threshold in (0.5, 2 / 3, 0.9):
        fn(["p", "q"], samples, [["red", "blue"], ["dog", "cat"]], threshold)
