"""Energy matching: one potential that carries noise to data and is their density."""
