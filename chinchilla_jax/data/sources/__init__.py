"""Where text comes from. In: a `data.source`. Out: a stream of documents, each with its domain."""
