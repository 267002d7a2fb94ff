"""Checks of lesson 01: extraction, equivalence, the strict reward, QA scores, the summary."""

from tests.lessons.asserts import assert_cases, assert_close, assert_equal, assert_true

# ---------------------------------------------------------------- extract_answer


def test_extract_answer__reads_the_tag(fn):
    "The content of the answer tag, without the white space around it."
    assert_cases(
        fn,
        [
            ("6*3=18. </think> <answer>18</answer>", "18"),
            ("so it is </think>\n<answer>\n 7 eggs \n</answer>", "7 eggs"),
        ],
        hint="Take what stands between <answer> and </answer>, and strip it.",
    )


def test_extract_answer__last_statement_counts(fn, rng):
    "A text that corrects itself is taken at its last word."
    first, last = rng.sample(range(2, 99), 2)
    assert_cases(
        fn,
        [
            (f"<answer>{first}</answer> no, <answer>{last}</answer>", str(last)),
            (f"\\boxed{{{first}}} and then \\boxed{{{last}}}", str(last)),
            (f"The answer is {first}. Wait: the answer is {last}.", str(last)),
            (f"#### {first}\nNo.\n#### {last}\nDone.", str(last)),
            (f"<answer>{first} <answer>{last}</answer>", str(last)),
            (f"<answer>{last}</answer> or <answer>{first}", str(last), "An open tag is no answer."),
        ],
        hint="re.search gives the first match; the answer that counts is the last one.",
    )


def test_extract_answer__other_forms(fn, rng):
    "Without a tag: a box, then a line of ####, then 'the answer is'."
    number = rng.randint(2, 999)
    assert_cases(
        fn,
        [
            (f"The result is \\boxed{{{number}}}.", str(number)),
            (f"5+4=9.\n#### {number}", str(number)),
            (
                f"So the answer is {number}.",
                str(number),
                "The full stop that ends a sentence does not belong to the number.",
            ),
            ("\\boxed{-2.5}", "-2.5"),
            ("#### -1,000 eggs\nDone.", "-1,000 eggs", "The answer ends with its line."),
            ("The answer is -1,000.", "-1,000", "A number may have a sign and commas."),
            ("The answer is 2.50.", "2.50", "A number may have decimals."),
            ("<answer>Nelgar, 3/4</answer>", "Nelgar, 3/4", "A tag may hold any text, as it is."),
        ],
    )


def test_extract_answer__order_of_forms(fn):
    "A tag outranks a box, a box outranks ####, and #### outranks a sentence."
    assert_cases(
        fn,
        [
            ("<answer>3</answer> or \\boxed{4}", "3"),
            ("\\boxed{4}\n#### 5", "4"),
            ("The answer is 6.\n#### 5", "5"),
        ],
        hint="Try the forms one after the other and return at the first that is there.",
    )


def test_extract_answer__nothing_stated(fn):
    "No statement, no answer: an intermediate result is not one."
    assert_cases(
        fn,
        [
            ("", None),
            (
                "Together: 4+5=9.",
                None,
                "A number in the reasoning is not a stated answer: return None.",
            ),
            ("<answer>18", None, "An open tag states nothing yet."),
            ("There is 9 left.", None, 'Only "answer is" states an answer.'),
            (
                "The answer is not known: 4+5=9.",
                None,
                'The number must stand directly behind "answer is".',
            ),
        ],
        hint="Return None, not an empty string: the caller must be able to tell.",
    )


# ---------------------------------------------------------------- is_equivalent


def test_is_equivalent__same_number_other_form(fn):
    "Commas, currency signs, a trailing full stop, decimals and units do not change a number."
    assert_cases(
        fn,
        [
            (("18", "18"), True),
            (("1,000", "1000"), True),
            (("$18.00", "18"), True),
            (("18.", "18"), True),
            (("18 eggs", "18"), True),
            (("-5", "-5"), True),
            (("1,234,567", "1234567"), True),
            ((" 18 ", "18"), True),
            (("18", "18 eggs"), True),
            (("18 eggs", "18 apples"), True, "Units are not compared."),
            (("18 square feet", "18"), True, "A unit may have up to three words."),
            (("\\boxed{18}", "18"), True, "A box around the number is taken off."),
            ((".5", "0.5"), True),
        ],
        hint="Clean both texts in the same way, then compare values, not texts.",
    )


