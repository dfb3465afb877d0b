"""IQ tasks after FLM-101B: what does a model do with rules that no text of its training holds?

Four families (Li et al. 2023, arXiv 2309.03852): symbolic mapping, rule understanding, pattern mining and
anti-interference. In go a seed and, for symbolic mapping, tables that you bring; out come questions, as many of each
task as the paper's scores were taken over. Neither its prompts nor its questions are published: scores here compare
models with each other, not with its tables.

    question.py      a question, its prompt, how an answer is graded; a task
    symbols.py       symbolic mapping: labels become symbols that mean nothing
    forms.py         the built-in rules for it, which need no data
    tables.py        your tables for it: CSV, TSV or JSON lines
    rules.py         counting; a word, then upper-case letters, replaced
    patterns.py      head and tail, repeating, slicing
    interference.py  keys and facts among what does not matter
    tasks.py         all of them by name
    asked.py         as tasks of `evaluation/tasks/`, which `evaluate --tasks=iq` asks

Plain Python: the same seed gives the same questions everywhere.
"""
