"""What a framework sees of a batch: one dense array for each input and each output. Nothing to call from Python."""
