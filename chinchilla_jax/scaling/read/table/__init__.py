"""The steps from a table, as people have them, to runs. In: a file. Out: runs, curves, and what to say of them.

`formats` reads rows of text, `select` takes those that are asked for; `headers`, `columns` and `derive` find a column
or a formula for every field; `cells` and `records` turn cells into numbers; `history` joins rows to runs; `settings`
looks for sweeps and mixes; `chart` and `curves` read training curves.
"""
