# %% [markdown]
# # 03 Supervised fine-tuning: the format from a hundred examples, on full, LoRA, NF4 and AWQ weights
#
# In lesson 01 the model solved more than half of the problems and showed almost none of it in the requested format. **After this lesson you can**
# turn prompts and responses into tokens with a mask that hides the prompt and keeps the end, write a loss that gradient accumulation does not
# change, build a LoRA layer, read 4-bit AWQ weights, and let a model write its own training data.
#
# **You need** lesson 01 or its ideas (strict and lenient accuracy), and what backpropagation does. **Time:** about 90 minutes.
#
# Stuck? `hint(1, "sft_loss")` (up to 3), and `sft_loss = use_reference("sft_loss")` lets you go on; it is recorded as such.

# %% tags=["setup"]
import itertools
import math

import torch
from IPython.display import display
from torch import nn

from helpers.data import load_records
from helpers.diagnose import diagnose
from helpers.evaluation import complete, grade_completions, paired_test, summarise_rates
from helpers.models import LoraSettings, footprint, load_model
from helpers.plotting import method_table, rates_with_intervals, sweep_curves, training_curves
from helpers.prompts import load_template, render, render_passages
from helpers.rewards import qa_scores, r1_zero_reward, token_f1
from helpers.training import SFTSettings, train_sft
from workbook.bughunt import LR, MICRO, SIZE, STEPS, judge_loop
from workbook.lesson import (
    answer,
    begin,
    check,
    comparison_table,
    hint,
    live_monitor,
    observed,
    predict,
    progress,
    published,
    published_group,
    ready,
    recorded_or_live,
    run_folder,
    save_findings,
    token_view,
    use_profile,
    use_reference,
)

begin("03")
profile = use_profile("tiny")

# %% [markdown]
# ## Ten seconds: this is what you will build
#
# The same problem, before and after a hundred examples. The shipped adapter stands in for yours until you have trained it.

# %%
base_path = profile.path(profile.models.maths)
model, tokenizer = load_model(base_path, device=profile.engine.device)
R1_ZERO = load_template("r1_zero")
problems, _ = load_records(profile.path(profile.data.maths_test), split="test", keep=("steps",),
                           limit=profile.sizes.sft.problems)
greedy = profile.sampling.settings(temperature=0.0)
first = [render(R1_ZERO, question=problems[1]["question"])]
print("base: ", complete(model, tokenizer, first, sampling=greedy)[0].text)
if profile.models.adapter:
    tuned, _ = load_model(base_path, adapter=profile.path(profile.models.adapter))
    print("tuned:", complete(tuned, tokenizer, first, sampling=greedy)[0].text)

# %% [markdown]
# ## The idea
#
# A base model continues text. Supervised fine-tuning shows it prompts with good responses and raises the probability of every response token:
#
# $$ \mathcal{L}_{\mathrm{SFT}} = -\frac{1}{N} \sum_{i} \sum_{t \in \text{response}_i} \log \pi_\theta(y_{i,t} \mid x_i, y_{i,<t}), \qquad N = \text{response tokens of the step} $$
#
# It is the first stage of the recipe of InstructGPT (Ouyang et al. 2022, [2203.02155](https://arxiv.org/abs/2203.02155)). What looks like one line hides four decisions, and each has
# ruined a published run: where the response starts, whether its end is learnt, what $N$ is, and which weights move.
#
# ## Exercise 1: tokens, and what counts
# *Difficulty 3 of 5, importance 5 of 5, 25 minutes*
#
# Join prompt and response as token ids, pad on the right, and shift once: with T the longest row, all four tensors are (B, T - 1), `labels[:, t]` follows `input_ids[:, t]`.
# `response_mask` (bool) is True where `labels` holds a response token; `attention_mask` (bool) where `input_ids` holds a token. Tokenise the two texts *apart*
# (`tokenizer(text, add_special_tokens=False)["input_ids"]`): in the joined text the tokenizer may merge the last letter of the prompt with the first of the response, and the boundary moves. Build
# the masks from lengths: many models pad with their EOS, and a mask by id hides the very EOS that tells the model to stop. With `append_eos`
# the response ends with `tokenizer.eos_token_id`. A row over `max_length` loses its end, so a cut response has no EOS, and the prompt stays whole
# unless it fills `max_length` by itself.

# %% nbgrader={"grade": false, "grade_id": "tokenize_prompt_and_response", "locked": false, "schema_version": 3, "solution": true, "task": false}
def tokenize_prompt_and_response(prompts, responses, tokenizer, *, append_eos=False,
                                 max_length=None):
    """{"input_ids", "labels", "response_mask", "attention_mask"}, each (B, T - 1), right padded."""
    ### BEGIN SOLUTION
    rows, starts = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        first = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        then = tokenizer(response, add_special_tokens=False)["input_ids"]
        rows.append((first + then + [tokenizer.eos_token_id] * append_eos)[:max_length])
        starts.append(min(len(first), len(rows[-1])))
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    length, start = torch.tensor([len(row) for row in rows])[:, None], torch.tensor(starts)[:, None]
    place = torch.arange(1, longest)  # where each label stands in its row
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:],
            "response_mask": (place >= start) & (place < length),
            "attention_mask": place - 1 < length}
    ### END SOLUTION

