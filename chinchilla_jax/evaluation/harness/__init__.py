"""Many questions to one model, in few passes, for our own tasks and for EleutherAI's lm-evaluation-harness.

pairs.py     which tokens are asked about, after which others
programs.py  how likely they are, on devices
scorer.py    rows put together by length, contexts shared
"""
