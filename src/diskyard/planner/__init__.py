"""What changes a request needs: pure functions from a state to a draft. No I/O.

Every function that is named ``begin_…`` or ``seal_…`` works on a
:class:`~diskyard.model.transaction.Draft` of the newest state, and may be called again
on a newer one if another writer was quicker: it must not remember anything.
"""
