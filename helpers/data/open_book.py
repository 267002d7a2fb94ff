"""Open-book questions as training data: records to prompts, and a policy's wrong answers."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from helpers.data.fields import has_rank
from helpers.prompts import render, render_passages
from helpers.rewards import normalize_answer


def open_book_record(
    record: Mapping[str, Any], template: str, most_passages: int = 5
) -> dict[str, Any]:
    """One record of open-book QA in the form of Natural Questions as prompt, response, answers.

    record: `question`; `passages`, best first, each a text or {"title", "text"} as a retriever
        returns them (the title then stands before the text, after it a colon); `answers`, a list
        of texts or a single one.
    template: holds {passages} and {question}. The first `most_passages` passages are shown, each
        on one line.

    Returns {"prompt", "response", "answers"}: answers without empty and repeated ones; the
    response is a space and the first answer that stands in a shown passage, else the first one.

    Raises ValueError for an empty question, and where no answer is left.

    Example:
        >>> record = {"question": "Where?", "passages": ["In Port Arlo."],
        ...           "answers": ["Arlo Town", "Port Arlo"]}
        >>> open_book_record(record, "{passages}\\nQ: {question}")
        {'prompt': '[1] In Port Arlo.\\nQ: Where?', 'response': ' Port Arlo', \
'answers': ['Arlo Town', 'Port Arlo']}
    """
    question, answers = record["question"].strip(), record["answers"]
    answers = [answers] if isinstance(answers, str) else answers
    answers = [*dict.fromkeys(answer.strip() for answer in answers if answer.strip())]
    if not question or not answers:
        raise ValueError(f"the record has no {'answer' if question else 'question'}")
    shown = [_one_line(passage) for passage in record["passages"][:most_passages]]
    target = next((a for a in answers if any(a in passage for passage in shown)), answers[0])
    prompt = render(template, passages=render_passages(shown), question=question)
    return {"prompt": prompt, "response": f" {target}", "answers": answers}


def _one_line(passage: str | Mapping[str, str]) -> str:
    if not isinstance(passage, str):
        title = passage.get("title") or ""
        passage = f"{title}: {passage['text']}" if title.strip() else passage["text"]
    return " ".join(passage.split())


def negatives(
    rows: Iterable[Mapping[str, Any]], targets: Mapping[Any, str], *, most: int = 1
) -> tuple[list[dict[str, str]], Counter]:
    """Pairs of a target and the policy's own wrong answers to the same question.

    rows: lines of `helpers.evaluation.grade_completions` under `qa_reward`, several a question.
    targets: the response to learn, by id. A negative ended by itself, has words, and shares none
    with a gold answer: an alias or a long right answer among the negatives teaches the wrong
    thing. White space at its end, such as a stop string, is taken off. Of answers that differ in
    capitals, punctuation and articles alone one counts; `most` a question are kept.

    Returns ({"prompt", "chosen", "rejected"} ..., dropped): how many responses were left out as
    "cut off", "empty", "no reward" (None or NaN), "right" (SubEM 1), "partly right" (F1 above 0),
    "repeated", "not needed". Raises ValueError for a question without a target.

    Example:
        >>> row = {"id": 7, "prompt": "Q", "finish_reason": "eos", "generation": " Osterby.",
        ...        "metrics": {"answer_reward": 0.0, "reward": 0.0}}
        >>> negatives([row, row], {7: " Nelgar"})
        ([{'prompt': 'Q', 'chosen': ' Nelgar', 'rejected': ' Osterby.'}], Counter({'repeated': 1}))
    """
    pairs, dropped, wrong = [], Counter(), {}
    for row in rows:
        before = wrong.setdefault(row["id"], set())
        text, metrics = normalize_answer(row["generation"]), row["metrics"]
        if row["finish_reason"] not in ("eos", "stop_string"):
            dropped["cut off"] += 1
        elif not text:
            dropped["empty"] += 1
        elif not (has_rank(metrics["answer_reward"]) and has_rank(metrics["reward"])):
            dropped["no reward"] += 1
        elif metrics["answer_reward"]:
            dropped["right"] += 1
        elif metrics["reward"]:
            dropped["partly right"] += 1
        elif text in before:
            dropped["repeated"] += 1
        else:
            before.add(text)
            if len(before) > most:
                dropped["not needed"] += 1
                continue
            if row["id"] not in targets:
                raise ValueError(f"targets has no response for the question {row['id']!r}.")
            sides = {"chosen": targets[row["id"]], "rejected": row["generation"].rstrip()}
            pairs.append({"prompt": row["prompt"], **sides})
    return pairs, dropped
