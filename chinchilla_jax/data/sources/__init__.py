"""Where text comes from. In: a `DataConfig.source`. Out: a stream of documents, each with its domain.

A module for each kind of source, which `register`s it by name; `registry` opens them. A new one is a module here, and
its name with that of the module in `config.SOURCES`.
"""
