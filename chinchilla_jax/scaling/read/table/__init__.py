"""The steps from a table, as people have them, to runs. In: a file. Out: runs, curves, and what to say of them.

`formats` reads rows of text into a `Table`, which each step adds to; `select` takes the rows that are asked for;
`headers` and `columns` find a column or a formula for every field; `cells` turns cells into numbers, `records` rows
into runs; `settings` looks for sweeps and mixes; `curves` reads training curves.
"""
