"""How is every token learned on the way? Runs with `train.keep_checkpoints` in, series of losses out, and their trends.

After Xia et al. 2023, "Training Trajectories of Language Models Across Scales" (arXiv 2212.09803): `collect` evaluates
held-out text at every kept checkpoint, `classify` finds trends, `match` compares sizes, `contrast` decodes what one
size likes better than another, `plot` draws.
"""
