"""How are fits and predictions told? In: runs, their fits and prediction, answers. Out: text, JSON, and a page.

`facts` makes one structure of plain values, which is the JSON; `sections` words each fact once; `text` and `html`
render the sections. `ask` is the verb `predict`, `by` is `fit --by`, `report` writes the page with its `plots`, and
`paper` is the verb of that name.
"""