def test_is_equivalent__different_numbers(fn, rng):
    "Another number is another number, however close."
    number = rng.randint(10, 90)
    assert_cases(
        fn,
        [
            ((str(number), str(number + 1)), False),
            ((f"-{number}", str(number)), False),
            ((f"{number}0", str(number)), False),
            (("0.33", "1/3"), False),
            (("18.0000001", "18"), False),
            (("-3/4", "3/4"), False, "The sign belongs to the fraction, too."),
        ],
        hint="Compare exactly: fractions.Fraction reads '0.33' and '1/3' without rounding.",
    )


def test_is_equivalent__fractions_and_percent(fn):
    "3/4 is 0.75 and 18 % is 0.18; 18 alone is 18 % only where the gold has the sign."
    assert_cases(
        fn,
        [
            (("3/4", "0.75"), True),
            (("18%", "0.18"), True),
            (("18 %", "18%"), True),
            (("18", "18%"), True, "The gold says per cent, so 18 can only mean 18 %."),
            (("18%", "18"), False, "The gold has no percent sign, so 18 % is 0.18."),
            (("0.18", "18%"), True),
            (("1800%", "18%"), False, "Only a bare number may be read as per cent."),
            (("-3/4", "-0.75"), True),
        ],
    )


def test_is_equivalent__one_answer_only(fn):
    "Two numbers, a comparison or a sentence are no answer."
    assert_cases(
        fn,
        [
            (("19, 18", "18"), False),
            (("17 < 18", "18"), False),
            (("not 18", "18"), False),
            (("18 < x", "18"), False),
            (("18 or so", "18"), False, "A word that changes the number is no unit."),
            (("18 million", "18"), False, "A word that changes the number is no unit."),
            (("1 8", "18"), False),
            (("1,8", "18"), False, "A comma stands before groups of three digits."),
            (("", "18"), False),
            (("eggs", "18"), False),
        ],
        hint="The whole text must be one number with at most a unit: match it from end to end.",
    )


def test_is_equivalent__hostile_text(fn):
    "A grader reads what a policy writes: long or odd text is refused at once, never evaluated."
    assert_cases(
        fn,
        [
            (("9^9^9^9", "18"), False),
            (("9" * 100_000, "18"), False),
            (("(" * 3000 + "18" + ")" * 3000, "18"), False),
            (("1/0", "18"), False),
            (("18", "1/0"), False),
            (("9+9", "18"), False, "Read numbers; never evaluate expressions."),
            (("0" * 250 + "18", "18"), False),
        ],
        hint="Refuse texts over 200 characters before parsing; a zero denominator is no number.",
    )


# ---------------------------------------------------------------- r1_zero_reward


def _parts(format_reward, answer_reward):
    return {
        "format_reward": float(format_reward),
        "answer_reward": float(answer_reward),
        "reward": float(format_reward and answer_reward),
    }


def test_r1_zero_reward__right_answer_in_format(fn, rng):
    "All three parts are 1.0; the tags may stand on lines of their own."
    number = rng.randint(2, 500)
    for gap in (" ", "\n", "", " \n "):
        got = fn(f" 1+1=2. </think>{gap}<answer>{number}</answer>", str(number))
        assert_equal(
            got, _parts(1, 1), hint="Any white space, or none, may stand between the tags."
        )
    for text in ("a\nb </think>\n<answer>\n7\n</answer>\n", " 6 < 7 </think> <answer>7</answer>"):
        assert_equal(fn(text, "7"), _parts(1, 1), hint="The text may hold lines and other signs.")


