"""Writes the corpus of tiny-gov: synthetic work of a 12345 citizens' hotline, in Chinese.

One JSON object per line: {"task", "user", "answer", "think"}. Every record is drawn from the lists
of phrases.py; nothing comes from real tickets. The same count and seed give the same bytes on every
machine, so the order of the draws is part of the format: do not reorder them.

The sets: `plain` (the tokenizer's corpus; heldback.jsonl with a seed of its own), `training`
(further sayings of the callers and the records of copying.py), `finishing` (the same in other
shares, and callers' words put together anew) and `unseen` (COUNT dispatch records per category,
each with the one saying that no training text holds).

usage: python generate.py OUT.jsonl COUNT SEED [--set plain|training|finishing|unseen]
"""

import argparse
import json
import random
from typing import NamedTuple

from copying import look_up, quote, transcribe, varied_saying, wide_policy
from phrases import (
    CATEGORIES,
    CHATS,
    DEADLINES,
    DISTRICTS,
    GREETINGS,
    MATERIALS,
    MORE_SAYINGS,
    NOTICE_TOPICS,
    PLACES,
    POLICY_FACTS,
    POLICY_ITEMS,
    REQUESTS,
    ROADS,
    TIMES,
    UNSEEN_SAYINGS,
)

# What callers say about every category, by set.
PLAIN = {name: category.sayings for name, category in CATEGORIES.items()}
TRAINING = {name: PLAIN[name] + MORE_SAYINGS[name] for name in CATEGORIES}
UNSEEN = {name: [saying] for name, saying in UNSEEN_SAYINGS.items()}


class Ticket(NamedTuple):
    """What a caller said, and the parts of it that the answer needs."""

    text: str
    district: str
    where: str
    saying: str


def to_json(value):
    """Compact JSON with the Chinese characters left as they are."""
    return json.dumps(value, ensure_ascii=False)


def draw_ticket(rng, said):
    """A call with one of the sayings `said`.

    Every variant is built before one is chosen: a fixed draw count.
    """
    district = rng.choice(DISTRICTS)
    road = rng.choice(ROADS)
    place = rng.choice(PLACES)
    where = rng.choice(
        [
            f"{district}{road}{place}",
            f"{district}{place}",
            f"{district}{road}{rng.randint(1, 399)}号",
            f"{district}{road}",
        ]
    )
    saying = rng.choice(said)
    body = rng.choice(
        [
            f"{where}{rng.choice(TIMES)}{saying}，",
            f"{rng.choice(TIMES)}，{where}{saying}，",
            f"我住在{where}，{saying}，",
            f"{where}，{saying}。",
        ]
    )
    text = rng.choice(GREETINGS) + body + rng.choice(REQUESTS)
    return Ticket(text, district, where, saying)


def dispatch(rng, sayings=PLAIN, name=None):
    """Ticket -> JSON with category, department, urgency, district and summary."""
    name = name or rng.choice(list(CATEGORIES))
    ticket = draw_ticket(rng, sayings[name])
    category = CATEGORIES[name]
    answer = {
        "类别": name,
        "部门": category.department,
        "紧急程度": category.urgency,
        "区域": ticket.district,
        "摘要": ticket.saying,
    }
    question = rng.choice(
        [
            "请对以下工单进行分拨。\n工单：",
            "请判断下面的12345工单应由哪个部门办理，输出JSON。\n工单：",
            "工单分拨：\n",
        ]
    )
    think = (
        f"市民反映“{ticket.saying}”，属于{category.field}，类别为{name}，"
        f"由{category.department}办理，{category.urgency}。"
    )
    return question + ticket.text, to_json(answer), think


def varied_dispatch(rng):
    """As dispatch, with words that may be new."""
    name = rng.choice(list(CATEGORIES))
    return dispatch(rng, {name: [varied_saying(rng, name)]}, name)


