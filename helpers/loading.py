"""What is loaded is what was saved: the reports of transformers and peft, read and judged.

Both libraries draw what a file lacks at random and pass over what they have no place for; they say
so in a table or a warning at most. Here each of it is one sentence, an error.
"""

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from peft import PeftConfig, PeftModel, TaskType
from peft.utils import set_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from safetensors import safe_open

# What torch.compile, DDP and FSDP put into the names of a model that was saved inside them.
_WRAPPER = r"_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module"
WRAPPERS = rf"^(?:(?:module|{_WRAPPER})\.)+|(?:{_WRAPPER})\."
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
REWARD_HEAD = "score"


class UnfitError(ValueError):
    """What a folder holds is not what is wanted: the message says all that a user needs."""


# ---------------------------------------------------------------- checkpoints


def load_checkpoint(auto_class, source: str, **arguments):
    """The model of a checkpoint with every number from its file, and whether its head is new.

    auto_class: `AutoModelForCausalLM`, or `AutoModelForSequenceClassification`, for which a
    language model's checkpoint lacks the head `score` and holds one that is not needed.
    Names from inside torch.compile, DDP or FSDP are read as those of the model itself.

    Raises UnfitError, a ValueError, for a checkpoint that lacks a tensor, holds one of another
    size, or one that the model has no place for.
    """
    arguments |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, report = auto_class.from_pretrained(source, trust_remote_code=False, **arguments)
    if any(re.search(WRAPPERS, name) for name in report["unexpected_keys"]):
        model, report = auto_class.from_pretrained(
            source, trust_remote_code=False, key_mapping={WRAPPERS: ""}, **arguments
        )
        model._weight_conversions = []  # else they were put back on saving
    report["mismatched_keys"] = {*report["mismatched_keys"], *_rounded_wrong(model)}
    _require_all(model, report, source)
    return model, f"{REWARD_HEAD}.weight" in report["missing_keys"]


def require_one_model(source: str) -> None:
    """Raises UnfitError for a folder in which an adapter or other weights lie beside a model.

    transformers puts such an adapter on the model, and takes one of two sets of weights.
    """
    folder = Path(source)
    if (folder / ADAPTER_CONFIG).is_file():
        beside = (folder / "config.json").is_file()
        way = "move one of them to a folder of its own" if beside else "give its base model"
        raise UnfitError(
            f"The folder {source} holds an adapter ({ADAPTER_CONFIG}){' and a model' * beside}: "
            f"{way}, and name the adapter's as adapter."
        )
    if (folder / WEIGHTS).is_file() and any(folder.glob("model-*-of-*.safetensors")):
        raise UnfitError(
            f"The model folder {source} holds two sets of weights, {WEIGHTS} and "
            "model-...-of-...safetensors: delete the one that is not wanted."
        )


def require_free(folder: str | Path) -> None:
    """Raises ValueError for a folder where a model would come to lie beside other weights."""
    for name in (ADAPTER_CONFIG, INDEX):
        if (Path(folder) / name).exists():
            raise ValueError(
                f"{folder} holds other weights already ({name}), and a model beside them would "
                "not be read as it is: give another folder."
            )


def _rounded_wrong(model) -> Iterator[tuple[str, tuple, tuple]]:
    """Layers rounded at load from a weight of another size, which transformers does not report."""
    for name, layer in model.named_modules():
        weight = getattr(layer, "weight", None)
        if type(weight).__name__ in ("Params4bit", "Int8Params"):
            state = getattr(weight, "quant_state", None)  # NF4's: its weight is packed
            stored = tuple(weight.shape if state is None else state.shape)
            if stored != (wanted := (layer.out_features, layer.in_features)):
                yield f"{name}.weight", stored, wanted


