"""Plans: what a run would need and do on devices that need not be here, read from programs compiled for them."""
