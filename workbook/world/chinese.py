"""Fifty Chinese word problems of our own, in the GSM8K schema, for the prompts of lesson 06."""

import random

NAMES = ["小明", "小红", "小华", "小丽", "小刚", "小芳", "小军", "小燕"]

# (question, worked solution); a, b, c are the numbers, N and M two people.
TEMPLATES = [
    ("{N}有{a}个苹果，又买了{b}个，现在一共有多少个苹果？", "一共有{a}+{b}={r}个。", "a+b"),
    ("{N}有{a}支铅笔，送给{M}{b}支，还剩多少支？", "还剩{a}-{b}={r}支。", "a-b"),
    ("每盒有{b}块饼干，{N}买了{a}盒，一共有多少块饼干？", "一共有{a}*{b}={r}块。", "a*b"),
    (
        "{N}每天看{b}页书，看了{a}天，又看了{c}页，一共看了多少页？",
        "{a}天看了{a}*{b}={p}页。一共看了{p}+{c}={r}页。",
        "a*b+c",
    ),
    (
        "一个教室有{a}排座位，每排{b}个，坏了{c}个，还有多少个好的座位？",
        "一共有{a}*{b}={p}个。好的有{p}-{c}={r}个。",
        "a*b-c",
    ),
    (
        "{N}有{a}元，买了{b}本书，每本{c}元，还剩多少元？",
        "书一共{b}*{c}={p}元。还剩{a}-{p}={r}元。",
        "a-b*c",
    ),
    (
        "{N}上午摘了{a}个梨，下午摘了{b}个，平均分给{c}个朋友，每个朋友得到多少个？",
        "一共摘了{a}+{b}={p}个。每人{p}/{c}={r}个。",
        "(a+b)/c",
    ),
    (
        "{N}今年{a}岁，{M}比{N}大{b}岁，{c}年后{M}多少岁？",
        "{M}今年{a}+{b}={p}岁。{c}年后{p}+{c}={r}岁。",
        "a+b+c",
    ),
    (
        "一辆汽车每小时行{b}千米，行了{a}小时，离终点还有{c}千米，全程多少千米？",
        "已经行了{a}*{b}={p}千米。全程{p}+{c}={r}千米。",
        "a*b+c",
    ),
    (
        "{N}存了{a}枚硬币，{M}的硬币是{N}的{b}倍，两人一共有多少枚？",
        "{M}有{a}*{b}={p}枚。一共{a}+{p}={r}枚。",
        "a+a*b",
    ),
]


def _numbers(kind: str, rng: random.Random) -> dict[str, int] | None:
    """Numbers for one kind of problem, intermediate p and result r; None if they do not work."""
    a, b, c = rng.randint(4, 30), rng.randint(2, 9), rng.randint(2, 9)
    if kind == "a-b*c":
        a = rng.randint(60, 120)
    middle = {
        "a+b": 0,
        "a-b": 0,
        "a*b": 0,
        "a*b+c": a * b,
        "a*b-c": a * b,
        "a-b*c": b * c,
        "(a+b)/c": a + b,
        "a+b+c": a + b,
        "a+a*b": a * b,
    }[kind]
    result = {
        "a+b": a + b,
        "a-b": a - b,
        "a*b": a * b,
        "a*b+c": middle + c,
        "a*b-c": middle - c,
        "a-b*c": a - middle,
        "(a+b)/c": middle // c,
        "a+b+c": middle + c,
        "a+a*b": a + middle,
    }[kind]
    if result < 1 or (kind == "(a+b)/c" and middle % c):
        return None
    return {"a": a, "b": b, "c": c, "p": middle, "r": result}


def chinese_problems(count: int = 50, seed: int = 0) -> list[dict]:
    """`count` records `id, question, answer` in Chinese.

    >>> chinese_problems(1)[0]["answer"].splitlines()[-1].startswith("#### ")
    True
    """
    rng, found = random.Random(f"chinese-{seed}"), {}
    while len(found) < count:
        question, solution, kind = TEMPLATES[len(found) % len(TEMPLATES)]
        numbers = _numbers(kind, rng)
        if numbers is None:
            continue
        first, second = rng.sample(NAMES, 2)
        fields = {"N": first, "M": second, **numbers}
        text = question.format(**fields)
        found.setdefault(
            text,
            {
                "id": f"zh-{len(found):02d}",
                "question": text,
                "answer": f"{solution.format(**fields)}\n#### {numbers['r']}",
            },
        )
    return list(found.values())
