"""Which documents are text worth training on: pure functions of one document, so any number of workers agree.

In: the text of a document. Out: the name of the first rule it breaks, empty if it is to be kept. `data.filters` names
the filters and their order.
"""

from chinchilla_jax.data.filters.named import FILTERS as FILTERS
from chinchilla_jax.data.filters.named import check_filters as check_filters
from chinchilla_jax.data.filters.named import identity as identity
from chinchilla_jax.data.filters.named import verdict as verdict
