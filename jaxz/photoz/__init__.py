"""The science of photometric redshifts: p(z), metrics and plots. Knows arrays, not trainers; imports no jax."""