def _require_all(model, report: dict, source: str) -> None:
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        raise UnfitError(
            f"The model {source} does not fit its config.json: {name} has the size "
            f"{tuple(stored)} in {stored_in(source, name)} and should have {tuple(wanted)}; give "
            "the configuration that was saved with the weights."
        )
    has_head = getattr(model, REWARD_HEAD, None) is not None
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    if has_head and _is_language_model(model.config):
        missing.discard(f"{REWARD_HEAD}.weight")
        unexpected = {name for name in unexpected if not name.startswith("lm_head.")}
    for name in sorted(unexpected, key=_heads_first):
        raise UnfitError(_no_place(model, name, source, has_head))
    for name in sorted(missing, key=_heads_first):
        raise UnfitError(
            f"The weights of the model {source} are not whole: {name} is missing in "
            f"{stored_in(source, name)}, and {type(model).__name__} needs it; save the model anew."
        )
    for problem in report.get("error_msgs", ()):
        first = str(problem).strip().split("\n", 1)[0]
        raise UnfitError(f"The model {source} cannot be loaded: {first}")


def _is_language_model(config) -> bool:
    """A checkpoint that says that it is a classifier has a head of its own."""
    names = getattr(config, "architectures", None) or []
    return not any(name.endswith("ForSequenceClassification") for name in names)


def _heads_first(name: str) -> tuple[bool, str]:
    """A head says more than a layer about what a checkpoint is of."""
    return ".layers." in name or ".h." in name, name


def _no_place(model, name: str, source: str, has_head: bool) -> str:
    kind, where = type(model).__name__, stored_in(source, name)
    if not has_head and name.startswith(f"{REWARD_HEAD}."):
        return (
            f"The model {source} is a reward model ({where} holds its head, {name}), and no "
            "language model: read it with load_reward_model."
        )
    own = f" (its head is {REWARD_HEAD}.weight)" if has_head else ""
    return (
        f"The model {source} holds {name} in {where}, which {kind} has no place for{own}: rename "
        "or remove the tensor, or give the configuration that was saved with it."
    )


def stored_in(folder: str, name: str) -> str:
    """The file in which a tensor is stored or should be: the one that holds it, else the list."""
    files = sorted(Path(folder).glob("*.safetensors"))
    for path in files:
        with safe_open(path, framework="pt") as file:
            if name in file.keys():
                return path.name
    index = Path(folder) / INDEX
    if index.is_file():
        found = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).get(name)
        return found or index.name
    return files[0].name if len(files) == 1 else "the checkpoint"


# ---------------------------------------------------------------- adapters


def load_adapter(model, source: str, task: TaskType, *, trainable: bool) -> PeftModel:
    """The model with a saved adapter on it, all of whose tensors fit, and which lacks none.

    task: what the adapter must have been trained for, `CAUSAL_LM` or `SEQ_CLS` (reward models).

    Raises UnfitError, a ValueError, for an adapter of another task, of another model, or for
    virtual tokens (prompt tuning and its relatives), which move every log-probability.
    """
    _require_file(source)
    try:
        config = PeftConfig.from_pretrained(source)
    except KeyError as error:
        raise UnfitError(
            f"The adapter {source} is of the kind {error}, which the installed peft does not know."
        ) from error
    except TypeError as error:
        raise UnfitError(f"{source}/{ADAPTER_CONFIG} is damaged: save the adapter anew.") from error
    require_task(config, task, source)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # judged below
        try:
            adapted = PeftModel.from_pretrained(model, source, is_trainable=trainable)
        except RuntimeError as error:
            raise UnfitError(_unfit_size(error, source)) from error
        except KeyError as error:  # of a part that is trained as a whole, such as a reward head
            raise UnfitError(_not_whole(source, error.args[0], config)) from error
    _require_fit(adapted, source)
    return adapted


def _require_file(source: str) -> None:
    """A folder without weights is taken by peft for a name on the hub."""
    folder = Path(source)
    if (folder / ADAPTER_CONFIG).is_file() and not any(folder.glob("adapter_model.*")):
        raise UnfitError(f"The adapter folder {source} holds no {ADAPTER_FILE}: save it anew.")


