"""Processes that do one run together.

In go flags and the environment; out comes who the others are (`hosts`), agreement with them and a common stop
(`distributed`), an exit code when the runtime dies (`guard`), and the cores that a process computes with (`cores`).
"""
