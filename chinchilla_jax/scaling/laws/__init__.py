"""Which other laws are there? In: points, or the name of a published law. Out: a law that can be evaluated.

A law is a `Form` in the tuple `FORMS` of a module of this folder, or one passed to `form.register`. `form.forms()`
knows it from then on, `fit.fit_form` fits it, and an entry in `tables/published_laws.json` gives it constants. Nothing
else has to know of it.
"""