def opinion(rng, sayings=PLAIN):
    """Ticket -> one sentence of instruction. The days are drawn: no input determines them."""
    name = rng.choice(list(CATEGORIES))
    ticket = draw_ticket(rng, sayings[name])
    category = CATEGORIES[name]
    days = rng.choice(DEADLINES[category.urgency])
    urgency, department = category.urgency, category.department
    answer = (
        f"拟办意见：请{ticket.district}{department}就{ticket.where}"
        f"“{ticket.saying}”一事派员核实，"
        f"于{days}个工作日内办结，并将结果回复来电人。"
    )
    think = f"{urgency}事项，由{department}办理，时限{days}个工作日。"
    return "请为以下工单拟写办理意见。\n工单：" + ticket.text, answer, think


def fact_value(rng, fact):
    """A plausible value for one line of a service guide."""
    if fact == "办理时限":
        return f"{rng.randint(1, 30)}个工作日"
    if fact == "办理地点":
        return f"{rng.choice(DISTRICTS)}{rng.choice(ROADS)}{rng.randint(1, 399)}号"
    if fact == "收费标准":
        return rng.choice(["不收费", f"每件{rng.randint(1, 50) * 10}元"])
    if fact == "咨询电话":
        return f"{rng.randint(2000, 8999)}{rng.randint(1000, 9999)}"
    if fact == "补贴金额":
        return f"每月{rng.randint(1, 60) * 50}元"
    if fact == "申请截止":
        return f"{rng.randint(1, 12)}月{rng.randint(1, 28)}日"
    if fact == "最低年限":
        return f"{rng.randint(1, 15)}年"
    opening = rng.choice(["上午8点", "上午9点"])
    return f"{opening}至{rng.choice(['下午5点', '下午6点', '晚上8点'])}"


def policy(rng):
    """Service guide and question -> the value, copied, with its source."""
    item = rng.choice(list(MATERIALS) + POLICY_ITEMS)
    facts = rng.sample(POLICY_FACTS, rng.randint(2, 5))
    values = [fact_value(rng, fact) for fact in facts]
    asked = rng.randrange(len(facts))
    guide = "".join(f"{fact}：{value}。" for fact, value in zip(facts, values))
    source = f"《{item}办事指南》"
    question = f"{item}的{facts[asked]}"
    user = f"依据材料回答问题。\n材料：{source}{guide}\n问题：{question}是什么？"
    answer = f"{question}是{values[asked]}。依据：{source}。"
    return user, answer, f"材料中{facts[asked]}为{values[asked]}。"


def prereview(rng):
    """Submitted materials -> JSON that says which ones are missing."""
    item = rng.choice(list(MATERIALS))
    needed = MATERIALS[item]
    n_drawn = rng.choice([0, 0, 1, 1, 2])
    # A new sample for each material: each is missing with the chance n_drawn / len(needed).
    missing = [material for material in needed if material in rng.sample(needed, n_drawn)]
    submitted = [material for material in needed if material not in missing]
    rng.shuffle(submitted)
    answer = {
        "事项": item,
        "结论": "材料不全" if missing else "材料齐全",
        "缺少": missing,
        "建议": "一次性告知补正" if missing else "转人工复核",
    }
    verdict = f"缺少{'、'.join(missing)}。" if missing else "均已提交。"
    user = f"请预审申请材料。\n事项：{item}\n已提交：{'、'.join(submitted)}"
    return user, to_json(answer), f"{item}需要{'、'.join(needed)}，{verdict}"


def notice(rng):
    """Topic, office and date -> a notice in the official form."""
    department = rng.choice(sorted({category.department for category in CATEGORIES.values()}))
    district = rng.choice(DISTRICTS)
    date = f"{rng.randint(2024, 2027)}年{rng.randint(1, 12)}月{rng.randint(1, 28)}日"
    topic = rng.choice(NOTICE_TOPICS)
    office = f"{district}{department}"
    answer = "\n".join(
        [
            f"关于做好{topic}工作的通知",
            "各街道办事处，各有关单位：",
            f"为做好{topic}工作，现将有关事项通知如下：",
            "一、提高认识，加强领导。",
            "二、明确责任，抓好落实。",
            "三、及时报告，确保实效。",
            office,
            date,
        ]
    )
    user = f"起草一份关于{topic}的通知，发文单位：{office}，日期：{date}。"
    return user, answer, f"按公文格式写{topic}通知，落款{office}。"


