"""What a run writes in its directory. In go device scalars and facts about the run, out come files that fits read."""
