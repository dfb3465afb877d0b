"""Tables as people have them. In: a file. Out: runs and their curves.

A file becomes rows of text (`formats`), headers become fields (`headers`, `columns`, `derive`), cells numbers
(`cells`), rows runs and histories (`rows`, `history`, `chart`); `select` and `settings` say which of them are fitted.
"""
