"""Approach 2: IsoFLOP profiles. In: runs at a few budgets. Out: each budget's minimum, and the laws through them."""
