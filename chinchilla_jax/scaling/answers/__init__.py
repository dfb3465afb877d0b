"""What should be trained? In: laws, published or fitted, and a question. Out: an `Answer`, a table of choices.

`answers` has the questions, `decide` the arithmetic of one law, `recommended` the law behind a prediction, `suggest`
the runs that would narrow it: by approach 2 (`minima_design`) or 3 (`surface_design`), both designs over `cells`.
"""
