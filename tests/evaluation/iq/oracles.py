"""Solvers of the IQ tasks that know the rules and see nothing but the prompt."""

import re


def _examples(prompt):
    return prompt.split("\n\n")


def _counting(prompt):
    first, last, given = re.fullmatch(r"Count from (\d+) to (\d+): (.*),", prompt).groups()
    start = int(first) + len(given.split(", "))
    return ", ".join(map(str, range(start, int(last) + 1)))


def _replace_lowercase(prompt):
    return re.search(r"Text: (.*)\nNew text:$", prompt)[1].lower()


def _replace_word(prompt):
    old, new, sentence = re.search(r"Word: (.*)\nNew word: (.*)\nSentence: (.*)\nNew sentence:$", prompt).groups()
    return " ".join(new if word == old else word for word in sentence.split())


def _pattern(prompt):
    *shown, asked = [re.fullmatch(r"Input: (\w+)\nOutput:(?: (\w+))?", part).groups() for part in _examples(prompt)]
    text = asked[0]
    if all(output == source * 2 for source, output in shown):
        return text * 2
    if all(source.startswith(output) for source, output in shown):
        return text[: len(shown[0][1])]
    source, output = shown[0]
    around = {(output[: m.start(1)], output[m.end(1) :]) for m in re.finditer(f"(?=({source}))", output)}
    [(head, tail)] = [ends for ends in around if all(ends[0] + s + ends[1] == o for s, o in shown)]
    return head + text + tail


def _key_retrieval(prompt):
    wanted = re.search(r"Pass key (\d) is$", prompt)[1]
    return re.search(rf"Pass key {wanted} is (\d+)\.", prompt)[1]


def _facts(prompt):
    story, asked = _examples(prompt)[-1].split("\n")
    where, things = {}, {}  # a thing is with a person or in a place
    for who, rest in re.findall(r"(\w+) ([^.]+)\.", story):
        *_, what = rest.split()
        if " to the " in rest:
            where[who] = what
        else:
            things[what] = who if rest.startswith("took") else where[who]
    name = asked.removeprefix("Where is ").removeprefix("the ").removesuffix("?")
    found = things.get(name, name)
    return where.get(found, found)


def _fields(text):
    return dict(line.split(": ", 1) if ": " in line else (line.rstrip(":"), "") for line in text.split("\n"))


def _mapped(label_of):
    """Reads off the examples which symbol stands for what, and gives that of the last text."""

    def solve(prompt):
        *shown, asked = map(_fields, _examples(prompt)[1:])
        symbols = {label_of(fields): fields["Label"] for fields in shown}
        return symbols[label_of(asked)]

    return solve


def _passage(fields):
    owned = dict(re.findall(r"(\w+) has (\d+) books", fields["Passage"]))
    one, two = re.match(r"Does (\w+) have more books than (\w+)", fields["Question"]).groups()
    return int(owned[one]) > int(owned[two])


def _word(fields):
    return all(fields["Word"] in fields[name].split() for name in ("First", "Second"))


def _claims(text):
    return re.findall(r"(\w+) is (\w+) than (\w+)\.", text)


def _entailment(fields):
    facts = {one: two for one, _, two in _claims(fields["Premise"])}
    [(one, _, two)] = _claims(fields["Hypothesis"])
    return facts.get(facts.get(one)) == two


def _reference(fields):
    trades = dict((trade, name) for name, trade in re.findall(r"(\w+) is a (\w+)", fields["Text"]))
    return trades[re.search(r"The (\w+) is tired", fields["Text"])[1]] in fields["Question"]


def _relation(fields):
    [(one, how, two)] = _claims(fields["Premise"])
    [(first, said, second)] = _claims(fields["Hypothesis"])
    pairs = ("older younger", "taller shorter", "faster slower", "richer poorer")
    opposite = {a: b for pair in map(str.split, pairs) for a, b in (pair, pair[::-1])}
    if {first, second} != {one, two} or said not in (how, opposite[how]):
        return "neither"
    return ((first, second) == (one, two)) == (said == how)


def parity(fields):
    """Of a table of our own: what its column `number` is."""
    return int(fields["Number"]) % 2


ORACLES = {
    "counting": _counting, "replace_lowercase": _replace_lowercase, "replace_word": _replace_word,
    "head_tail": _pattern, "full_repeating": _pattern, "head_slicing": _pattern, "key_retrieval": _key_retrieval,
    "one_supporting_fact": _facts, "two_supporting_facts": _facts, "symbolic_passage": _mapped(_passage),
    "symbolic_word": _mapped(_word), "symbolic_entailment": _mapped(_entailment),
    "symbolic_reference": _mapped(_reference), "symbolic_relation": _mapped(_relation),
    "symbolic_parity": _mapped(parity),
}  # fmt: skip