def test_r1_zero_reward__wrong_answer_in_format(fn, rng):
    "The format is paid, the answer is not, and the reward is 0."
    number = rng.randint(2, 500)
    got = fn(f" so. </think> <answer>{number + 1}</answer>", str(number))
    assert_equal(got, _parts(1, 0), hint="reward is 1 only where the answer is right, too.")
    for said in ("17", "6, 7", "eggs"):
        got = fn(f" so </think> <answer>{said}</answer>", "7")
        assert_equal(got, _parts(1, 0), hint="The format holds; is_equivalent judges the answer.")


def test_r1_zero_reward__right_answer_without_format(fn, rng):
    "A right number outside the tags earns nothing: this is what makes the metric strict."
    number = rng.randint(2, 500)
    for text in (
        f" The answer is {number}.",
        f" <answer>{number}</answer>",
        f" </think> <answer>{number}",
        f" so </think> {number}",
    ):
        assert_equal(
            fn(text, str(number)),
            _parts(0, 0),
            hint="Without </think> and a closed <answer> pair there is nothing to grade.",
        )


def test_r1_zero_reward__one_answer_at_the_end(fn, rng):
    "Exactly one answer, with nothing but white space after it or between the tags."
    n = rng.randint(2, 500)
    cases = [
        f" so </think> <answer>{n}</answer> I hope this helps.",
        f" so </think> <answer>{n + 1}</answer> <answer>{n}</answer>",
        f" so </think> hence <answer>{n}</answer>",
        f" a </think> b </think> <answer>{n}</answer>",
        f"<answer>1</answer> </think> <answer>{n}</answer>",
        f" so </think> <answer>{n}</answer></answer>",
        f" so </think> <answer>{n}</think></answer>",
    ]
    for text in cases:
        assert_equal(
            fn(text, str(n)), _parts(0, 0), hint="A policy that lists all answers must not be paid."
        )


def test_r1_zero_reward__equivalent_forms_count(fn):
    "The answer is compared by value: 1,000 is 1000."
    assert_equal(
        fn(" so </think> <answer>1,000</answer>", "1000"),
        _parts(1, 1),
        hint="Use your is_equivalent, not ==.",
    )


# ---------------------------------------------------------------- qa_scores


def test_qa_scores__exact(fn):
    "The gold answer itself scores 1 on both, in any case and with an article or a full stop."
    for prediction in ("Nelgar", "nelgar.", "The Nelgar"):
        got = fn(prediction, ["Nelgar"])
        assert_equal(
            got,
            {"sub_em": 1.0, "f1": 1.0},
            hint="Normalise both texts with normalize_answer first.",
        )


def test_qa_scores__long_answers(fn):
    "A sentence that holds the gold keeps SubEM at 1 and lowers F1, for precision counts each word."
    got = fn("Ana studied in Nelgar", ["Nelgar"])
    assert_close(got["sub_em"], 1.0, hint="SubEM asks whether a gold stands inside the prediction.")
    assert_close(got["f1"], 0.4, hint="Here P = 1/4 and R = 1, so F1 = 2 P R / (P + R) = 0.4.")


def test_qa_scores__best_of_the_golds(fn):
    "With aliases the best one counts, for each score apart."
    got = fn("port mirow", ["Mirow", "Port Mirow", "Halden"])
    assert_equal(
        got,
        {"sub_em": 1.0, "f1": 1.0},
        hint="Take the maximum over the golds, not the first or the mean.",
    )


def test_qa_scores__each_score_has_its_own_question(fn):
    "SubEM asks for the characters of a gold in their order, F1 for shared words in any order."
    cases = [
        ("mirow port", ["Port Mirow"], 0.0, 1.0),
        ("nelgarton", ["Nelgar"], 1.0, 0.0),
        ("mirow", ["Port Mirow"], 0.0, 2 / 3),
        ("red", ["red red red"], 0.0, 0.5),
        ("nile delta", ["The Nile Delta."], 1.0, 1.0),
        ("port mirow", ["Mirow", "Port Mirow hills"], 1.0, 0.8),
        ("blue", ["red", "green", "Blue!"], 1.0, 1.0),
    ]
    for prediction, golds, sub_em, f1 in cases:
        got = fn(prediction, golds)
        assert_close(got["sub_em"], sub_em, hint="gold in prediction, both normalised; a float.")
        assert_close(got["f1"], f1, hint="F1 is the best over the golds, apart from SubEM.")


