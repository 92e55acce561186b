"""What a Python model's process runs: the pb_utils classes and the loop that serves them to a server.

Needs CPython 3.9 or newer and numpy, nothing of triton_fast: the model's interpreter need not have it installed.
"""