# %%
if ready("tokenize_prompt_and_response"):
    batch = tokenize_prompt_and_response(["3 + 4 =", "Ben has 12 eggs."], [" 7", " So 12."],
                                         tokenizer, append_eos=True)
    display(token_view(batch, tokenizer))

# %%
check(tokenize_prompt_and_response)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"The mask is one off."** It belongs to `labels`: the last prompt token already predicts the first response token.
# **"The EOS is missing from the mask."** `ids != pad` hides it where padding has the same id; compare places with lengths.
# **"Truncation cuts the prompt."** Join first, then `[:max_length]`.
# </details>

# %% [markdown]
# ## Exercise 2: the loss, exact under accumulation
# *Difficulty 2 of 5, importance 5 of 5, 10 minutes*
#
# Memory rarely holds the whole batch, so its gradient is added up over micro-batches. The mean of micro-batch means is *not* the mean of the batch when their numbers of
# response tokens differ: a token in a short micro-batch weighs more. This stood in the most used trainer until 2024. The cure: each part divides by $N$, the
# response tokens of the whole optimiser step, and the parts add up. `normalizer` is that $N$; without it, take the tokens of this batch. No response token gives 0, and
# what stands outside the mask must not matter, were it `-inf`.

# %% nbgrader={"grade": false, "grade_id": "sft_loss", "locked": false, "schema_version": 3, "solution": true, "task": false}
def sft_loss(log_probs, response_mask, *, normalizer=None):
    """-sum of the response tokens' log_probs / normalizer; (B, T) and (B, T) to a scalar."""
    ### BEGIN SOLUTION
    total = -log_probs.masked_fill(~response_mask.bool(), 0.0).sum()
    return total / (response_mask.sum().clamp(min=1) if normalizer is None else normalizer)
    ### END SOLUTION

# %%
if ready("sft_loss"):
    short, long = torch.tensor([[-1.0, -3.0, 0, 0]]), torch.tensor([[-2.0, -2.0, -2.0, -4.0]])
    masks = torch.tensor([[True, True, False, False]]), torch.tensor([[True] * 4])
    parts = [sft_loss(row, mask) for row, mask in zip((short, long), masks, strict=True)]
    whole = sft_loss(torch.cat([short, long]), torch.cat(masks))
    print(f"mean of the two means {sum(parts) / 2:.4f}, one batch {whole:.4f}")
    exact = [sft_loss(row, mask, normalizer=6)
             for row, mask in zip((short, long), masks, strict=True)]
    print(f"two parts with the normaliser of the step: {sum(exact):.4f}")

# %%
check(sft_loss)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"NaN."** `-inf * 0` is NaN: use `masked_fill`, not a product. **"0 / 0."** `clamp(min=1)`.
# **"Accumulation is off."** With `normalizer` given, the batch's own count must not appear.
# </details>

# %% [markdown]
# ## The run: a hundred demonstrations through your two functions
#
# The demonstrations are worked solutions of *short* problems in the requested format, as if a teacher had had time for the easy ones only. Say first what
# happens to the lenient accuracy, which forgave the format all along: `"rises"`, `"stays"` (a paired test sees no difference) or `"falls"`.

# %%
predict("lenient accuracy after SFT", "stays")

# %%
def demonstrations(count):
    """Prompts and formatted solutions of training problems of one or two steps."""
    records, _ = load_records(profile.path(profile.data.maths_train), keep=("steps",))
    rows = []
    for record in records:
        solution = record["answer"].split("####")[0].strip()
        if record["steps"] is None or record["steps"] <= 2:
            prompt = render(R1_ZERO, question=record["question"])
            response = f" {solution} </think> <answer>{record['gold_answer']}</answer>"
            rows.append({"prompt": prompt, "response": response})
    return rows[:count]

def settings_for(method="lora", **changes):
    """The profile's SFT settings; training all weights wants a tenth of LoRA's learning rate."""
    lr = profile.sft.full_lr if method == "full" else profile.sft.lr
    usual = {"num_epochs": profile.sizes.sft.epochs, "batch_size": profile.sft.batch_size,
             "lr": lr, "warmup_ratio": 0.0}
    return SFTSettings(**usual | changes)

def quietly(model, rows, words=tokenizer, method="lora", **changes):
    """`train_sft` with your functions, without a progress bar."""
    settings = settings_for(method, progress=False, **changes)
    return train_sft(model, rows, settings, tokenizer=words, functions=functions)

def evaluate_maths(model, tokenizer=tokenizer, *, stop=(), limit=None):
    """Format, strict and lenient rate with intervals, and the graded rows."""
    some = problems.select(range(min(limit or len(problems), len(problems))))
    prompts = [render(R1_ZERO, question=q) for q in some["question"]]
    sampling = profile.sampling.settings(temperature=0.0, stop_strings=stop)
    completions = complete(model, tokenizer, prompts, sampling=sampling,
                           batch_size=profile.engine.batch_size)
    rows = grade_completions(some, completions, r1_zero_reward, prompts=prompts)
    return summarise_rates(rows), rows

