"""Attention as an operation on arrays.

In go queries, keys, values and what modifies their scores, by the keywords of `attention.attention`; out come the
mixed values and, if asked for, log-sum-exps, with gradients. A call is checked once (`call`) and then computed by one
of three forms that mean the same: all scores in memory (`plain`), a block at a time (`blockwise`), or TPU kernels
(`fused` lays out arrays for `fused_kernel`, with the tiles that `schedule` and `tiles` choose). No mesh is known here.
"""
