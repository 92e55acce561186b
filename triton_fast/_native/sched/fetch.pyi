"""Inputs in GPU memory, brought to the host before a backend sees them; native code only.

The contract: ext/triton_fast/_native/sched/fetch.pxd.
"""