# %%
if ready("tokenize_prompt_and_response", "sft_loss"):
    functions = {"tokenize_prompt_and_response": tokenize_prompt_and_response,
                 "sft_loss": sft_loss}
    examples = demonstrations(profile.sizes.sft.examples)
    before, rows_before = evaluate_maths(model)
    lora = LoraSettings(rank=profile.sft.rank, alpha=profile.sft.alpha)
    policy, _ = load_model(base_path, lora=lora, device=profile.engine.device)
    run = train_sft(policy, examples, settings_for(), tokenizer=tokenizer, functions=functions,
                    out_dir=run_folder() / "sft", resume=False,
                    callbacks=[live_monitor("loss", "grad_norm")])
    print(f"{run.summary['steps']} steps on {len(examples)} examples; saved in {run.folder.name}/")

# %%
if ready("tokenize_prompt_and_response", "sft_loss"):
    after, rows_after = evaluate_maths(policy)
    for name in before:
        print(f"{name:17} {before[name][0]:6.1%} -> {after[name][0]:6.1%}   "
              f"interval {after[name][1]:.1%} to {after[name][2]:.1%}")
    test = paired_test(*[[row["lenient"] for row in rows] for rows in (rows_before, rows_after)])
    moved = "stays" if test.p_value > 0.05 else "rises" if test.only_second > test.only_first else "falls"
    display(observed("lenient accuracy after SFT", moved))

# %%
if ready("tokenize_prompt_and_response", "sft_loss"):
    def three(rates):
        return {"format": rates["format_rate"], "strict": rates["accuracy"],
                "lenient": rates["lenient_accuracy"]}

    s0 = published("s0.sft.128")
    display(rates_with_intervals(
        {"base": three(before), "after SFT": three(after)},
        title=f"{len(examples)} examples lift the format from {before['format_rate'][0]:.1%} to "
              f"{after['format_rate'][0]:.1%},\nstrict accuracy from {before['accuracy'][0]:.1%} to "
              f"{after['accuracy'][0]:.1%}",
        published={"strict": (s0.value, f"{s0.source}: 128 examples")}))

# %% [markdown]
# One run is one throw of the dice: the adapter's first numbers and the order of the examples hang on a seed. Two more seeds say how much of the gain is chance.

# %%
if ready("tokenize_prompt_and_response", "sft_loss"):
    def with_seed(seed):
        """The three rates of the same run from another seed."""
        start = LoraSettings(rank=profile.sft.rank, alpha=profile.sft.alpha, seed=seed)
        student, _ = load_model(base_path, lora=start, device=profile.engine.device)
        quietly(student, examples, seed=seed)
        return three(evaluate_maths(student)[0])

    seeds = recorded_or_live("seeds", lambda: {seed: with_seed(seed) for seed in (1, 2)})
    for seed, rates in ({"0, yours": three(after)} | seeds).items():
        print(f"seed {seed:8}", "   ".join(
            f"{name} {rate[0]:.1%} ({rate[1]:.1%} to {rate[2]:.1%})" for name, rate in rates.items()))

# %% [markdown]
# The format was cheap: it was in the model, and a few dozen steps made it the habit. Look at whether the *skill* moved: the lenient rate, and, below, the problems of three and four
# steps, of which no demonstration was shown.

# %%
if ready("tokenize_prompt_and_response", "sft_loss"):
    def by_steps(rows):
        groups = {}
        for row in rows:
            steps = row["fields"]["steps"]
            name = "all" if steps is None else "1 or 2 steps" if steps < 3 else "3 or 4 steps"
            groups.setdefault(name, []).append(row)
        return {name: summarise_rates(groups[name])["lenient_accuracy"] for name in sorted(groups)}

    shown = {"base": by_steps(rows_before), "after SFT": by_steps(rows_after)}
    for name, groups in shown.items():
        rates = "   ".join(f"{kind}: {rate[0]:.1%}" for kind, rate in groups.items())
        print(f"{name:10} lenient, {rates}")

# %% [markdown]
# ## More data, worse?
#
# S0 trained on 128 to 7,473 examples and fell from 55 % to 4 %. It could be the data, the number of steps, or the targets. Its own
# diagnostics pointed at answers that are never closed. Two arms, same problems, same settings, and S0's evaluation (generation stops at `</answer>`): in one all targets are complete, in the
# other only the first targets are, and the rest lost their last tag, as if a second script had written them.

# %%
predict("strict accuracy as unclosed targets join", "falls")

