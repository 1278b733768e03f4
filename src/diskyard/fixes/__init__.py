"""Finding and running fixes: clean, merge, optimize, mend.

Every fix makes a new plan from the newest state when it starts, and seals its result under a precondition.
So a fix may be run late, twice, or by two hosts: one of them works, and the other gets LeaseHeld or finds
nothing to do.
"""
