"""Commands that make, check, mend, extend and export datasets."""
