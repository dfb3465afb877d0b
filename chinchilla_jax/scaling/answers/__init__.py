"""What should be trained? In: laws, published or fitted, and a question. Out: an `Answer`, a table of choices.

`answers` has the questions, `decide` the arithmetic of one law, `recommended` the law behind a prediction. `suggest/`
has the runs that would narrow it, `flight/` where runs under way will end, `compare/` how much compute one way to train
is worth against another, `serving/` how many experts when a mixture is also served, `losses` several losses at once,
`on_record` what was predicted before it was trained.
"""