def require_task(config: PeftConfig, task: TaskType, source: str) -> None:
    if config.is_prompt_learning:
        raise UnfitError(
            f"The adapter {source} is of the kind {config.peft_type.value}, whose virtual tokens "
            "shift every log-probability: train LoRA layers instead."
        )
    start = str(getattr(config, "init_lora_weights", ""))
    if start.startswith("pissa_niter"):
        raise UnfitError(
            f"The adapter {source} lies on what an approximate SVD ({start}) left of the base "
            "model, which is another at each load: save it as a plain LoRA (peft's save_pretrained "
            "with path_initial_model_for_weight_conversion)."
        )
    if task == TaskType.SEQ_CLS and config.task_type != task:
        raise UnfitError(
            f"The adapter {source} belongs to a language model and holds no reward head: merge it "
            "into its base model first and give the merged folder as name_or_path."
        )
    if task != TaskType.SEQ_CLS and config.task_type not in (None, task):
        is_reward = config.task_type == TaskType.SEQ_CLS
        kind = "a reward model (SEQ_CLS)" if is_reward else f"the task {config.task_type}"
        way = "read it with load_reward_model" if is_reward else "train one for CAUSAL_LM"
        raise UnfitError(f"The adapter {source} belongs to {kind}, not a language model: {way}.")


def _unfit_size(error: RuntimeError, source: str) -> str:
    """The first of the tensors that torch lists, and how many there are."""
    pattern = r"size mismatch for (\S+): .*?(\[[\d, ]*\]).*?(\[[\d, ]*\])"
    found = re.findall(pattern, str(error))
    if not found:
        return f"The adapter {source} does not fit the base model: {str(error).splitlines()[0]}"
    name, stored, wanted = found[0]
    return (
        f"The adapter {source} does not fit the base model: in {ADAPTER_FILE} {name} has the size "
        f"{stored}, and this model needs {wanted} ({len(found)} such tensors); give the base model "
        "that it was trained on."
    )


def _require_fit(model: PeftModel, source: str) -> None:
    """Loads the adapter's file once more, for what peft keeps of its report for itself."""
    name = model.active_adapter
    result = set_peft_model_state_dict(
        model, load_peft_weights(source, device="cpu"), adapter_name=name
    )
    config = model.peft_config[name]
    missing = _of_adapter(model, name, set(result.missing_keys))
    for key in sorted(result.unexpected_keys):
        raise UnfitError(
            f"The adapter {source} does not fit the base model: {ADAPTER_FILE} holds {key}, which "
            f"{type(model.get_base_model()).__name__} has no place for; give the base model that "
            "it was trained on."
        )
    for key in sorted(missing):
        raise UnfitError(_not_whole(source, key, config))


def _not_whole(source: str, key: str, config: PeftConfig) -> str:
    return (
        f"The adapter {source} is not whole: {key} is missing in {ADAPTER_FILE}, and "
        f"{ADAPTER_CONFIG} ({config.peft_type.value}) asks for it; save it anew."
    )


def _of_adapter(model: PeftModel, name: str, missing: set[str]) -> list[str]:
    """The tensors of an adapter that were not loaded, by their own name or that of a tied one."""
    tensors = {key: t for key, t in model.state_dict().items() if name in key.split(".")}
    loaded = {tensor.data_ptr() for key, tensor in tensors.items() if key not in missing}
    return [key for key in tensors if key in missing and tensors[key].data_ptr() not in loaded]


# ---------------------------------------------------------------- special tokens


def require_special_tokens(model, tokenizer) -> None:
    """Raises UnfitError, a ValueError, for a special token without a row in the embedding.

    Of other tokens it is said: models of the hub may leave out the token of an image.
    """
    rows = embedding_rows(model)
    for kind, name in {"pad": "padding", "eos": "end", "bos": "start"}.items():
        number = getattr(tokenizer, f"{kind}_token_id")
        if number is not None and number >= rows:
            token = getattr(tokenizer, f"{kind}_token")
            raise UnfitError(
                f"The {name} token {token!r} of the tokenizer has the id {number}, but the "
                f"model's embedding has {rows} rows: set tokenizer.{kind}_token to a token that "
                "the model knows, or enlarge it (model.resize_token_embeddings) and save both."
            )
    without = [token for token, number in tokenizer.get_vocab().items() if number >= rows]
    if without:
        warnings.warn(
            f"The model's embedding has {rows} rows, and none for {len(without)} tokens of the "
            f"tokenizer, such as {min(without)!r}: a text that holds one of them cannot be read.",
            stacklevel=5,
        )


def embedding_rows(model) -> int:
    """How many token ids a model can read; model: a language model or a reward model."""
    embedding = getattr(model, "classifier", model).get_input_embeddings()
    return embedding.weight.shape[0]
