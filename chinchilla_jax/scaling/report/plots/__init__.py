"""How do fits and predictions look? In: a prediction and all runs. Out: one PNG for each question."""
