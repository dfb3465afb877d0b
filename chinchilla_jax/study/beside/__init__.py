"""What is asked of a study beside its prediction: its noise, the best settings of a proxy, ways to train at equal C.

In goes a study's config; out come a manifest of its own, the runs, and a table or a page.
"""
