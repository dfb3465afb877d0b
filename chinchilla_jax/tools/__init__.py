"""Measuring tools. Nothing that trains imports them; `preflight` asks the meter for the cycles of a kernel."""