def test_qa_scores__words_as_multisets(fn):
    "A word said twice is shared once if the gold has it once."
    assert_close(
        fn("red red", ["red"])["f1"],
        2 / 3,
        hint="Counter(a) & Counter(b) counts shared words once each.",
    )
    assert_close(
        fn("blue", ["red"])["f1"], 0.0, hint="Nothing shared gives 0, not a division by zero."
    )


def test_qa_scores__empty_texts(fn):
    "An empty gold matches nothing, and an empty prediction scores 0."
    assert_equal(
        fn("anything", ["", "the"]),
        {"sub_em": 0.0, "f1": 0.0},
        hint="'' is a substring of every text: leave out golds that are empty once normalised.",
    )
    assert_equal(fn("", ["red"]), {"sub_em": 0.0, "f1": 0.0})


# ---------------------------------------------------------------- summarise_rates


def _rows(formatted: int, rewarded: int, lenient: int, count: int) -> list[dict]:
    """Graded rows as in results.jsonl, with so many of each."""
    return [
        {
            "metrics": {
                "format_reward": float(k < formatted),
                "answer_reward": float(k < rewarded + 2),
                "reward": float(k < rewarded),
            },
            "lenient": count - k <= lenient,
        }
        for k in range(count)
    ]


def test_summarise_rates__three_rates(fn, rng):
    "format_rate, accuracy and lenient_accuracy are shares of the same rows."
    count = rng.randint(30, 60)
    formatted, rewarded, lenient = rng.randint(10, 20), rng.randint(1, 9), rng.randint(10, 29)
    got = fn(_rows(formatted, rewarded, lenient, count))
    wanted = {"format_rate": formatted, "accuracy": rewarded, "lenient_accuracy": lenient}
    for name, hits in wanted.items():
        assert_true(name in got, expected=f"a key {name!r}", got=sorted(got))
        assert_close(
            got[name][0],
            hits / count,
            hint="Each entry is (rate, low, high); the rate is hits / number of rows.",
        )


def test_summarise_rates__wilson(fn):
    "Low and high are Wilson's 95 % interval (1927), which is not symmetric around the rate."
    for hits, count, low, high in (
        (33, 1319, 0.017870, 0.034927),
        (5, 1319, 0.001620, 0.008843),
        (30, 60, 0.377350, 0.622650),
    ):
        summary = fn(_rows(hits, hits, hits, count))
        for name in ("format_rate", "accuracy", "lenient_accuracy"):
            _, got_low, got_high = summary[name]
            call = f"summarise_rates({count} rows with {hits} hits)[{name!r}]"
            hint = "z = 1.96; centre and half width both have 1 + z*z/n below the line."
            assert_close(got_low, low, tol=1e-4, call=call, hint=hint)
            assert_close(got_high, high, tol=1e-4, call=call, hint=hint)


def test_summarise_rates__edges(fn):
    "No hit is no certainty: the interval stays inside [0, 1] and keeps a width."
    got = fn(_rows(0, 0, 60, 60))
    call = "summarise_rates(60 rows, none in format, all leniently right)"
    assert_close(
        got["format_rate"][1], 0.0, call=call, hint="max(0, ...) keeps rounding from going below 0."
    )
    assert_close(
        got["format_rate"][2],
        0.060172,
        tol=1e-4,
        call=call,
        hint="The normal approximation has no width here; Wilson's interval does.",
    )
    assert_close(got["lenient_accuracy"][2], 1.0, call=call)
