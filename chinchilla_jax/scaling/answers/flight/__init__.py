"""Where will runs under way end, and which go wrong? In: finished and unfinished runs with their curves. Out: forecasts
with intervals that narrow (`forecast`), and marks of a sequential test (`alarm`)."""