def chat(rng):
    """A greeting or a question about the model itself."""
    question, answer = rng.choice(CHATS)
    return question, answer, "这是日常问候。"


# Tasks of the two mixed sets: the record's "task", what draws it, how often.
PLAIN_TASKS = [
    ("dispatch", dispatch, 8),
    ("opinion", opinion, 3),
    ("policy", policy, 5),
    ("prereview", prereview, 3),
    ("notice", notice, 1),
    ("chat", chat, 0.2),
]
TRAINING_TASKS = [
    ("dispatch", lambda rng: dispatch(rng, TRAINING), 5),
    ("opinion", lambda rng: opinion(rng, TRAINING), 1.5),
    ("policy", policy, 5),
    ("prereview", prereview, 1.2),
    ("notice", notice, 0.8),
    ("chat", chat, 0.1),
    ("wide policy", lambda rng: wide_policy(rng, fact_value), 3),
    ("look up", lambda rng: look_up(rng, fact_value), 2),
    ("transcribe", transcribe, 2),
    ("quote", quote, 0.7),
]
# What the finishing set changes: copying is learnt by then.
FINISHING = {
    "dispatch": 3,
    "opinion": 1,
    "policy": 2.5,
    "prereview": 4,
    "notice": 1,
    "transcribe": 1,
}
SETS = ["plain", "training", "finishing", "unseen"]


def record(rng, tasks):
    """One record of the tasks."""
    weights = [weight for _, _, weight in tasks]
    task, make, _ = rng.choices(tasks, weights)[0]
    user, answer, think = make(rng)
    return {"task": task, "user": user, "answer": answer, "think": think}


def tasks_of(kind):
    """The tasks of a set: [(task, what draws it, how often)]."""
    if kind == "plain":
        return PLAIN_TASKS
    if kind == "training":
        return TRAINING_TASKS
    more = [("dispatch", varied_dispatch, 4)]
    return [(task, make, FINISHING.get(task, often)) for task, make, often in TRAINING_TASKS] + more


def unseen(rng, count):
    """`count` dispatch records per category, each with the saying that training never used."""
    records = []
    for name in CATEGORIES:
        for _ in range(count):
            user, answer, think = dispatch(rng, UNSEEN, name)
            records.append({"task": "dispatch", "user": user, "answer": answer, "think": think})
    return records


def prompt(user):
    """The text in front of an answer without thinking (chat form of V3.1)."""
    return f"<｜begin▁of▁sentence｜><｜User｜>{user}<｜Assistant｜></think>"


def render(rec, think):
    """The whole chat as one text, with or without the reasoning."""
    if think:
        head = f"<｜begin▁of▁sentence｜><｜User｜>{rec['user']}<｜Assistant｜>"
        head += f"<think>\n{rec['think']}\n</think>\n\n"
    else:
        head = prompt(rec["user"])
    return head + rec["answer"] + "<｜end▁of▁sentence｜>"


def write_corpus(path, count, seed, kind="plain"):
    """Writes `count` records (unseen: per category) to `path`; returns them."""
    rng = random.Random(seed)
    if kind == "unseen":
        records = unseen(rng, count)
    else:
        records = [record(rng, tasks_of(kind)) for _ in range(count)]
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(to_json(rec) + "\n" for rec in records)
    return records


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", help="file to write, one JSON object per line")
    parser.add_argument("count", type=int, help="number of records")
    parser.add_argument("seed", type=int)
    parser.add_argument("--set", choices=SETS, default="plain")
    args = parser.parse_args()
    write_corpus(args.out, args.count, args.seed, args.set)


if __name__ == "__main__":
    main()
