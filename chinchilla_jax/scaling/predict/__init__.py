"""What will a larger budget reach? In: runs. Out: fits, the prediction made from them, what to doubt, and verdicts.

`analyse` fits all approaches to the runs, once. Everything else is a function of these fits: `estimates_of` (the answer
of each approach), `rollouts` (larger budgets hidden and predicted), `doubts`, and `predict`, which puts them together.
`judge` compares a prediction with the runs trained at its budget.
"""