# %%
def sweep_arm(complete_ones, sizes=profile.sizes.sft.sweep, seed=0):
    """For each size: strict and lenient accuracy and the share of closed answers.

    complete_ones: how many targets are complete; those behind them lost their last tag.
    """
    found = {}
    start = LoraSettings(rank=profile.sft.rank, alpha=profile.sft.alpha, seed=seed)
    for size in sizes:
        rows = demonstrations(size)
        for row in rows[complete_ones:]:
            row["response"] = row["response"].removesuffix("</answer>")
        student, _ = load_model(base_path, lora=start, device=profile.engine.device)
        quietly(student, rows, num_epochs=2, seed=seed)
        rates, graded = evaluate_maths(student, stop=("</answer>",),
                                       limit=profile.sizes.sft.sweep_problems)
        closed_share = sum("</answer>" in row["generation"] for row in graded) / len(graded)
        found[size] = {"strict": rates["accuracy"], "lenient": rates["lenient_accuracy"],
                       "closed": closed_share}
    return found

if ready("tokenize_prompt_and_response", "sft_loss"):
    largest = profile.sizes.sft.sweep[-1:]
    sweep = recorded_or_live("sweep", lambda: {
        "complete": sweep_arm(largest[0]), "unclosed": sweep_arm(profile.sft.complete_targets)})
    again = recorded_or_live("sweep, second seed", lambda: {
        "complete": sweep_arm(largest[0], largest, seed=1),
        "unclosed": sweep_arm(profile.sft.complete_targets, largest, seed=1)})

# %%
if ready("tokenize_prompt_and_response", "sft_loss"):
    curves = {f"{arm} targets, {metric}": {int(size): found[metric] for size, found in points.items()}
              for arm, points in sweep.items() for metric in ("strict", "lenient")}
    closed = [point["closed"] for point in sweep["unclosed"].values()]
    s0_sizes = {int(size): entry.value for size, entry in published_group("s0.sft").items()}
    title = f"As unclosed targets join, {max(closed):.0%} closed answers become {closed[-1]:.0%}"
    display(sweep_curves(curves, title=title, xlabel="training examples",
                         published={"S0, row 21": s0_sizes}))
    strict = [point["strict"] for point in sweep["unclosed"].values()]
    best = max(strict, key=lambda rate: rate[0])
    trend = "falls" if strict[-1][2] < best[1] else "stays"  # its interval lies below the best one
    display(observed("strict accuracy as unclosed targets join", trend))
    for arm, points in again.items():
        strict, closed_share = points[str(largest[0])]["strict"], points[str(largest[0])]["closed"]
        print(f"a second seed, {largest[0]} examples, {arm:8} targets: strict {strict[0]:.1%} "
              f"({strict[1]:.1%} to {strict[2]:.1%}), closed {closed_share:.1%}")

# %% [markdown]
# "More data, worse" was never about the amount: each further unclosed target teaches the model not to close. All targets are of short problems too: compare the lenient curves of both arms
# before you blame anything but the missing tag. Print some full targets with their mask before every training, as in exercise 1, and ask what they do *not* show.
#
# ## Exercise 3: a LoRA layer
# *Difficulty 2 of 5, importance 5 of 5, 15 minutes*
#
# AdamW keeps two numbers for each trained weight, and the gradient is a third. LoRA (Hu et al. 2021, [2106.09685](https://arxiv.org/abs/2106.09685), Eq. 3) freezes $W$ and trains a low-rank update:
#
# $$ h = W x + b + \frac{\alpha}{r} B A x, \qquad A \in \mathbb{R}^{r \times \text{in}},\; B \in \mathbb{R}^{\text{out} \times r} $$
#
# `lora_A` starts at random and `lora_B` at zero, both float32 `nn.Parameter`; so the model starts unchanged, and still the gradient of $B$ is not zero. The wrapped layer is frozen. Over a bfloat16 layer
# the update is computed in float32 and the output keeps the layer's dtype.

