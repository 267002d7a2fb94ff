"""Names of functions, models and tokenizers: other numbers give another one, and only they do."""

import functools
import random
import re
import subprocess
import sys
import types
from decimal import Decimal
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.identity import model_identity, tokenizer_identity, value_identity
from helpers.models import LoraSettings, load_model, load_reward_model
from helpers.reward_functions import reward_identity, weighted_sum
from helpers.reward_models import from_model
from helpers.rewards import r1_zero_reward

ROOT = Path(__file__).parents[2]


def graded(response, gold, weight=1.0, *, bonus=0.0):
    return {"format_reward": 0.0, "answer_reward": 0.0, "reward": weight * len(response) + bonus}


class Judge:
    scale = 1.0

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, response, gold):
        return graded(response, gold, self.weight * self.scale)


class Slotted:
    __slots__ = ("weight",)

    def __init__(self, weight):
        self.weight = weight


class Network(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.layer, self.weight_of_all = torch.nn.Linear(2, 1), weight
        torch.nn.init.ones_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)

    def forward(self, x):
        return self.weight_of_all * self.layer(x)


def enclosing(weight):
    def reward(response, gold):
        return graded(response, gold, weight)

    return reward


def wrapped(weight):
    @functools.wraps(graded)
    def reward(*inputs):
        return graded(*inputs, weight)

    return reward


def with_attribute(weight):
    def reward(response, gold):
        return graded(response, gold, reward.weight)

    reward.weight = weight
    return reward


def of_source(text, **names):
    """A function as a notebook's cell makes it, with globals of its own."""
    names["__name__"] = "__main__"
    exec(compile(text, "<cell>", "exec"), names)
    return names["reward"]


CALLS = "def helper(x):\n    return {0} * x\ndef reward(response, gold):\n    return helper(1)"
READS = "def reward(response, gold):\n    return len(response) * WEIGHT"
CACHED = "import functools\n@functools.cache\ndef reward(response, gold):\n    return {0}"
LAZY = ("import functools\nclass Own:\n    @functools.cached_property\n    def weight(self):\n"
        "        return {0}\nreward = Own()")
OWN = "class Own({0}):\n    def __call__(self, response, gold):\n        return {1}\nreward = Own()"
META = ("class Kind(type):\n    def __call__(self, response, gold):\n        return {0}\n"
        "class reward(metaclass=Kind):\n    pass")


class Share(float):
    pass


def table(weight):
    """More rows than a table prints."""
    return pd.DataFrame({"weight": [0.0] * 100 + [weight] + [0.0] * 100})


def hooked(weight):
    layer = torch.nn.Identity()
    layer.register_forward_hook(of_source(f"def reward(layer, given, found):\n    return {weight}"))
    return layer


