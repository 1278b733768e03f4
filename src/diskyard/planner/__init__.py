"""What a request changes: pure functions from a state to a draft. No I/O.

Every function that is named ``begin_…`` or ``seal_…`` works on a
:class:`~diskyard.model.transaction.Draft` of the newest state. It may be called again on a newer state, if
another writer was quicker, so it must not remember anything.
"""
