"""Catalogues as they were published, to columns of a dataset."""
