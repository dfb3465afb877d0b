"""Where is the optimum? In: runs. Out: one fit for each approach of Hoffmann et al. 2022 section 3.

`approach1` reads the envelope of training curves, `approach2` the minima of IsoFLOP profiles, `approach3` fits a
surface L(N, D). Here is what they share: power laws through optima, resampling, batched minimisation.
"""
