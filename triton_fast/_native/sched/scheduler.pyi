"""Schedulers and layers over them, as the engine sees them."""

class NativeScheduler:
    """A scheduler or a layer over one; its subclasses say which. Handed to ``NativeModel.use`` or ``add_layer``."""
