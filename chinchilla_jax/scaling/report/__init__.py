"""How are fits and predictions told? In: runs, their fits and prediction, answers. Out: text, JSON, and a page.

`facts` makes one structure of plain values, which is the JSON; `sections` words each fact once and prints it as text;
`report` writes the page with its `plots`. `ask` is the verb `predict`, `by` is `fit --by`, `paper` the verb of that
name.
"""
