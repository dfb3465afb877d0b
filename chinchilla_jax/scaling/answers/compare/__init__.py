"""Is one way to train better than another, and how much compute is it worth? In: the runs of two or more arms. Out: the
compute-equivalent gain of each against a reference, with draws paired by what the arms share."""
