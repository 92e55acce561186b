"""Batches as dense arrays, for frameworks that run whole batches: gathered natively, results cut into responses."""