SUBCLASS = type("Other", (Judge,), {"scale": 2.0})
KINDS = {
    "a partial": lambda w: partial(graded, weight=w),
    "a partial's place": lambda w: partial(graded, "text", "gold", w),
    "a closure": enclosing,
    "a wrapper with the names of another": wrapped,
    "a callable object": Judge,
    "a method of an object": lambda w: Judge(w).__call__,
    "an object without a dict": Slotted,
    "a default": lambda w: of_source(f"def reward(r, g, w={w}):\n    return w"),
    "a default by name": lambda w: of_source(f"def reward(r, g, *, w={w}):\n    return w"),
    "a constant of the code": lambda w: of_source(f"def reward(r, g):\n    return {w}"),
    "a global": lambda w: of_source(READS, WEIGHT=w),
    "a table": lambda w: partial(graded, {"a": [1, (2, {w})]}),
    "a function that is called": lambda w: of_source(CALLS.format(w)),
    "an array": lambda w: partial(graded, np.array([0.0, w])),
    "a tensor": lambda w: partial(graded, torch.tensor([0.0, w])),
    "a pattern": lambda w: partial(graded, re.compile(f"{w}" + "a" * 300)),
    "a decimal": lambda w: partial(graded, Decimal(str(w))),
    "an attribute of the function": with_attribute,
    "a function that keeps its results": lambda w: of_source(CACHED.format(w)),
    "a property that keeps its result": lambda w: of_source(LAZY.format(w)),
    "the search of a pattern": lambda w: of_source(READS, WEIGHT=re.compile(f"{w}").search),
    "the look-up in a table": lambda w: of_source(READS, WEIGHT={"a": w}.get),
    "a function for arrays": lambda w: np.vectorize(of_source(READS, WEIGHT=w)),
    "a list with code": lambda w: of_source(OWN.format("list", w)),
    "a table with code": lambda w: of_source(OWN.format("dict", w)),
    "a number of one's own class": lambda w: partial(graded, weight=Share(w)),
    "a class of a class": lambda w: of_source(META.format(w)),
    "a row of a data frame": lambda w: partial(graded, table(w)),
    "a seed": lambda w: partial(graded, random.Random(w)),
    "a seed of numpy": lambda w: partial(graded, np.random.default_rng(int(8 * w))),
    "a sparse tensor": lambda w: partial(graded, torch.tensor([0.0, w]).to_sparse()),
    "a hook": hooked,
    "a network's own number": Network,
    "the weight of a sum": lambda w: weighted_sum((w, graded), (1.0, r1_zero_reward)),
    "a digit of a weight that %g rounds off": lambda w: weighted_sum((1 + w * 1e-9, graded)),
    "a term of a sum": lambda w: weighted_sum((1.0, partial(graded, weight=w))),
    "an option of the course's grader": lambda w: partial(r1_zero_reward, spacing=str(w)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_is_named_with_all_that_it_hangs_on(kind):
    make = KINDS[kind]
    assert value_identity(make(0.5)) == value_identity(make(0.5))
    assert value_identity(make(0.5)) != value_identity(make(0.75))
    assert reward_identity(make(0.5)) != reward_identity(make(0.75))


def test_two_functions_of_one_line_and_a_class_below_another_are_told_apart():
    first, second = (lambda response, gold: 1.0), (lambda response, gold: 2.0)
    assert value_identity(first) != value_identity(second)
    assert value_identity(Judge(1.0)) != value_identity(SUBCLASS(1.0))


def test_modules_inside_modules_and_imports_inside_functions_are_read(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for weight in (0.5, 0.75):
        (tmp_path / "own_lazily.py").write_text(f"WEIGHT = {weight}\n")
        inner, outer = types.ModuleType("own_outer.inner"), types.ModuleType("own_outer")
        outer.inner, inner.WEIGHT = inner, weight
        reads = "def reward(response, gold):\n    return own_outer.inner.WEIGHT"
        lazy = "def reward(response, gold):\n    import own_lazily\n    return own_lazily.WEIGHT"
        found += [of_source(reads, own_outer=outer), of_source(lazy)]
        found[-2:] = map(value_identity, found[-2:])
    assert len(set(found)) == 4
    function = of_source(lazy)
    function("", "")  # now it is imported, and still the same
    assert value_identity(function) == found[-1]


def test_an_object_that_answers_nothing_has_a_name():
    class Mute:
        def __getattr__(self, name):
            raise RuntimeError(name)

    assert value_identity(Mute()) == value_identity(Mute())


def test_what_refers_to_itself_has_a_name():
    circle = [1.0]
    circle.append(circle)
    assert value_identity(circle) != value_identity([1.0, [1.0]])


def test_a_name_is_the_same_in_every_process(tmp_path):
    """Hashes of texts, and so the order of sets, differ from process to process."""
    (tmp_path / "mine.py").write_text(
        "import logging, re\nlog = logging.getLogger('x')\nNAMES = {'a', 'b', 'c', 'd'}\n"
        "def reward(response, gold, table={'x': {'p', 'q', 'r'}}):\n"
        "    log.info('graded')\n    return sum(n in {'u', 'v', 'w'} for n in NAMES)\n")
    code = ("import sys; sys.path.insert(0, sys.argv[1])\nimport mine\n"
            "from helpers.identity import value_identity\nprint(value_identity(mine.reward))")
    found = {
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, text=True, check=True,
                       capture_output=True, env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
                       ).stdout
        for seed in ("1", "2")  # the first compiles the file, the second reads what was compiled
    }
    assert len(found) == 1


def base_of(folder, **lora):
    return model_identity(load_model(folder, lora=LoraSettings(rank=2, **lora))[0], trained=False)


def test_any_frozen_weight_and_every_lora_setting_names_the_base(tiny_folder):
    model, _ = load_model(tiny_folder, lora=LoraSettings(rank=2))
    before = model_identity(model, trained=False)
    frozen = model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight
    assert not frozen.requires_grad
    with torch.no_grad():
        row = frozen[0, :2].clone()
        frozen[0, :2] = row.flip(0)  # every sum stays what it was
    assert model_identity(model, trained=False) != before
    with torch.no_grad():
        frozen[0, :2] = row
        next(p for p in model.parameters() if p.requires_grad).add_(1.0)
    assert model_identity(model, trained=False) == before
    assert model_identity(model) != before
    others = [base_of(tiny_folder, alpha=8), base_of(tiny_folder, dropout=0.1)]
    assert len({before, *others}) == 3


def test_scalings_of_single_layers_and_the_configuration_name_the_base(tiny_folder):
    from peft import LoraConfig, get_peft_model

    def identity(theta=10_000.0, **options):
        model, _ = load_model(tiny_folder)
        model.config.rope_parameters = {"rope_type": "default", "rope_theta": theta}
        config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], **options)
        return model_identity(get_peft_model(model, config), trained=False)

    found = [identity(), identity(alpha_pattern={"q_proj": 8}), identity(use_rslora=True),
             identity(theta=20_000.0)]
    assert len(set(found)) == 4 and identity() == found[0]