# %% nbgrader={"grade": false, "grade_id": "LoRALinear", "locked": false, "schema_version": 3, "solution": true, "task": false}
class LoRALinear(nn.Module):
    """A frozen linear layer with a trained update of rank `rank`, scaled by alpha / rank."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        ### BEGIN SOLUTION
        self.linear = linear.requires_grad_(False)
        device = linear.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, linear.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scaling = alpha / rank
        ### END SOLUTION

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ### BEGIN SOLUTION
        frozen = self.linear(x)
        update = x.to(self.lora_A.dtype) @ self.lora_A.T @ self.lora_B.T
        return (frozen + self.scaling * update).to(frozen.dtype)
        ### END SOLUTION

# %%
if ready("LoRALinear"):
    layer = LoRALinear(nn.Linear(64, 32), rank=4, alpha=8)
    trained = {name: tuple(p.shape) for name, p in layer.named_parameters() if p.requires_grad}
    print("trained:", trained, "of", sum(p.numel() for p in layer.parameters()), "parameters")

# %%
check(LoRALinear)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"The output differs at the start."** B is not zero. **"Nothing is learnt."** Both are zero, or the parameters are plain tensors: `nn.Parameter`.
# **"It asks for a gradient of W."** `linear.requires_grad_(False)`.
# </details>
#
# Your layer now goes around every linear layer of the base model, and the same run starts again with it. The library's LoRA (peft) trained the run above.

# %%
def wrap_linear_layers(model, rank, alpha):
    """Put your LoRALinear around each linear layer but the output layer."""
    model.requires_grad_(False)
    for name, module in list(model.model.named_modules()):
        if isinstance(module, nn.Linear):
            model.model.set_submodule(name, LoRALinear(module, rank, alpha))
    return model

if ready("tokenize_prompt_and_response", "sft_loss", "LoRALinear"):
    torch.manual_seed(0)
    own, _ = load_model(base_path, device=profile.engine.device)
    own = wrap_linear_layers(own, lora.rank, lora.alpha)
    own_run = quietly(own, examples)
    ends = [done.metrics[-1]["loss"] for done in (own_run, run)]
    display(training_curves({"peft": run.metrics, "your LoRALinear": own_run.metrics}, ["loss"],
                            title=f"Your layer ends at a loss of {ends[0]:.3f}, peft's at {ends[1]:.3f}"))

# %% [markdown]
# ## Exercise 4: four bits a weight
# *Difficulty 4 of 5, importance 3 of 5, 20 minutes*
#
# A frozen weight can be stored coarsely. AWQ (Lin et al. 2023, [2306.00978](https://arxiv.org/abs/2306.00978)) keeps four bits a weight: $w = (q - z)\,s$ with $q \in \{0, \dots, 15\}$, and one zero point $z$ and scale $s$ for each group of `group_size`
# neighbouring *inputs* of an output. A checkpoint stores (in, out): `qweight` is int32 (in, out / 8), eight numbers in each 32-bit word; `qzeros` is int32 (in / group, out / 8), packed in the same way; `scales` is (in / group, out).
# Inside a word nibble $i$, counted from the lowest bits, belongs to column $(0, 2, 4, 6, 1, 3, 5, 7)[i]$ of its eight: the order in which a GPU kernel wants them. Return the weight as `nn.Linear` holds it, (out, in), in float32.
# (AWQ's own idea is the search for scales *before* rounding, so that weights which meet large inputs lose least; it changes what is stored, not how it is read.)

# %% nbgrader={"grade": false, "grade_id": "dequantize_awq", "locked": false, "schema_version": 3, "solution": true, "task": false}
def dequantize_awq(qweight, qzeros, scales, group_size):
    """The float32 weight (out, in) of a packed AWQ layer."""
    ### BEGIN SOLUTION
    nibble_of_column = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7], dtype=torch.int32)

    def unpack(packed):
        return ((packed[..., None] >> (4 * nibble_of_column)) & 15).flatten(-2)

    zeros = unpack(qzeros).repeat_interleave(group_size, dim=0)  # (in, out)
    return ((unpack(qweight) - zeros) * scales.float().repeat_interleave(group_size, dim=0)).T
    ### END SOLUTION

# %%
if ready("dequantize_awq"):
    word = torch.tensor([[0x75316420]], dtype=torch.int32)  # the numbers 0 to 7 in AWQ's order
    one = torch.ones(1, 8, dtype=torch.float16)
    print(dequantize_awq(word, torch.zeros(1, 1, dtype=torch.int32), one, 1).flatten().tolist())

# %%
check(dequantize_awq)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"The numbers are right, the order is not."** Column c sits in nibble (0, 4, 1, 5, 2, 6, 3, 7)[c]: the inverse of the order above.
# **"Huge negative numbers."** The shift of a negative int32 drags ones in: `& 15` after the shift.
# **"Shapes do not fit."** Repeat zero points and scales for each input of a group, along dimension 0.
# </details>
#
# The shipped base model also comes in this layout. Your function against the loader, on every layer:

# %%
if ready("dequantize_awq") and profile.models.awq:
    packed, _ = load_model(profile.path(profile.models.awq), device="cpu")
    layers = {name: m for name, m in packed.named_modules() if hasattr(m, "qweight")}
    apart = [dequantize_awq(m.qweight, m.qzeros, m.scales, m.group_size) - m.dequantize()
             for m in layers.values()]
    worst = max(gap.abs().max().item() for gap in apart)
    print(f"{len(layers)} layers, largest difference from the loader's weights: {worst:g}")

# %% [markdown]
# ## Full, LoRA, NF4, AWQ: memory and quality
#
# One word in `load_model` changes how the frozen weights are stored: not at all frozen (full), float32 (LoRA), 4-bit NF4 (QLoRA, Dettmers et al. 2023, [2305.14314](https://arxiv.org/abs/2305.14314)) and 4-bit AWQ. LoRA layers stay float32 everywhere.

# %%
def load_for(method):
    """The model as each method trains it, and its tokenizer."""
    if method == "full":
        return load_model(base_path, device=profile.engine.device, dtype="float32")
    path = profile.path(profile.models.awq) if method == "awq" else base_path
    kind = method if method in ("nf4", "awq") else None
    return load_model(path, quantization=kind, lora=lora, device=profile.engine.device)

def train_method(method):
    """Memory of the weights and of what is trained, seconds, and rates after the same examples."""
    student, words = load_for(method)
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    done = quietly(student, examples, words, method)
    rates, rows = evaluate_maths(student, words, limit=profile.sizes.sft.method_problems)
    # float32 gradient and AdamW's two moments for each trained parameter
    return {"weights_mb": footprint(student) / 1e6, "training_state_mb": 12 * trained / 1e6,
            "trained": trained, "seconds": done.summary["seconds"],
            "format": rates["format_rate"], "strict": rates["accuracy"],
            "right": "".join("01"[row["metrics"]["reward"] > 0] for row in rows)}

if ready("tokenize_prompt_and_response", "sft_loss"):
    names = ["full", "lora", "nf4"] + ["awq"] * bool(profile.models.awq)
    methods = recorded_or_live("methods", lambda: {name: train_method(name) for name in names})

# %%
if ready("tokenize_prompt_and_response", "sft_loss"):
    needs = {name: m["weights_mb"] + m["training_state_mb"] for name, m in methods.items()}
    table = {name: {"weights": f"{m['weights_mb']:.1f} MB",
                    "gradient, moments": f"{m['training_state_mb']:.1f} MB",
                    "format": tuple(m["format"]), "strict": tuple(m["strict"])}
             for name, m in methods.items()}
    display(method_table(table, title=f"The same {len(examples)} examples; "
                                      f"{min(needs, key=needs.get)} needs least memory"))
    for one, other in itertools.combinations(methods, 2):
        apart = sum(a != b for a, b in zip(methods[one]["right"], methods[other]["right"], strict=True))
        print(f"{one} and {other} disagree on {apart} of {len(methods[one]['right'])} problems")

# %% [markdown]
# Read the intervals first: a difference inside them is not shown (that takes a paired test, lesson 06). Nor is an equal rate an equal model: two methods that are right equally often are not right on the same problems. On a model this small the embedding, which is never quantised, weighs as much as the layers; at 7 billion parameters the layers are nearly everything,
# and 4 bits turn 15 GB into 4 to 6. LoRA adapters merge into plain weights; over AWQ they merge into a dequantised copy only (`helpers.models.merge_adapter`), because the sum does not fit into four bits.
#
# ## Exercise 5: rejection sampling
# *Difficulty 2 of 5, importance 4 of 5, 10 minutes*
#
# Where do demonstrations come from? If an answer can be graded, the model can write them: sample reasoned answers, grade them, keep the right ones, train on those (RFT, Yuan et al. 2023, [2308.01825](https://arxiv.org/abs/2308.01825); S1 kept answers of a
# teacher at F1 of 0.9 or more). A reasoned answer to an open-book question ends with a line `Answer: ...`; graded is the text behind the *last* `Answer:`, by `token_f1`. Keep responses at or above the threshold, once each, in order;
# one that states no answer is left out.

# %% nbgrader={"grade": false, "grade_id": "rejection_sample", "locked": false, "schema_version": 3, "solution": true, "task": false}
def rejection_sample(prompts, samples, golds, threshold=0.9):
    """Rows {"prompt", "response", "f1"}; samples and golds hold one list for each prompt."""
    ### BEGIN SOLUTION
    kept = []
    for prompt, responses, accepted in zip(prompts, samples, golds, strict=True):
        for response in dict.fromkeys(responses):
            _, stated, said = response.rpartition("Answer:")
            f1 = token_f1(said, accepted)
            if stated and f1 >= threshold:
                kept.append({"prompt": prompt, "response": response, "f1": f1})
    return kept
    ### END SOLUTION

# %%
if ready("rejection_sample"):
    drawn = [" Vera has a fox.\nAnswer: fox", " Vera has a cat.\nAnswer: cat", " fox",
             " Vera has a fox.\nAnswer: fox"]
    print(rejection_sample(["Which pet?"], [drawn], [["fox", "red fox"]]))

# %%
check(rejection_sample)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"A wrong answer is kept."** The reasoning held the gold: grade what stands behind the last `Answer:`. **"Copies."** `dict.fromkeys` keeps order and drops repeats.
# </details>

# %%
QA_REASON = load_template("qa_reason")

def open_book(file, limit):
    records, _ = load_records(profile.path(file), limit=limit)
    prompts = [render(QA_REASON, passages=render_passages(r["passages"]), question=r["question"])
               for r in records]
    return prompts, list(records["answers"])

def reasoned(model, prompts, *, n=1, temperature=0.0):
    """Sampled responses, cut where the model goes on to a question of its own."""
    sampling = profile.sampling.settings(temperature=temperature, max_new_tokens=48,
                                         stop_strings=("\nQuestion:",))
    drawn = complete(model, tokenizer, prompts, sampling=sampling, n=n)
    texts = [completion.text.removesuffix("\nQuestion:") for completion in drawn]
    return [texts[start : start + n] for start in range(0, len(texts), n)]

def score_qa(model):
    prompts, golds = open_book(profile.data.qa_test, profile.sizes.sft.qa_problems)
    stated = [texts[0].rpartition("Answer:")[2] for texts in reasoned(model, prompts)]
    return [qa_scores(text, accepted) for text, accepted in zip(stated, golds, strict=True)]

def means(scores):
    return {name: sum(score[name] for score in scores) / len(scores) for name in ("sub_em", "f1")}

# %%
if ready("tokenize_prompt_and_response", "sft_loss", "rejection_sample"):
    prompts, golds = open_book(profile.data.qa_train, profile.sizes.sft.qa_questions)
    samples = reasoned(model, prompts, n=profile.sizes.sft.qa_samples, temperature=1.0)
    kept = rejection_sample(prompts, samples, golds)
    drawn = sum(map(len, samples))
    solved = len({row["prompt"] for row in kept})
    print(f"{drawn} samples, {len(kept)} distinct right ones kept, "
          f"for {solved} of {len(prompts)} questions")
    qa_before = score_qa(model)
    reader, _ = load_model(base_path, lora=lora, device=profile.engine.device)
    if kept:  # a policy that is right nowhere leaves nothing to learn from
        quietly(reader, kept, num_epochs=2)
    qa_after = score_qa(reader)
    for when, scores in (("before", qa_before), ("after", qa_after)):
        print(f"{when:6} SubEM {means(scores)['sub_em']:.3f}, F1 {means(scores)['f1']:.3f}")
    hits = [[score["sub_em"] > 0 for score in scores] for scores in (qa_after, qa_before)]
    test = paired_test(*hits)
    print(f"right only after: {test.only_first}, only before: {test.only_second}; p = {test.p_value:.2g}")

# %% [markdown]
# No new answer entered the model, only its own right ones, so little can change in one round: believe a difference only where the paired test does. What does this selection prefer? Questions that the
# model could already answer, and short answers. Lesson 07 runs the published version of it, with another policy as teacher.
#
# ## Findings

# %%
if ready("tokenize_prompt_and_response", "sft_loss", "rejection_sample"):
    findings = {
        "format_rate_before": before["format_rate"][0],
        "format_rate_after": after["format_rate"][0],
        "accuracy_before": before["accuracy"][0], "accuracy_after": after["accuracy"][0],
        "lenient_before": before["lenient_accuracy"][0],
        "lenient_after": after["lenient_accuracy"][0],
        "intervals": {name: list(triple[1:]) for name, triple in after.items()},
        "accuracy_of_seeds": [after["accuracy"][0], *(rates["strict"][0] for rates in seeds.values())],
        "methods": methods, "sweep": sweep, "sweep_second_seed": again,
        "rejection": {"samples": drawn, "kept": len(kept), "before": means(qa_before), "after": means(qa_after)}}
    save_findings("03", findings, seeds=[0, *map(int, seeds)])
    display(comparison_table("03", findings, ["s0.sft.128"]))

# %% [markdown]
# **What is built in, what is found.** That the format lies dormant in the base model was put into its training text. How few examples wake it, what the sweep does with unclosed targets, and what rounding to four bits costs, you measured.
#
# **Inspect**: one response of three steps before and after; did the demonstrations of short problems teach the model to stop early?
#
# ## Questions

# %%
answer("03-1", "a")

# %%
answer("03-2", "b")

# %%
answer("03-3", "c")

# %%
answer("03-4", "b")

# %%
answer("03-5", "a")

# %% [markdown]
# ## With a GPU
#
# `use_profile("full")` trains Qwen2.5-Math-1.5B on GSM8K with the same functions; `python3 -m workbook train sft` runs S2's settings on Qwen2.5-7B-Instruct from the command line (`workbook/configs/train/sft_full.yaml`). Predict first:
# will 128 examples be enough there, too?
#
# ## You have finished
#
# Your adapter lies in `runs/03/`. Lesson 04 starts from it and asks which of two answers is better; lesson 05 lets the shipped one of its kind practise the long problems that no demonstration showed.

# %%
progress()

# %% [markdown]
# ---
# # Going further
#
# ## What raised no error
#
# Most failures of a training raise nothing. `diagnose` reads a run's own records and names the ones it knows. Your run, and one with a mask that ends before the EOS:

# %%
if ready("tokenize_prompt_and_response", "sft_loss"):
    def loses_the_eos(prompts, responses, tokenizer, **options):
        batch = tokenize_prompt_and_response(prompts, responses, tokenizer, **options)
        kept = batch["response_mask"] & (batch["labels"] != tokenizer.eos_token_id)
        return batch | {"response_mask": kept}

    careless, _ = load_model(base_path, lora=lora, device=profile.engine.device)
    settings = settings_for(num_epochs=1, progress=False)
    short_run = train_sft(careless, examples[:32], settings, tokenizer=tokenizer,
                          functions=functions | {"tokenize_prompt_and_response": loses_the_eos})
    print("your run:  ", diagnose(run, data=examples, held_out=problems, tokenizer=tokenizer))
    print("by ids:    ", diagnose(short_run, data=examples[:32], tokenizer=tokenizer))

# %% [markdown]
# ## A bug hunt
#
# The loop below runs and its loss falls. It has up to three bugs, and they hide each other. Mend it in place; the judge trains for some seconds with yours and with a right
# loop, on the same rows in the same order, and shows where the curves part.

# %%
def training_loop(model, tokenizer, rows):
    """STEPS steps of SIZE rows in micro-batches of MICRO, the learning rate falling to 0."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LR * (step + 1) / STEPS
        losses.append(accumulate(model, optimizer, tokenizer, rows[step * SIZE:(step + 1) * SIZE]))
        optimizer.step()
    return losses


