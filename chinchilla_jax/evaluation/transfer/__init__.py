"""Is what a model learned from text of use where there is no text? In goes a trained model, out come accuracies.

`listops` and `digits` make examples, `tasks` makes rows of tokens of them; `head` classifies what the model makes of a
row; `train` fits head and model in one of the ways that are compared; `table` does it for all of them.
"""
