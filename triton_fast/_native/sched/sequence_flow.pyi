"""How sequences move, and the reaper: native only. Source: sched/sequence_flow.pyx."""
