"""What an instance takes next: native only. Source: sched/sequence_take.pyx."""
