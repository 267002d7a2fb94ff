"""`token_view`: the rows of a training batch as coloured tokens, to be read before a training."""

import html

# The mark and the underline say it without colour, too.
_STYLES = {
    "response": "background:#e9f6f0;color:#0f5132;border-bottom:2px solid #1a7f5a",
    "prompt": "background:#f1f2f4;color:#3c4350",
    "padding": "background:#fff;color:#8a909c;text-decoration:line-through",
}


class TokenView:
    """The labels of a batch: what carries loss, what is only read, what is padding."""

    def __init__(self, batch, tokenizer):
        rows = zip(batch["labels"].tolist(), batch["response_mask"].tolist(), strict=True)
        self.rows = [
            list(zip((tokenizer.decode([token]) for token in labels), _kinds(mask), strict=True))
            for labels, mask in rows
        ]

    def __repr__(self) -> str:
        marks = {"response": "[{}]", "prompt": "{}", "padding": "~{}~"}
        lines = [" ".join(marks[kind].format(text) for text, kind in row) for row in self.rows]
        return "\n".join([*lines, "[carries loss]  only read  ~padding~"])

    def _repr_html_(self) -> str:
        lines = ["".join(_chip(text, kind) for text, kind in row) for row in self.rows]
        words = {"response": "carries\u00a0loss", "prompt": "only\u00a0read", "padding": "padding"}
        legend = "".join(_chip(name, kind) for kind, name in words.items())
        rows = "".join(f"<div style='margin:.25em 0'>{line}</div>" for line in [*lines, legend])
        return f"<div style='font-family:monospace;line-height:1.9'>{rows}</div>"


def _kinds(response_mask: list[bool]) -> list[str]:
    """What each label of a row is: before its response, in it, or behind it."""
    last = max((place for place, counts in enumerate(response_mask) if counts), default=-1)
    return ["response" if counts else "prompt" if place < last else "padding"
            for place, counts in enumerate(response_mask)]


def _chip(text: str, kind: str) -> str:
    shown = html.escape(text.replace("\n", "\u21b5")).replace(" ", "\u00b7")
    style = f"{_STYLES[kind]};padding:.1em .25em;margin:.1em"
    return f"<span style='{style}'>{shown or '&nbsp;'}</span>"


def token_view(batch, tokenizer) -> TokenView:
    """Show `labels` token by token, by what the response mask says.

    batch: the dict of `tokenize_prompt_and_response`.

    Example: `display(token_view(batch, tokenizer))`
    """
    return TokenView(batch, tokenizer)
