"""Finding and running fixes: clean, merge, optimize, mend.

Every fix plans anew from the newest state when it starts, and seals with a precondition.
So it may be run late, twice, or by two hosts: one works, the other gets LeaseHeld or finds
nothing to do.
"""
