"""The example clip and a finished run of it, as they are installed; the scripts beside them are run, not imported."""
