"""Studies of the method's claims: resumable programs, `python -m benchmarks.studies.NAME`."""
