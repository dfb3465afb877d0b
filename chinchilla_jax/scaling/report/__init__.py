"""How are fits and predictions told? In: an analysis and its prediction. Out: text, JSON, a page, plots."""