def test_the_scales_of_a_four_bit_base_name_it(tmp_path, tiny_tokenizer):
    """Weights of twice the size have the same four bits: only the scales of the blocks differ."""
    from tests.conftest import random_qwen2

    found = []
    for factor in (1.0, 2.0):
        model = random_qwen2(tiny_tokenizer)
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.mul_(factor)
        model.save_pretrained(tmp_path / str(factor))
        tiny_tokenizer.save_pretrained(tmp_path / str(factor))
        loaded, _ = load_model(tmp_path / str(factor), quantization="nf4", dtype="float32",
                               device="cpu", lora=LoraSettings(rank=2))
        found.append(loaded)
    packed = [m.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight for m in found]
    assert torch.equal(packed[0].data, packed[1].data)
    assert len({model_identity(model, trained=False) for model in found}) == 2


def test_the_base_of_a_reward_model_names_its_reward(tiny_folder):
    names = []
    for change in (0.0, 1e-3):
        model, tokenizer = load_reward_model(tiny_folder, lora=LoraSettings(rank=2), device="cpu")
        with torch.no_grad():
            model.classifier.model.layers[1].mlp.down_proj.base_layer.weight[0, 0] += change
        names.append(reward_identity(from_model(model, tokenizer, batch_size=4 + len(names))))
    assert names[0] != names[1]
    again, tokenizer = load_reward_model(tiny_folder, lora=LoraSettings(rank=2), device="cpu")
    assert reward_identity(from_model(again, tokenizer, batch_size=9)) == names[0]


def test_a_tokenizer_is_named_by_what_it_does_and_not_by_its_last_call(tiny_folder):
    _, tokenizer = load_model(tiny_folder)
    before = tokenizer_identity(tokenizer)
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=2)
    assert tokenizer_identity(tokenizer) == before
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    templated = tokenizer_identity(tokenizer)
    tokenizer.add_tokens(["Nora"])
    assert len({before, templated, tokenizer_identity(tokenizer)}) == 3
