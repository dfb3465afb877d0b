"""Scaling laws from finished runs, by question, each folder standing on those above it:

read/      which runs are there, and how were they counted?
fits/      where is the optimum, by each of the three approaches?
laws/      which other laws are there, and with which published constants?
predict/   what will a larger budget reach, how sure is that, and was it right?
answers/   what should be trained, and what do other choices cost?
report/    how is all that told: text, JSON, a page, plots?
api        the same questions as functions of Python
"""
