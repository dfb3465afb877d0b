"""Where is the optimum? In: runs. Out: one fit for each approach of Hoffmann et al. 2022 section 3.

`approach1` reads the envelope of training curves, `approach2` the minima of IsoFLOP profiles, `approach3` fits a
surface L(N, D). The files beside them are what they share: power laws through optima, resampling, many minimisations
at once, and the fitter from many starts, which serves the laws of `scaling.laws` as well.
"""
