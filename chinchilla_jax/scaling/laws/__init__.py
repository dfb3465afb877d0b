"""Scaling laws as plug-in forms on one fitter, and the constants published for them.

A law is one module here with a tuple `FORMS`; `form.forms()` finds it, `fit.fit_form` fits it, and an entry in
`tables/published_laws.json` gives it constants. Nothing else has to know of it.
"""
