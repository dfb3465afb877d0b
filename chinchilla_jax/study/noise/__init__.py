"""How much of a loss is luck. In: a plan. Out: the spread between seeds, and how sure a study with it will be."""