def batch_of(rows, tokenizer):
    prompts, responses = [r["prompt"] for r in rows], [r["response"] for r in rows]
    return tokenize_prompt_and_response(prompts, responses, tokenizer, append_eos=True)


def log_probs_of(model, batch):
    scores = model(batch["input_ids"]).logits.log_softmax(-1)
    return scores.gather(-1, batch["labels"][..., None]).squeeze(-1)


def accumulate(model, optimizer, tokenizer, rows):
    total, count = 0.0, SIZE // MICRO
    for start in range(0, SIZE, MICRO):
        optimizer.zero_grad()
        batch = batch_of(rows[start:start + MICRO], tokenizer)
        loss = sft_loss(log_probs_of(model, batch), batch["response_mask"]) / count
        loss.backward()
        total += loss.item()
    return total

# %%
if ready("tokenize_prompt_and_response", "sft_loss"):
    hunting = (demonstrations(SIZE * STEPS) * STEPS)[:SIZE * STEPS]
    verdict = judge_loop(training_loop, base_path, hunting)
    display(verdict.panel)
    display(verdict.figure)

# %% tags=["solution-only"]
def mended_step(model, tokenizer, rows):
    batches = [batch_of(rows[start:start + MICRO], tokenizer) for start in range(0, SIZE, MICRO)]
    tokens, total = sum(batch["response_mask"].sum() for batch in batches), 0.0  # of the whole step
    for batch in batches:
        loss = sft_loss(log_probs_of(model, batch), batch["response_mask"], normalizer=tokens)
        loss.backward()
        total += loss.item()
    return total


