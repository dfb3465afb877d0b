"""The planted law, and the plan, of the tests of how often intervals of approach 3 hold the truth."""

import numpy as np

from chinchilla_jax.scaling.fits.approach3.parametric import paper_starts
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.tools.simulate import plan_isoflop

TRUTH = Surface(1.69, 406.4, 410.7, 0.34, 0.28)
BUDGETS = np.geomspace(6e18, 3e21, 6)
TARGET = 10 * BUDGETS[-1]
SIZES = plan_isoflop(TRUTH, BUDGETS, 7)
FEW = paper_starts()[::300]
