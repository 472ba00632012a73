"""Draws the training records that teach tiny-gov to copy: policy records with more facts, several
sources and sentences beside the point, and plain copying, look-up and quoting of random values.

None of these stands in heldback.jsonl; training alone uses them. As in generate.py, the order of
the draws is part of the corpus. Every function returns (question, answer, reasoning).
"""

from phrases import (
    CATEGORIES,
    DISTRACTORS,
    DISTRICTS,
    MATERIALS,
    MORE_SAYINGS,
    NAME_CHARACTERS,
    PLACES,
    POLICY_FACTS,
    POLICY_ITEMS,
    ROADS,
    WIDE_FACTS,
    WIDE_SOURCES,
)


def digits(rng, count):
    """`count` random digits, the first one not 0."""
    return str(rng.randint(1, 9)) + "".join(str(rng.randint(0, 9)) for _ in range(count - 1))


def name(rng):
    """A made-up name of two or three characters."""
    return "".join(rng.choice(NAME_CHARACTERS) for _ in range(rng.randint(2, 3)))


def address(rng):
    """District, road (known or made up) and number, place or room."""
    road = rng.choice([rng.choice(ROADS), name(rng) + rng.choice(["路", "街", "大道"])])
    end = rng.choice(
        [
            f"{rng.randint(1, 1999)}号",
            f"{rng.randint(1, 399)}号{rng.randint(1, 40)}楼",
            rng.choice(PLACES),
        ]
    )
    return rng.choice(DISTRICTS) + road + end


def date(rng):
    day = f"{rng.randint(1, 12)}月{rng.randint(1, 28)}日"
    return rng.choice([day, f"{rng.randint(2020, 2035)}年{day}"])


def amount(rng):
    value = rng.choice([rng.randint(1, 999), rng.randint(1, 60) * 50, rng.randint(1, 99999)])
    return rng.choice(["", "每月", "每件", "每年", "每人"]) + f"{value}元"


def saying(rng):
    """A caller's words: those of training only."""
    category = rng.choice(list(CATEGORIES))
    return rng.choice(CATEGORIES[category].sayings + MORE_SAYINGS[category])


def varied_saying(rng, category):
    """A caller's words that may be new: two sayings' parts together, or one with a detail."""
    sayings = CATEGORIES[category].sayings + MORE_SAYINGS[category]
    clauses = [clause for words in sayings for clause in words.split("，") if len(clause) > 4]
    said, clause = rng.choice(sayings), rng.choice(clauses)
    detail = value(rng)
    return rng.choice([clause, f"{said}，{clause}", f"{clause}，{said}", f"{said}，{detail}"])


def value(rng):
    """Any value that a text may hold."""
    kinds = [
        lambda: digits(rng, rng.randint(1, 4)),
        lambda: digits(rng, rng.randint(5, 12)),
        lambda: address(rng),
        lambda: date(rng),
        lambda: amount(rng),
        lambda: name(rng),
        lambda: rng.choice(list(MATERIALS) + POLICY_ITEMS + PLACES + ROADS + DISTRICTS),
        lambda: rng.choice(rng.choice(list(MATERIALS.values()))),
        lambda: f"{rng.randint(1, 23)}点{rng.randint(0, 59)}分",
    ]
    return rng.choice(kinds)()


def wide_fact(rng, fact, plain_value):
    """A value for one fact; `plain_value` is generate.py's drawer for the facts that it knows."""
    if fact not in WIDE_FACTS:
        if fact == "办理地点":
            return address(rng)
        if fact in ("收费标准", "补贴金额"):
            return amount(rng)
        return plain_value(rng, fact)
    if fact == "监督电话":
        return digits(rng, 8)
    if fact == "手机号码":
        return "1" + digits(rng, 10)
    if fact in ("受理编号", "邮政编码"):
        return digits(rng, 6)
    if fact == "每人限额":
        return amount(rng)
    if fact == "开始日期":
        return date(rng)
    number = rng.randint(1, 400)
    unit = {
        "办理窗口": "号窗口", "有效期": "年", "补贴比例": "%", "名额": "人",
        "面积标准": "平方米", "楼层": "楼", "房间": "号", "公示天数": "天",
    }  # fmt: skip
    return f"{number}{unit[fact]}"


def guide(rng, plain_value, most):
    """The facts of one source, and its text: `fact：value。`, sentences beside the point between."""
    facts = rng.sample(POLICY_FACTS + WIDE_FACTS, rng.randint(2, most))
    known = {fact: wide_fact(rng, fact, plain_value) for fact in facts}
    parts = [f"{fact}：{what}。" for fact, what in known.items()]
    for _ in range(rng.choice([0, 0, 1, 2])):
        parts.insert(rng.randint(0, len(parts)), rng.choice(DISTRACTORS))
    return known, "".join(parts)


def wide_policy(rng, plain_value):
    """One to three sources and a question about one of them -> the value, and its source."""
    items = rng.sample(list(MATERIALS) + POLICY_ITEMS, rng.choice([1, 1, 2, 2, 3]))
    most = 8 if len(items) == 1 else 4
    sources = [f"《{item}{rng.choice(WIDE_SOURCES)}》" for item in items]
    guides = [guide(rng, plain_value, most) for _ in items]
    labels = ["材料："] if len(items) == 1 else ["材料一：", "材料二：", "材料三："]
    text = "\n".join(
        label + source + body for label, source, (_, body) in zip(labels, sources, guides)
    )
    asked = rng.randrange(len(items))
    fact = rng.choice(list(guides[asked][0]))
    what = guides[asked][0][fact]
    question = f"{items[asked]}的{fact}"
    tail = rng.choice(["是什么？", "是什么？", "是多少？", "？"])
    user = f"依据材料回答问题。\n{text}\n问题：{question}{tail}"
    return user, f"{question}是{what}。依据：{sources[asked]}。", f"材料中{fact}为{what}。"


def look_up(rng, plain_value):
    """A table of keys and values, and some of its keys -> the same rows."""
    n_rows = rng.randint(3, 9)
    if rng.random() < 0.5:
        known, _ = guide(rng, plain_value, 9)
    else:
        known = {}
        while len(known) < n_rows:
            key = rng.choice([digits(rng, 3), rng.choice(PLACES), rng.choice(DISTRICTS), name(rng)])
            known[key] = value(rng)
    rows = [f"{key}：{what}。" for key, what in known.items()]
    asked = rng.sample(list(known), rng.randint(1, min(4, len(known))))
    user = f"摘录表中的内容。\n材料：{''.join(rows)}\n摘录：{'、'.join(asked)}"
    answer = "".join(f"{key}：{known[key]}。" for key in asked)
    return user, answer, "照表摘录。"


def transcribe(rng):
    """A row of random values -> the same row."""
    text = "，".join(value(rng) for _ in range(rng.randint(2, 9)))
    return f"请照写下面的内容。\n{text}", text, "照写。"


def quote(rng):
    """A text with quotation marks -> what stands between them."""
    inner = rng.choice([saying(rng), value(rng) + "，" + value(rng), value(rng) + saying(rng)])
    before, after = value(rng), value(rng)
    text = rng.choice(
        [
            f"来电人住在{before}，称“{inner}”，请回电{after}。",
            f"{before}，材料写明“{inner}”，{after}。",
            f"“{inner}”，{before}，{after}。",
        ]
    )
    return f"摘录引号中的话。\n材料：{text}", inner, "摘录引号中的内容。"
