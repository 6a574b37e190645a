"""A dataset on disk or behind a URL, the order of its samples, their stream, and what the device does to a batch."""