def mended_loop(model, tokenizer, rows):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 - step / STEPS)  # it rose
        optimizer.zero_grad()  # once a step: among the micro-batches it threw gradients away
        losses.append(mended_step(model, tokenizer, rows[step * SIZE:(step + 1) * SIZE]))
        optimizer.step()
    return losses

display(judge_loop(mended_loop, base_path, hunting).panel)

# %% [markdown]
# ## Packing, and its trap
#
# Padding is wasted work; packing puts several examples into one row. Then each must not read the ones before it. Restarting `position_ids` keeps them apart in transformers, but only with `use_cache=False`
# and no attention mask. With a mask of ones, with a cache, or without `position_ids` the examples leak into each other, and nothing says so:

# %%
if ready("tokenize_prompt_and_response"):
    texts = [tokenizer(row["prompt"] + row["response"])["input_ids"] for row in demonstrations(2)]
    packed_row = torch.tensor([texts[0] + texts[1]])
    places = torch.tensor([[*range(len(texts[0])), *range(len(texts[1]))]])
    with torch.no_grad():
        alone = model(torch.tensor([texts[1]]), use_cache=False).logits[0]
        apart = dict(position_ids=places, use_cache=False)
        ways = {"position_ids restart, no cache, no mask": apart,
                "the same with an attention mask": apart | dict(attention_mask=torch.ones_like(packed_row)),
                "the same with a cache": apart | dict(use_cache=True),
                "no position_ids": dict(use_cache=False)}
        for name, options in ways.items():
            logits = model(packed_row, **options).logits[0, len(texts[0]):]
            error = (logits - alone).abs().max()
            print(f"{name:42} largest error of the second example's logits {error:.2g}")

# %% [markdown]
# ## A ladder of learning rates
#
# LoRA wants about ten times the learning rate of full training ("LoRA Without Regret", Thinking Machines 2025). Each rung is one run of the lesson's examples.

# %%
def rung(method, lr):
    student, words = load_for(method)
    quietly(student, examples, words, lr=lr)
    rates, _ = evaluate_maths(student, words, limit=profile.sizes.sft.method_problems)
    return rates["accuracy"]

if ready("tokenize_prompt_and_response", "sft_loss"):
    ladder = recorded_or_live("ladder", lambda: {
        method: {lr: rung(method, lr) for lr in profile.sizes.sft.ladder}
        for method in ("full", "lora")})
    curves = {method: {float(lr): rate for lr, rate in rungs.items()}
              for method, rungs in ladder.items()}
    best = {method: max(rungs, key=lambda lr: rungs[lr][0]) for method, rungs in curves.items()}
    display(sweep_curves(curves, xlabel="learning rate", ylabel="strict accuracy",
                         title=f"Best learning rate: full {best['full']:g}, LoRA {best['lora']:g}"))
