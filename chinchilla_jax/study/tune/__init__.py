"""Hyper-parameters. In: a study whose recipe carries over to wider models. Out: the best recipe of its kind."""
