"""How much of a loss is luck. In: a plan. Out: the spread between seeds, and how sure a study with it will be.

`measure` trains cells with several seeds and rates, `spread` puts them into figures, `foresee` says before a study how
sure its prediction will be.
"""
