"""The synthetic survey: spectra -> population -> rendered cutouts -> measured photometry."""
