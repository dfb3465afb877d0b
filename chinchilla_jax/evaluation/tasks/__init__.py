"""Tasks that need no other package: questions made here, asked, and graded.

question.py  the kinds of question, and what a task is
ask.py       asks a model all questions of a task: its metrics, and each question's scores
heldout.py   tasks made of held-out text
named.py     all tasks by name; how a family of tasks joins them
"""
