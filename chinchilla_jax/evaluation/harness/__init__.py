"""Many questions to one model, in few passes, for our own tasks and for EleutherAI's lm-evaluation-harness.

pairs.py      which tokens are asked about, after which others
programs.py   how likely they are, on devices
scorer.py     rows put together by length, contexts shared
lm.py         the model as the harness sees it
evaluate.py   tasks of the harness, one after the other
data_sets.py  where their data come from; offline
suites.py     the tasks of a paper
"""
