"""What each lesson found in the main, as one line of text: for the report of a learner's runs."""

from workbook.published import own_value

# Names of numbers by their path in findings.json; a star stands for every key at its place.
MAIN_NUMBERS = {
    "01": {
        "strict accuracy": "strict_accuracy",
        "lenient accuracy": "lenient_accuracy",
        "format": "strict_format_rate",
        "pass@1": "pass_at_1",
        "pass@8": "pass_at_8",
        "SubEM": "qa_sub_em",
        "F1": "qa_f1",
    },
    "02": {
        "training pairs in order": "train_accuracy",
        "held-out pairs in order": "test_accuracy",
        "by clean labels": "test_accuracy_clean",
        "by length alone": "length_only_accuracy",
        "correlation with length": "length_correlation_before",
        "with length taken out": "length_correlation_after",
    },
    "03": {
        "format before": "format_rate_before",
        "format after SFT": "format_rate_after",
        "strict accuracy before": "accuracy_before",
        "after SFT, by seed": "accuracy_of_seeds",
    },
    "04": {
        "strict accuracy before": "accuracy_start",
        "after DPO, by seed": "accuracy_dpo",
        "win rate, off-policy pairs": "win_rate_overtrained",
        "win rate, on-policy pairs": "win_rate_fixed",
    },
    "05": {
        "strict accuracy before": "accuracy_start",
        "after GRPO, by seed": "accuracy_grpo",
        "final accuracy of the ablations, by seed": "ablations.*.final",
        "pass@k before": "pass_at_k.start.*",
        "pass@k after GRPO": "pass_at_k.GRPO.*",
    },
    "06": {
        "accuracy of the base": "strategies.*.base.accuracy",
        "accuracy of the tuned": "strategies.*.tuned.accuracy",
    },
    "07": {"SubEM": "methods.*.sub_em", "F1": "methods.*.f1", "negatives": "negatives"},
}


def main_numbers(lesson: str, findings: dict, most: int = 6) -> str:
    """The lesson's main numbers; where it has none of them, the first plain ones there are.

    Example:
        >>> main_numbers("05", {"accuracy_start": 0.5, "accuracy_grpo": [0.75, 0.7]})
        'strict accuracy before 0.5; after GRPO, by seed 0.75 / 0.7'
    """
    parts = [
        f"{name} {shown}"
        for name, path in MAIN_NUMBERS.get(lesson, {}).items()
        if (shown := _numbers_at(findings, path))
    ]
    plain = [
        f"{name.replace('_', ' ')} {shown}"
        for name, value in findings.items()
        if name != "seconds" and not isinstance(value, list) and (shown := _numbers(value))
    ]
    return "; ".join(parts or plain[:most]) or "-"


def _numbers_at(findings: dict, path: str) -> str:
    """The numbers under a path; those under a star in brackets, with their keys."""
    before, star, after = path.partition(".*")
    found = own_value(findings, before)
    if not star:
        return _numbers(found)
    group = found if isinstance(found, dict) else {}
    shown = {key: _numbers(own_value(group, [key, *after.split(".")[1:]])) for key in group}
    joined = ", ".join(f"{key}: {numbers}" for key, numbers in shown.items() if numbers)
    return joined and f"({joined})"


def _numbers(value) -> str:
    """One number or a list of them as text; nothing where it is anything else."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return ""
    return " / ".join(f"{v:,}" if isinstance(v, int) else f"{v:.3g}" for v in values)
